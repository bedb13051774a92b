"""Leave-one-out gains as an effect handler: what rows add to the minimal loss of their cluster."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.distributions import Components, Selected
from pyro_mixtures.errors import ClosedFormError, OptionError
from pyro_mixtures.poutine.joint import own_scale
from pyro_mixtures.poutine.structure import ProgramStructure


class LeaveOneOutMessenger(Messenger):
    """Sums each row's leave-one-out gain in its own cluster over the observed sites.

    The gain of a row in cluster S is f(S) - f(S without it), with f the minimal loss. The row
    counts in f as often as its weight says (``poutine.scale``), and the gain is divided by the
    row's weight at z, so that it can be compared with the row's log joints, in which z has weight
    one. Rows of weight zero have NaN; the limit of their gain is their loss. Where a mask hides a
    row's outcome, its site adds nothing.

    After a run ``total`` (B,) holds the gains, NaN for rows outside all clusters, and ``alone``
    (C, B), if requested, the losses of clusters that consist of one row.

    :param structure: structure of the program.
    :param statistics: by site, of the partition ``labels``. Sites that are trained by gradients
        have none; their clusters then consist of the rows of the run, which must be all rows.
    :param labels: (N,) cluster of each row, -1 outside all clusters.
    :param alone: whether to collect the losses of clusters of one row.
    :raises ClosedFormError: at a site whose family does not implement leave-one-out gains.
    :raises OptionError: when a site without statistics sees only some of the rows.
    """

    def __init__(
        self,
        structure: ProgramStructure,
        statistics: Mapping[str, Any],
        labels: Tensor,
        alone: bool,
    ):
        super().__init__()
        self.structure, self.statistics = structure, statistics
        self.labels, self.with_alone = labels, alone

    def __enter__(self) -> "LeaveOneOutMessenger":
        self.total: Any = 0.0
        self.alone: Any = 0.0 if self.with_alone else None
        self._index: Tensor | None = None
        self._size = 0
        self._z_scale: Tensor | float = 1.0
        super().__enter__()
        return self

    def _pyro_post_sample(self, msg: Any) -> None:
        name, structure = msg["name"], self.structure
        if name == structure.plate and site_is_subsample(msg):
            self._index = msg["value"]
        elif name == structure.site:
            frame = next(f for f in msg["cond_indep_stack"] if f.name == structure.plate)
            self._size, self._z_scale = frame.full_size or frame.size, own_scale(msg, structure)
        elif name in structure.observed:
            self._add(name, msg["fn"], msg["value"], msg["mask"], own_scale(msg, structure))

    def _add(
        self, name: str, fn: Any, value: Tensor, mask: Tensor | bool | None, scale: Tensor | float
    ) -> None:
        if isinstance(fn, MaskedDistribution):
            fn, mask = fn.base_dist, fn._mask if mask is None else fn._mask & mask
        family = fn.family if isinstance(fn, Selected) else None
        if family is None or not family.leaves_one_out:
            raise ClosedFormError(
                f"the family of site {name!r} does not implement leave-one-out gains: "
                "use score='loss', or a family that implements them"
            )
        assert self._index is not None
        labels = self.labels[self._index.to("cpu")].to(value.device).long()
        unmasked = torch.as_tensor(True if mask is None else mask, device=value.device)
        z_weight, weight = (_per_row(s, labels) for s in (self._z_scale, scale))
        # As in the sums of EM, rows of weight zero at z have weight zero at all sites.
        counted = (labels >= 0) & (z_weight > 0)
        weight = torch.where(unmasked & counted, weight, 0.0)
        statistics = self._statistics_of(
            name, family, torch.where(weight > 0, labels, -1), value, weight
        )
        gain = family.leave_one_out_at(statistics, labels.clamp_min(0), value, weight)
        gain = torch.where(weight > 0, gain / z_weight.to(gain), 0.0)
        self.total = self.total + torch.where(counted, gain, torch.nan)
        if self.with_alone:
            all_components = (
                torch.arange(family.components, device=value.device)
                .unsqueeze(-1)
                .expand(-1, len(labels))
            )
            alone = family.alone_at(all_components, value)
            alone = torch.where(weight > 0, alone * (weight / z_weight).to(alone), 0.0)
            self.alone = self.alone + alone

    def _statistics_of(
        self, name: str, family: Components, labels: Tensor, value: Tensor, weight: Tensor
    ) -> Any:
        if name in self.statistics:
            return self.statistics[name]
        if len(labels) != self._size:
            raise OptionError(
                f"site {name!r} has no sufficient statistics: its leave-one-out gains need all "
                f"{self._size} rows in one call, not {len(labels)}; leave batch_size= out, or use "
                "score='loss'"
            )
        return family.partition_statistics_at(labels, value, weight)


def _per_row(scale: Tensor | float, rows: Tensor) -> Tensor:
    """Expand a scale to (B,), on the device of ``rows`` (B,)."""
    if not isinstance(scale, Tensor):
        scale = torch.tensor(scale, dtype=torch.float64, device=rows.device)
    return scale.reshape(-1).expand(len(rows))
