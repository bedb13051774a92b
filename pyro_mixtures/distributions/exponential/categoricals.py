"""Categorical components: labels, words or other discrete observations."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.components import Components, check_floating
from pyro_mixtures.distributions.statistics import LabelCounts
from pyro_mixtures.errors import DataError


class Categoricals(Components):
    """C categorical distributions over L labels.

    :param probs: (C, L), rows on the simplex.
    :raises DataError: for labels that are not in [0, L).

    >>> categoricals = Categoricals(torch.tensor([[0.5, 0.5], [0.1, 0.9]]))
    >>> categoricals[torch.tensor([1, 0])].log_prob(torch.tensor([1, 1])).exp()
    tensor([0.9000, 0.5000])
    """

    arg_constraints = {"probs": constraints.simplex}
    argument_names = ("probs",)
    has_rsample = False

    def __init__(self, probs: Tensor, *, validate_args: bool | None = None):
        check_floating("Categoricals", probs)
        self.probs = probs
        super().__init__(probs.shape[:-1], torch.Size(), validate_args=validate_args)

    @property
    def labels(self) -> int:
        """L, the number of labels."""
        return self.probs.shape[-1]

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, self.labels - 1)

    @property
    def min_rows(self) -> int:
        return 1

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        label = self._labels(value).expand(index.shape)
        tiny = torch.finfo(self.probs.dtype).tiny
        log_probs = torch.where(self.probs > 0, self.probs.clamp_min(tiny).log(), -torch.inf)
        table = log_probs.reshape(-1)
        # Padding, index -1, reads the last component's entries, which the caller ignores.
        return table[index * self.labels + label]

    def sample_at(self, index: Tensor) -> Tensor:
        probs = self.probs.reshape(-1, self.labels)[index.reshape(-1)]
        return probs.multinomial(1).reshape(index.shape)

    def mean_at(self, index: Tensor) -> Tensor:
        numbers = torch.arange(self.labels, dtype=self.probs.dtype, device=self.probs.device)
        return (self.probs.reshape(-1, self.labels) @ numbers)[index]

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> LabelCounts:
        cell = index * self.labels + self._labels(value).expand(index.shape)
        # float32 stops counting ones at 2^24.
        counts = torch.zeros(self.probs.numel(), dtype=torch.float64, device=self.probs.device)
        valid = index >= 0
        counts.index_add_(0, cell[valid], weight[valid].double())
        return LabelCounts(counts.reshape(-1, self.labels))

    def maximizers(
        self, statistics: LabelCounts, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        total = statistics.counts.sum(-1, keepdim=True)
        new = torch.where(total > 0, statistics.counts / total, self.probs.reshape(-1, self.labels))
        return {"probs": new.to(self.probs.dtype).reshape(self.probs.shape)}

    def _labels(self, value: Tensor) -> Tensor:
        label = value.long()
        if label.numel() and not (int(label.min()) >= 0 and int(label.max()) < self.labels):
            raise DataError(
                f"labels lie in [{int(label.min())}, {int(label.max())}], not in "
                f"[0, {self.labels}): number them from 0"
            )
        return label
