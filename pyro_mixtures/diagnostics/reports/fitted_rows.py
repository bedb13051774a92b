"""Labels, log evidence and entropy of the rows of a fit, as its guide represents them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyro_mixtures.diagnostics.reports.latent_point import LatentPoint, latent_point
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer.em.batching import plan
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.parallel_guide import ParallelGuide
from pyro_mixtures.poutine import Posterior, ReuseMessenger


class FittedRows(NamedTuple):
    """N rows under q(z), on the CPU."""

    labels: Tensor  # (N,) int64, each row's most probable component; -1 if masked
    log_evidence: Tensor  # (N,) float64, over the components in q, in nats; NaN if masked
    entropy: Tensor  # (N,) float64, of the responsibilities in nats; NaN if masked
    point: LatentPoint  # values of the model's other latent sites at which all of this was computed

    @property
    def unmasked(self) -> Tensor:
        """Numbers of the rows that have a component, that is, are not masked."""
        return (self.labels >= 0).nonzero()[:, 0]


def fitted_rows(
    fit: Fit, *rows: Tensor, batch_size: int | None = None, seed: int = 0
) -> FittedRows:
    """Evaluate the guide of a fit on the rows that it was fitted to, without changing the fit.

    :param fit: the fit whose guide is evaluated; no candidates are searched, no rows move.
    :param rows: the rows of the fit, in their order.
    :param batch_size: number of rows per call, as in :func:`~pyro_mixtures.infer.em.fit`.
    :param seed: for a draw of the model's other latent sites if their guide has no median.
    :returns: labels, log evidence and entropy of each row.
    :raises OptionError: for a guide that holds several partitions.
    :raises PartitionError: if the guide holds the state of a different number of rows.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.infer import EM, fit
    >>> from pyro_mixtures.models import GaussianMixture
    >>> model = GaussianMixture(components=2, features=3)
    >>> guide, x = FullPartition(model, components=2), torch.randn(50, 3)
    >>> result = fit(EM(model, guide), x, progress=False)
    >>> fitted_rows(result, x).labels.shape
    torch.Size([50])
    """
    guide = fit.guide
    if isinstance(guide, ParallelGuide) and guide.labels is not None and guide.labels.dim() > 1:
        raise OptionError(
            f"the guide holds {len(guide.labels)} partitions: pass the fit of one of them"
        )
    batches, _ = plan(fit.inference, rows, batch_size)
    with params_of(fit), _unchanged(guide), torch.no_grad():
        result = _empty(batches.rows, latent_point(fit, batches.tensors, seed))
        for batch in batches.in_order():
            posterior = guide.posterior(*batch.args, **batch.kwargs, given=result.point.values)
            _write_batch(result, posterior, batch.rows)
    return result


@contextmanager
def params_of(fit: Fit) -> Iterator[None]:
    """Run with Pyro's param store holding the params of this fit, not those of other fits.

    A ``PyroModule`` permanently adopts the values that the store holds under its names when it
    runs. So params of other fits under the same names are left out of the store. A plain function
    has no other params than those of the store.
    """
    store = pyro.get_param_store()
    state: Any = store.get_state()
    module_params: dict[str, Tensor] = {}
    for program in (fit.model, fit.guide):
        if isinstance(program, nn.Module):
            module_params |= {
                name.removesuffix("_unconstrained"): leaf
                for name, leaf in program.named_parameters()
            }
    foreign = {
        name
        for name, leaf in state["params"].items()
        if name in module_params and module_params[name] is not leaf
    }
    own_state: Any = {
        kind: {name: value for name, value in entries.items() if name not in foreign}
        for kind, entries in state.items()
    }
    with store.scope(own_state):
        yield


@contextmanager
def _unchanged(guide: PartitionGuide) -> Iterator[None]:
    """Put the guide into evaluation mode, with shared factorizations, and restore its state."""
    training, evaluations = guide.training, guide.evaluations
    guide.eval()
    guide.reuse = ReuseMessenger()
    try:
        yield
    finally:
        guide.train(training)
        guide.reuse, guide.evaluations = None, evaluations


def _empty(rows: int, point: LatentPoint) -> FittedRows:
    labels = torch.full((rows,), -1, dtype=torch.int64, device="cpu")
    unknown = torch.full((rows,), torch.nan, dtype=torch.float64, device="cpu")
    return FittedRows(labels, unknown, unknown.clone(), point)


def _write_batch(result: FittedRows, posterior: Posterior, rows: int) -> None:
    if len(posterior.index) != rows:
        raise ModelError(
            f"the model took {len(posterior.index)} of {rows} rows: for a report, open its plate "
            "without subsample_size"
        )
    unmasked = posterior.row_weight > 0
    index = posterior.index[unmasked].to("cpu")
    q = posterior.probs.double()
    entropy = torch.where(q > 0, -q * posterior.log_prob.double(), 0.0).sum(0)
    result.labels[index] = posterior.winner[unmasked].to("cpu", torch.int64)
    result.log_evidence[index] = posterior.log_evidence[unmasked].to("cpu", torch.float64)
    result.entropy[index] = entropy[unmasked].to("cpu")
