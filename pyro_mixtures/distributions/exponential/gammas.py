"""Gamma components of known concentration, by their means."""

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.components import match_dtype
from pyro_mixtures.distributions.exponential.bregman import MeanStatistics
from pyro_mixtures.distributions.exponential.exponential_families import Exponentials
from pyro_mixtures.distributions.leave_one_out.leaving_out import leaving
from pyro_mixtures.distributions.normal.closed_form import empty_to_one
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError
from pyro_mixtures.ops.bilinear import pair_products
from pyro_mixtures.ops.lookup import take


class Gammas(Exponentials):
    r"""Independent gamma features of ``mean`` (C, D), positive, and known ``concentration``.

    With concentration a and mean m, the rate is a / m, and the density of one feature is

    .. math:: \log p(x) = a \log \tfrac{a}{m} - \log \Gamma(a) + (a - 1) \log x - \tfrac{a x}{m}.

    The maximizing mean does not depend on a: it is that of :class:`Exponentials`, the special case
    a = 1. The concentration itself has no closed-form maximizer, and stays as it is.

    Rows (N, D) are positive.

    :param mean: (C, D).
    :param concentration: a number, or (D,), or (C, D).
    :raises OptionError: when the concentration does not broadcast to (C, D).

    >>> gammas = Gammas(torch.tensor([[1.0, 2.0], [3.0, 3.0]]), 2.0)
    >>> gammas[torch.tensor([0])].log_prob(torch.ones(1, 2)).exp()
    tensor([0.1991])
    """

    arg_constraints = {
        "mean": constraints.independent(constraints.positive, 1),
        "concentration": constraints.independent(constraints.positive, 1),
    }
    argument_names: tuple[str, ...] = ("mean", "concentration")
    support = constraints.independent(constraints.positive, 1)
    has_rsample = True

    def __init__(
        self, mean: Tensor, concentration: Tensor | float, *, validate_args: bool | None = None
    ):
        if not isinstance(concentration, Tensor):
            concentration = mean.new_tensor(float(concentration))
        if not concentration.dim():
            concentration = concentration.reshape(1)
        try:
            fits = torch.broadcast_shapes(concentration.shape, mean.shape) == mean.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise OptionError(
                f"concentration {tuple(concentration.shape)} does not broadcast to the means' "
                f"{tuple(mean.shape)}: pass a number, (D,) or (C, D)"
            )
        self.concentration = concentration
        super().__init__(mean, validate_args=validate_args)

    def _flat_concentration(self) -> Tensor:
        """Return the concentrations of all components and features, (C, D)."""
        return self.concentration.expand(self.mean.shape).reshape(-1, self.mean.shape[-1])

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        # Pairs are sorted outside torch, which a trace cannot see.
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            return self._gathered_log_prob(index, value)
        x, pairs = self._pairs(value, index)
        natural, offset = self._linear_form()
        products = pair_products(_features(x), natural.unsqueeze(1), pairs).squeeze(-1)
        # Where all rows have the same components, so is their offset.
        z = pairs.z[:, :1] if pairs.all_pairs else pairs.z
        return (products + take(offset, z)).reshape(index.shape)

    def _gathered_log_prob(self, index: Tensor, value: Tensor) -> Tensor:
        x, z = match_dtype(value, self.mean), index.clamp_min(0)
        natural, offset = self._linear_form()
        log_prob = (natural[z] * _features(x)).sum(-1) + offset[z]
        return torch.where(index < 0, -torch.inf, log_prob)

    def _linear_form(self) -> tuple[Tensor, Tensor]:
        """Return coefficients (C, 2 D) of x and log x, and offsets (C,), of the log density."""
        shape, rate = (
            self._flat_concentration(),
            self._flat_concentration() / self.flat(self.mean, 1),
        )
        offset = (shape * rate.log() - shape.lgamma()).sum(-1)
        return torch.cat([-rate, shape - 1], -1), offset

    def sample_at(self, index: Tensor) -> Tensor:
        shape = self._flat_concentration()[index]
        return torch._standard_gamma(shape) * self.mean_at(index) / shape

    def maximizers(
        self, statistics: MeanStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        """Return each component's mean row, kept positive by ``floor``."""
        if "concentration" in free:
            raise ClosedFormError(
                "the concentration of Gammas has no closed form: make it a constant, freeze it, or "
                "use SVI"
            )
        return super().maximizers(statistics, free, floor)

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Return the minimal loss (*index.shape) of a cluster of one row, whose mean is the row."""
        shape, x = self._flat_concentration(), self._rows(value)
        constant = (shape - shape * shape.log() + shape.lgamma()).sum(-1)
        return constant[index] + x.log().sum(-1)

    def leave_one_out_at(
        self, statistics: MeanStatistics, index: Tensor, value: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        x, shape = self._rows(value).double(), self._flat_concentration().double()[index]
        means = statistics.first / empty_to_one(statistics.count).unsqueeze(-1)
        mean = means[index]
        row = leaving(statistics.count, index, weight)
        relative = row.ratio.unsqueeze(-1) * (mean - x) / mean
        gap = shape * (relative - torch.log1p(relative))
        loss = shape * (x / mean + (mean / shape).log()) + shape.lgamma() - (shape - 1) * x.log()
        gain = (row.weight.unsqueeze(-1) * loss + row.rest.unsqueeze(-1) * gap).sum(-1)
        return gain.to(self.mean.dtype)

    def _rows(self, value: Tensor) -> Tensor:
        x = match_dtype(value, self.mean)
        if bool((x <= 0).any()):
            raise DataError(
                f"rows reach down to {float(x.min())}, but gamma distributions have positive rows: "
                "remove such rows, or use Exponentials"
            )
        return x


def _features(x: Tensor) -> Tensor:
    """Return what the log density is linear in, (..., 2 D)."""
    return torch.cat([x, x.log()], -1)
