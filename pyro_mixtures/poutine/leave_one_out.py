"""What rows add to the minimal losses of their parts, as an effect on the observed sites."""

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
    """Sums over the observed sites of each row's leave-one-out gain in its own part; needs families that know theirs.

    :param statistics: by site, of the partition ``labels`` (N,). Sites that are trained by
        gradients have none: their parts are then those of the rows of the run, which have to be all
        rows.
    :param alone: whether to collect the losses of rows by themselves, too.

    Gains are those of a row that counts as often as its weight says (``poutine.scale``), f(S) - f(S
    without it), over the weight that it has at z: so they compare with the row's log joints, which
    have z weigh one. Rows of weight zero have NaN; their gain in the limit is their loss. Where a
    mask hides a row's outcome, its site adds nothing.

    After a run ``total`` (B,) holds the gains, NaN for rows that were in no part, and ``alone`` (C,
    B), if wanted, the losses of rows by themselves.

    :raises ClosedFormError: at a site whose family does not know its gains.
    :raises OptionError: when a site without statistics meets some of the rows only.
    """

    def __init__(
        self,
        structure: ProgramStructure,
        statistics: Mapping[str, Any],
        labels: Tensor,
        alone: bool,
    ):
        super().__init__()
        self.structure, self.statistics, self.labels, self.with_alone = (
            structure,
            statistics,
            labels,
            alone,
        )

    def __enter__(self):
        self.total: Any = 0.0
        self.alone: Any = 0.0 if self.with_alone else None
        self._index: Tensor | None = None
        self._size = 0
        self._of_z: Tensor | float = 1.0
        return super().__enter__()

    def _pyro_post_sample(self, msg) -> None:
        d = self.structure
        if msg["name"] == d.plate and site_is_subsample(msg):
            self._index = msg["value"]
        elif msg["name"] == d.site:
            frame = next(f for f in msg["cond_indep_stack"] if f.name == d.plate)
            self._size, self._of_z = frame.full_size or frame.size, own_scale(msg, d)
        elif msg["name"] in d.observed:
            self._add(msg["name"], msg["fn"], msg["value"], msg["mask"], own_scale(msg, d))

    def _add(
        self, name: str, fn: Any, value: Tensor, mask: Tensor | bool | None, scale: Tensor | float
    ) -> None:
        if isinstance(fn, MaskedDistribution):
            fn, mask = fn.base_dist, fn._mask if mask is None else fn._mask & mask
        family = fn.family if isinstance(fn, Selected) else None
        if family is None or not family.leaves_one_out:
            raise ClosedFormError(
                f"site {name!r} cannot tell what a row adds to its part: use score='loss', or a family that states it"
            )
        assert self._index is not None
        labels = self.labels[self._index.to("cpu")].to(value.device).long()
        seen = torch.as_tensor(True if mask is None else mask, device=value.device)
        of_z, weight = (_per_row(s, labels) for s in (self._of_z, scale))
        # What EM adds up: rows that z gives no weight have none.
        weight = torch.where(seen & (labels >= 0) & (of_z > 0), weight, 0.0)
        statistics = self._statistics_of(
            name, family, torch.where(weight > 0, labels, -1), value, weight
        )
        gain = family.leave_one_out_at(statistics, labels.clamp_min(0), value, weight)
        share = torch.where(weight > 0, gain / of_z.to(gain), 0.0)
        self.total = self.total + torch.where((labels >= 0) & (of_z > 0), share, torch.nan)
        if self.with_alone:
            all_components = (
                torch.arange(family.components, device=value.device)
                .unsqueeze(-1)
                .expand(-1, len(labels))
            )
            alone = family.alone_at(all_components, value)
            self.alone = self.alone + torch.where(
                weight > 0, alone * (weight / of_z).to(alone), 0.0
            )

    def _statistics_of(
        self, name: str, family: Components, labels: Tensor, value: Tensor, weight: Tensor
    ) -> Any:
        if name in self.statistics:
            return self.statistics[name]
        if len(labels) != self._size:
            raise OptionError(
                f"leave-one-out gains at site {name!r}, which has no sufficient statistics, need all {self._size} rows "
                f"in one call, not {len(labels)}: leave batch_size= out, or use score='loss'"
            )
        return family.partition_statistics_at(labels, value, weight)


def _per_row(scale: Tensor | float, rows: Tensor) -> Tensor:
    """(B,), on the device of ``rows`` (B,)."""
    scale = (
        scale
        if isinstance(scale, Tensor)
        else torch.tensor(scale, dtype=torch.float64, device=rows.device)
    )
    return scale.reshape(-1).expand(len(rows))
