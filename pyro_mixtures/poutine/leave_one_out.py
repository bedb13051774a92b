"""What rows add to the minimal losses of their parts, as an effect on the observed sites."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.distributions import Selected
from pyro_mixtures.errors import ClosedFormError
from pyro_mixtures.poutine.joint import own_scale
from pyro_mixtures.poutine.reading import Declaration


class LeaveOneOutMessenger(Messenger):
    """Sums over the observed sites of each row's leave-one-out gain in its own part; needs families that know theirs.

    :param statistics: by site, of the partition ``labels`` (N,).
    :param alone: whether to collect the losses of rows by themselves, too.

    Where a mask hides a row's outcome, its site adds nothing. Rows have to weigh one each.

    After a run ``total`` (B,) holds the gains and ``alone`` (C, B), if wanted, those losses.
    """

    def __init__(self, declaration: Declaration, statistics: Mapping[str, Any], labels: Tensor, alone: bool):
        super().__init__()
        self.declaration, self.statistics, self.labels, self.with_alone = declaration, statistics, labels, alone

    def __enter__(self):
        self.total: Any = 0.0
        self.alone: Any = 0.0 if self.with_alone else None
        self._index: Tensor | None = None
        return super().__enter__()

    def _pyro_post_sample(self, msg) -> None:
        if msg["name"] == self.declaration.plate and site_is_subsample(msg):
            self._index = msg["value"]
        elif msg["name"] == self.declaration.site:
            self._check_weights(msg)
        elif msg["name"] in self.declaration.observed:
            self._check_weights(msg)
            self._add(msg["name"], msg["fn"], msg["value"], msg["mask"])

    def _check_weights(self, msg) -> None:
        scale = own_scale(msg, self.declaration)
        if not bool((scale == 1).all() if isinstance(scale, Tensor) else scale == 1):
            raise ClosedFormError(
                f"site {msg['name']!r} has rows of weights other than one, which leave-one-out gains do not know: use "
                "score='loss', or leave poutine.scale out"
            )

    def _add(self, name: str, fn: Any, value: Tensor, mask: Tensor | bool | None) -> None:
        if isinstance(fn, MaskedDistribution):
            fn, mask = fn.base_dist, fn._mask if mask is None else fn._mask & mask
        seen = torch.as_tensor(True if mask is None else mask, device=value.device)
        family = fn.family if isinstance(fn, Selected) else None
        if family is None or not family.leaves_one_out:
            raise ClosedFormError(
                f"site {name!r} cannot tell what a row adds to its part: use score='loss', or a family that states it"
            )
        assert self._index is not None
        labels = self.labels[self._index.to("cpu")].to(value.device).long()
        gain = family.leave_one_out_at(self.statistics[name], labels.clamp_min(0), value)
        self.total = self.total + torch.where(labels >= 0, torch.where(seen, gain, 0.0), torch.nan)
        if self.with_alone:
            everyone = torch.arange(family.components, device=value.device).unsqueeze(-1).expand(-1, len(labels))
            self.alone = self.alone + torch.where(seen, family.alone_at(everyone, value), 0.0)
