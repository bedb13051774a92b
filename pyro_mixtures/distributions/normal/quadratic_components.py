"""The base class of families whose log density is a quadratic form of the row."""

from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor

from pyro_mixtures.distributions.components import Components, match_dtype
from pyro_mixtures.distributions.normal.floors import floors
from pyro_mixtures.distributions.statistics import NormalStatistics
from pyro_mixtures.ops import Moments, Pairs, Quadratic, pair_log_density, pair_moments


class QuadraticComponents(Components):
    """A family whose log density is a quadratic form of the row, evaluated by pair kernels.

    A family defines the kernel's arguments (``make_kernel``), ``sample_at``, ``min_rows`` and
    ``maximizers``.
    """

    has_rsample = True
    location = "loc"
    pads = True  # the kernels return -inf for padding
    on_kernels = True
    loc: Tensor
    _kernel: Quadratic | None = None

    @abstractmethod
    def make_kernel(self) -> Quadratic:
        """Return the kernel's arguments, batch dimensions flattened, differentiably."""

    def kernel(self) -> Quadratic:
        """Return the kernel's arguments; they are computed once if no gradient is recorded."""
        if torch.is_grad_enabled() and any(
            argument.requires_grad for argument in self.arguments.values()
        ):
            return self.make_kernel()
        if self._kernel is None:
            with torch.no_grad():
                self._kernel = self.make_kernel()
        return self._kernel

    def moment_projection(self) -> Tensor:
        """Return P (C, R, D) of the moments that the M-step needs; the kernel's by default."""
        return self.kernel().projection

    def subset(self, block: slice) -> "QuadraticComponents":
        subset = cast(QuadraticComponents, super().subset(block))
        if self._kernel is not None:
            kernel = self._kernel
            subset._kernel = Quadratic(
                kernel.loc[block],
                kernel.precision[block],
                kernel.projection[block],
                kernel.offset[block],
                kernel.sign,
            )
        return subset

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        # Pairs are sorted outside torch, which a trace cannot record.
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            return self._gathered_log_prob(index, value)
        x, pairs = self._pairs(value, index)
        return pair_log_density(x, self.kernel(), pairs).reshape(index.shape)

    def _gathered_log_prob(self, index: Tensor, value: Tensor) -> Tensor:
        """The kernel's formula by plain torch indexing, which is slower and can be traced."""
        kernel, c = self.kernel(), index.clamp_min(0)
        diff = match_dtype(value, self.loc) - kernel.loc[c]
        projected = (kernel.projection[c] @ diff.unsqueeze(-1)).squeeze(-1)
        scaled = (kernel.precision[c] * diff.square()).sum(-1)
        total = scaled + kernel.sign * projected.square().sum(-1)
        return torch.where(index < 0, -torch.inf, -0.5 * (total + kernel.offset[c]))

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> NormalStatistics:
        return self._moments(index, value, weight, None)

    def add_statistics_at(
        self, sums: NormalStatistics, index: Tensor, value: Tensor, weight: Tensor
    ) -> NormalStatistics:
        """Add to ``sums`` in place, so that no second copy of large moments is made."""
        return self._moments(index, value, weight, Moments(*sums[1:]))

    def _moments(
        self, index: Tensor, value: Tensor, weight: Tensor, sums: Moments | None
    ) -> NormalStatistics:
        x, pairs = self._pairs(value, index)
        loc = self.flat(self.loc, 1)
        moments = pair_moments(x, loc, self.moment_projection(), weight.reshape(-1), pairs, sums)
        return NormalStatistics(loc, *moments)

    def split_loc(self, component: int, row: Tensor) -> Tensor:
        """Return a mean (D,) one standard deviation away from the component's, toward ``row``.

        With many features the row itself would be further from all other rows than these are from
        each other.
        """
        loc = self.flat(self.loc, 1)[component]
        return loc + (row - loc) / len(row) ** 0.5

    def floor(self, sums: NormalStatistics, fraction: float) -> Tensor:
        return floors(sums, fraction)

    def mean_at(self, index: Tensor) -> Tensor:
        return self.flat(self.loc, 1)[index]

    def _pairs(self, value: Tensor, index: Tensor) -> tuple[Tensor, Pairs]:
        """Return distinct rows (N, D), and their pairs with the components ``index``."""
        shape, components = value.shape[:-1], self.batch_shape.numel()
        # The kernels widen bytes, row by row.
        widened = value if value.dtype == torch.uint8 else match_dtype(value, self.loc)
        x = widened.reshape(shape.numel(), value.shape[-1])
        lead = index.dim() - len(shape)
        if index.shape[lead:] == shape:
            return x, Pairs(index.reshape(index.shape[:lead].numel(), len(x)), components)
        rows = torch.arange(len(x), device=x.device).reshape(shape).expand(index.shape)
        return x, Pairs(index.reshape(1, -1), components, rows.reshape(-1))
