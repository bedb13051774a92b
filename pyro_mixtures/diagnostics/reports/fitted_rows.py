"""The rows of a fit as its guide holds them: labels, evidence, entropy; nothing of the fit changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyro_mixtures.diagnostics.reports.point import Point, point_of
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer.em.batching import plan
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.infer.experts.labels import Partition
from pyro_mixtures.poutine import Posterior, ReuseMessenger


class FittedRows(NamedTuple):
    """N rows under q(z), on the CPU."""

    labels: Tensor  # (N,) int64, each row's most probable component; -1 where masked
    log_evidence: (
        Tensor  # (N,) float64, log of the joints that q sums over, in nats; NaN where masked
    )
    entropy: Tensor  # (N,) float64, of the responsibilities in nats; NaN where masked
    point: Point  # of the model's other latent sites that this is for

    @property
    def known(self) -> Tensor:
        """Numbers of the rows that have a component: masked ones have none."""
        return (self.labels >= 0).nonzero()[:, 0]


def fitted_rows(
    fit: Fit, *rows: Tensor, batch_size: int | None = None, seed: int = 0
) -> FittedRows:
    """One pass of the fit's guide over the ``rows`` that it was fitted to, without searching or moving any.

    :param batch_size: rows a call, as in :func:`~pyro_mixtures.infer.em.fit`.
    :param seed: of the model's other latent sites, where their guide has no median.
    :raises OptionError: for a guide of several partitions side by side.
    :raises PartitionError: when the guide holds the state of another number of rows.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.infer import EM, fit
    >>> from pyro_mixtures.models import GaussianMixture
    >>> model = GaussianMixture(components=2, features=3)
    >>> found = fit(EM(model, FullPartition(model, components=2)), x := torch.randn(50, 3), progress=False)
    >>> fitted_rows(found, x).labels.shape
    torch.Size([50])
    """
    guide = fit.guide
    if isinstance(guide, Partition) and guide.labels is not None and guide.labels.dim() > 1:
        raise OptionError(
            f"the guide holds {len(guide.labels)} partitions side by side: give the fit of one of them"
        )
    batches, _ = plan(fit.inference, rows, batch_size)
    found: FittedRows | None = None
    with params_of(fit), _unchanged(guide), torch.no_grad():
        point = point_of(fit, batches.tensors, seed)
        for batch in batches.in_order():
            posterior = guide.posterior(*batch.args, **batch.kwargs, given=point.values)
            found = _empty(batches.rows, point) if found is None else found
            _fill(found, posterior, batch.rows)
    assert found is not None
    return found


@contextmanager
def params_of(fit: Fit) -> Iterator[None]:
    """Pyro's store with the params of this fit, whatever other fits have left there under their names.

    A ``PyroModule`` that runs while the store has its names takes their values for good. A plain
    program has no params but those of the store.
    """
    store = pyro.get_param_store()
    state = store.get_state()
    own: dict[str, Tensor] = {}
    for program in (fit.model, fit.guide):
        if isinstance(program, nn.Module):
            own |= {
                name.removesuffix("_unconstrained"): leaf
                for name, leaf in program.named_parameters()
            }
    foreign = {
        name for name, leaf in state["params"].items() if name in own and own[name] is not leaf
    }
    kept: Any = {kind: {n: v for n, v in state[kind].items() if n not in foreign} for kind in state}  # type: ignore
    with store.scope(kept):
        yield


@contextmanager
def _unchanged(guide: Any) -> Iterator[None]:
    """The guide in evaluation mode, sharing factorisations; its counts are put back."""
    training, evaluations = guide.training, guide.evaluations
    guide.eval()
    guide.reuse = ReuseMessenger()
    try:
        yield
    finally:
        guide.train(training)
        guide.reuse, guide.evaluations = None, evaluations


def _empty(rows: int, point: Point) -> FittedRows:
    nothing = torch.full((rows,), torch.nan, dtype=torch.float64, device="cpu")
    return FittedRows(
        torch.full((rows,), -1, dtype=torch.int64, device="cpu"), nothing, nothing.clone(), point
    )


def _fill(found: FittedRows, posterior: Posterior, rows: int) -> None:
    if len(posterior.index) != rows:
        raise ModelError(
            f"the model took {len(posterior.index)} of {rows} rows: open its plate without subsample_size for a report"
        )
    seen = posterior.row_weight > 0
    index = posterior.index[seen].to("cpu")
    q = posterior.probs.double()
    surprise = torch.where(q > 0, -q * posterior.log_prob.double(), 0.0).sum(0)
    found.labels[index] = posterior.winner[seen].to("cpu", torch.int64)
    found.log_evidence[index] = posterior.log_evidence[seen].to("cpu", torch.float64)
    found.entropy[index] = surprise[seen].to("cpu")
