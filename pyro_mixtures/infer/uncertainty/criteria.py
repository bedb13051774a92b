"""Criteria to choose a mixture by: log likelihood, numbers of parameters, AIC, BIC, ICL, class shares."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import singledispatch
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import MaskedDistribution, constraints
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.distributions import FactorAnalyzers, Selected
from pyro_mixtures.distributions.logit.softmax_components import SoftmaxComponents, covariance_of
from pyro_mixtures.distributions.weights import ComponentWeights
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.protocol import Guide
from pyro_mixtures.infer.scoring.posteriors import posteriors
from pyro_mixtures.ops.lookup import count_weights
from pyro_mixtures.poutine import Posterior
from pyro_mixtures.poutine.params import handle_of, leaf_of


class Criteria(NamedTuple):
    """What a fitted mixture is compared with others by, in nats over all rows; small AIC, BIC and ICL are good."""

    log_likelihood: float
    parameters: int  # free ones, p
    rows: float  # n, by their weights
    aic: float  # 2 p - 2 log L
    bic: float  # p log n - 2 log L
    icl: float  # BIC + 2 entropy
    entropy: float  # of the rows' responsibilities: nearly zero where components are apart
    shares: Tensor  # (C,) mean responsibilities

    def __str__(self) -> str:
        lines = [
            f"log likelihood {self.log_likelihood:14.3f}   rows {self.rows:g}, free parameters {self.parameters}",
            f"AIC            {self.aic:14.3f}",
            f"BIC            {self.bic:14.3f}",
            f"ICL            {self.icl:14.3f}   entropy {self.entropy:.3f}",
            "shares         " + " ".join(f"{share:.3f}" for share in self.shares.tolist()),
        ]
        return "\n".join(lines)


def criteria(
    model: Callable,
    *rows: Tensor,
    guide: Guide | None = None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    freeze: Iterable[str] = (),
    chunk: int | None = None,
) -> Criteria:
    r"""Information criteria of ``model`` with its present params, on all ``rows``.

    AIC and BIC as usual; ICL is BIC plus twice the entropy of the responsibilities (Biernacki,
    Celeux, Govaert, "Assessing a mixture model for clustering with the integrated completed
    likelihood", IEEE PAMI 22, 2000, in its BIC form). Free parameters are what a likelihood can
    depend on: C - 1 of a simplex or of C logits, D - 1 of a unit vector, the triangle of a Cholesky
    factor, D H - H (H - 1) / 2 of a D x H factor, which is known up to a rotation. Params that
    sites share count once; constants, frozen params and those with ``requires_grad=False`` not at
    all. (Logits that a program gives to a stock ``Categorical`` count as C.) A ridge penalty is
    part of the log likelihood, and does not lower p. Coefficients of :class:`SoftmaxComponents`
    without ridge count as many as their items' features have independent directions; those of
    :class:`ChoiceLogits` all, collinear attributes included: drop such attributes first.

    :param rows: the model's tensor arguments, N rows each, in chunks.
    :param guide: None sums over all C components, exactly; a truncated guide's log likelihood is a
        lower bound.
    :param site: the discrete site.
    :param given: values of the model's other latent sites, if it has any.
    :param freeze: names of params that were held fixed.
    :param chunk: rows evaluated at once.
    :raises OptionError: when ``freeze`` names no params of the model.
    :raises DataError: when the weights of all rows are zero.

    >>> from pyro_mixtures.models import GaussianMixture
    >>> model = GaussianMixture(components=2, features=3)
    >>> criteria(model, torch.randn(10, 3)).parameters
    13
    """
    totals = _Totals()
    for posterior, _ in posteriors(model, rows, guide, site, given, chunk):
        totals.add(posterior)
    batches = Batches(rows)
    if not totals.rows > 0:
        raise DataError(
            f"the weights of the {batches.rows} rows have the sum {totals.rows:g}: give rows that count"
        )
    first = tuple(tensor[:1] for tensor in batches.tensors)
    program = _Program(model, first, frozenset(freeze))
    return totals.criteria(program.free_parameters(), program.components(site))


class _Totals:
    """Sums over chunks of rows."""

    def __init__(self) -> None:
        self.log_likelihood = self.entropy = self.rows = 0.0
        self.won: list[tuple[Tensor, Tensor]] = []

    def add(self, posterior: Posterior) -> None:
        weight, q = posterior.row_weight.double(), posterior.probs.double()
        self.rows += float(weight.sum())
        self.log_likelihood += float(posterior.free_energy())
        surprise = torch.where(q > 0, -q * posterior.log_prob, 0.0).sum(0)
        self.entropy += float(torch.where(weight > 0, weight * surprise, 0.0).sum())
        shares = torch.where(weight > 0, weight * q, 0.0)
        numbers, where = (
            posterior.candidates.expand(shares.shape).reshape(-1).long().unique(return_inverse=True)
        )
        self.won.append((numbers, count_weights(where, shares.reshape(-1), len(numbers))))

    def criteria(self, parameters: int, components: int) -> Criteria:
        numbers, counts = (torch.cat(parts) for parts in zip(*self.won, strict=True))
        total = count_weights(numbers, counts, components)
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
            shares=total / total.sum(),
        )


class _Program:
    """One run of the program: its params, and the families that take them."""

    def __init__(self, model: Callable, rows: tuple, freeze: frozenset[str]):
        with pyro.poutine.block(), torch.no_grad():
            self.nodes: dict[str, Any] = dict(pyro.poutine.trace(model).get_trace(*rows).nodes)
        handles = [handle_of(node) for node in self.nodes.values() if node["type"] == "param"]
        unknown = sorted(freeze - {h.name for h in handles})
        if unknown:
            raise OptionError(
                f"freeze={unknown}: the model has no such params; it has {[h.name for h in handles]}"
            )
        # By tensor: names that share one count once.
        self.free = {
            id(h.leaf): h for h in handles if h.leaf.requires_grad and h.name not in freeze
        }

    def components(self, site: str) -> int:
        """C."""
        return len(self.nodes[site]["fn"].enumerate_support(expand=False))

    def free_parameters(self) -> int:
        """Numbers that the likelihood can depend on."""
        stated = sum(_free_numbers(h.constraint, h.leaf) for h in self.free.values())
        families = (_family(node["fn"]) for node in self.nodes.values() if node["type"] == "sample")
        return stated - sum(_redundant(family, self._is_free) for family in families)

    def _is_free(self, tensor: Tensor) -> bool:
        return id(leaf_of(tensor)) in self.free


def _family(fn: Any) -> Any:
    fn = fn.base_dist if isinstance(fn, MaskedDistribution) else fn
    return fn.family if isinstance(fn, Selected) else fn


@singledispatch
def _redundant(family: Any, is_free: Callable[[Tensor], bool]) -> int:
    """Directions in which the family's free arguments can move and leave every density alone."""
    return 0


@_redundant.register
def _(family: ComponentWeights, is_free: Callable[[Tensor], bool]) -> int:
    return family.redundant if all(map(is_free, family.arguments.values())) else 0


@_redundant.register
def _(family: FactorAnalyzers, is_free: Callable[[Tensor], bool]) -> int:
    features, factors = family.factor.shape[-2:]
    # Rotations of H factors; of more than D only D matter.
    rotations = (
        factors * (factors - 1) // 2
        if factors <= features
        else factors * features - _triangle(features)
    )
    return math.prod(family.factor.shape[:-2]) * rotations if is_free(family.factor) else 0


@_redundant.register
def _(family: SoftmaxComponents, is_free: Callable[[Tensor], bool]) -> int:
    if family.ridge or not is_free(family.theta):
        return 0
    spread = covariance_of(family.features)
    # The trace of the projector on directions in which items differ.
    rank = round(float((spread.covariance * spread.inverse()).sum()))
    return family.theta[..., 0].numel() * (family.features.shape[1] - rank)


def _free_numbers(constraint: Any, leaf: Tensor) -> int:
    """Numbers that a param under this constraint is free to choose."""
    if isinstance(constraint, constraints.independent):
        return _free_numbers(constraint.base_constraint, leaf)
    last = leaf.shape[-1] if leaf.dim() else 1
    of_event = _FREE.get(type(constraint))
    if of_event is None:
        return leaf.numel()
    event, free = of_event(last)
    return leaf.numel() // event * free


def _triangle(size: int) -> int:
    return size * (size + 1) // 2


# Numbers of one event of last dimension n, and how many of them are free.
_FREE: dict[type, Callable[[int], tuple[int, int]]] = {
    type(constraints.simplex): lambda n: (n, n - 1),
    type(constraints.sphere): lambda n: (n, n - 1),
    type(constraints.lower_cholesky): lambda n: (n * n, _triangle(n)),
    type(constraints.positive_definite): lambda n: (n * n, _triangle(n)),
    type(constraints.softplus_lower_cholesky): lambda n: (n * n, _triangle(n)),
    type(constraints.unit_lower_cholesky): lambda n: (n * n, _triangle(n) - n),
}
