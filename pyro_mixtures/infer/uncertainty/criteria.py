"""Information criteria for the choice of a mixture: AIC, BIC and ICL."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import DataError
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.scoring.posteriors import posteriors
from pyro_mixtures.infer.uncertainty.free_parameters import FreeParameters, stock_statistics
from pyro_mixtures.ops.lookup import count_weights
from pyro_mixtures.poutine import Posterior


class Criteria(NamedTuple):
    """Information criteria of a fitted mixture, in nats over all rows; small values are good."""

    log_likelihood: float
    parameters: int  # p, the number of free ones
    rows: float  # n, the sum of the row weights
    aic: float  # 2 p - 2 log L
    bic: float  # p log n - 2 log L
    icl: float  # BIC + 2 entropy
    entropy: float  # of the responsibilities; near zero if components are well separated
    shares: Tensor  # (C,) mean responsibilities

    def __str__(self) -> str:
        shares = " ".join(f"{share:.3f}" for share in self.shares.tolist())
        counts = f"rows {self.rows:g}, free parameters {self.parameters}"
        return "\n".join(
            [
                f"log likelihood {self.log_likelihood:14.3f}   {counts}",
                f"AIC            {self.aic:14.3f}",
                f"BIC            {self.bic:14.3f}",
                f"ICL            {self.icl:14.3f}   entropy {self.entropy:.3f}",
                f"shares         {shares}",
            ]
        )


def criteria(
    model: Callable[..., Any],
    *rows: Tensor,
    guide: PartitionGuide | None = None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    freeze: Iterable[str] = (),
    chunk: int | None = None,
) -> Criteria:
    r"""Compute information criteria of ``model`` with its current params on ``rows``.

    ICL is BIC plus twice the entropy of the responsibilities (Biernacki, Celeux & Govaert,
    "Assessing a mixture model for clustering with the integrated completed likelihood", IEEE PAMI
    22, 2000, in its BIC form).

    The number of free parameters counts the directions that the likelihood can depend on: C - 1 for
    a simplex or C logits, D - 1 for a unit vector, the triangle of a Cholesky factor, and
    D H - H (H - 1) / 2 for a D x H factor, which is identified up to a rotation. Params that
    several sites share count once; constants, frozen params and those with
    ``requires_grad=False`` do not count. Two exceptions: logits of a stock ``Categorical`` count as
    C, and coefficients of :class:`ChoiceLogits` all count, even if attributes are collinear (remove
    such attributes first). Coefficients of :class:`SoftmaxComponents` without ridge count as the
    rank of the item features. A ridge penalty is part of the log likelihood and does not reduce
    p. Components of weight zero, such as those that ``EM(empty="drop")`` drops, do not count.
    For a stock distribution without a closed form, the parameters of all components count.

    :param model: the fitted program.
    :param rows: the model's tensor arguments, N rows each; they are evaluated in chunks.
    :param guide: None sums over all C components, which is exact; with a truncated guide the log
        likelihood is a lower bound.
    :param site: name of the discrete site.
    :param given: values of the model's other latent sites, if it has any.
    :param freeze: names of params that were held fixed in the fit.
    :param chunk: rows evaluated at once.
    :returns: the criteria; printing them shows one per line.
    :raises OptionError: if ``freeze`` names a param that the model does not have.
    :raises DataError: if all row weights are zero.

    >>> from pyro_mixtures.models import GaussianMixture
    >>> model = GaussianMixture(components=2, features=3)
    >>> criteria(model, torch.randn(10, 3)).parameters
    13
    """
    totals = _Totals()
    for posterior, row_chunk in posteriors(model, rows, guide, site, given, chunk):
        totals.add(posterior)
        last_chunk = row_chunk, posterior
    batches = Batches(rows)
    if not totals.rows > 0:
        raise DataError(
            f"the weights of the {batches.rows} rows sum to {totals.rows:g}: pass rows with "
            "positive weights"
        )
    first_row = tuple(tensor[:1] for tensor in batches.tensors)
    program = FreeParameters(model, first_row, frozenset(freeze))
    counts = totals.counts(program.components(site))
    dropped = program.dropped(site, counts)
    parameters = program.count()
    if bool(dropped.any()):
        stock_sites = stock_statistics(model, site, *last_chunk)
        parameters -= program.count_dropped(site, dropped, stock_sites)
    return totals.criteria(parameters, counts)


class _Totals:
    """Sums over chunks of rows."""

    def __init__(self) -> None:
        self.log_likelihood = 0.0
        self.entropy = 0.0
        self.rows = 0.0
        # Per chunk: component numbers, and the sums of their responsibilities.
        self.component_sums: list[tuple[Tensor, Tensor]] = []

    def add(self, posterior: Posterior) -> None:
        weight, probs = posterior.row_weight.double(), posterior.probs.double()
        self.rows += float(weight.sum())
        self.log_likelihood += float(posterior.free_energy())
        row_entropy = torch.where(probs > 0, -probs * posterior.log_prob, 0.0).sum(0)
        self.entropy += float(torch.where(weight > 0, weight * row_entropy, 0.0).sum())
        weighted_probs = torch.where(weight > 0, weight * probs, 0.0)
        candidates = posterior.candidates.expand(weighted_probs.shape).reshape(-1).long()
        numbers, position = candidates.unique(return_inverse=True)
        sums = count_weights(position, weighted_probs.reshape(-1), len(numbers))
        self.component_sums.append((numbers, sums))

    def counts(self, components: int) -> Tensor:
        """Return the sums of the responsibilities (C,)."""
        numbers, sums = (torch.cat(chunks) for chunks in zip(*self.component_sums, strict=True))
        return count_weights(numbers, sums, components)

    def criteria(self, parameters: int, counts: Tensor) -> Criteria:
        deviance = -2 * self.log_likelihood
        bic = parameters * math.log(self.rows) + deviance
        return Criteria(
            log_likelihood=self.log_likelihood,
            parameters=parameters,
            rows=self.rows,
            aic=2 * parameters + deviance,
            bic=bic,
            icl=bic + 2 * self.entropy,
            entropy=self.entropy,
            shares=counts / counts.sum(),
        )
