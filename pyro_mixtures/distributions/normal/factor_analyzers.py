r"""Factor analyzers: normal components with low-rank plus diagonal covariance matrices."""

import math
from typing import cast

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.components import batch_shape_of, check_floating
from pyro_mixtures.distributions.normal.closed_form import empty_to_one, pool, update_loc
from pyro_mixtures.distributions.normal.floors import given_floor
from pyro_mixtures.distributions.normal.quadratic_components import QuadraticComponents
from pyro_mixtures.distributions.statistics import FactorStatistics, NormalStatistics
from pyro_mixtures.errors import ClosedFormError, OptionError
from pyro_mixtures.ops import Quadratic
from pyro_mixtures.ops.lowrank import (
    LowRank,
    factorize,
    posterior_covariance,
    posterior_mean,
    solve_small,
)
from pyro_mixtures.ops.small import inner, mix, residual

# With fewer expected rows than this a component's sums have lost all digits, in float64 too.
_EMPTY = 1e-30


class FactorAnalyzers(QuadraticComponents):
    r"""Factor analyzers ``x = loc + factor f + e``, ``f ~ N(0, I_H)``, ``e ~ N(0, diag(noise))``.

    Densities are evaluated by the Woodbury identity, O(D H) operations per pair. The M-step is that
    of Ghahramani & Hinton, "The EM algorithm for mixtures of factor analyzers", CRG-TR-96-1 (1996).

    :param loc: means (C, D).
    :param factor: loadings (C, D, H); H may be zero.
    :param noise: *variances* :math:`\psi` (C, D), or (C, 1), (D,) or (1,) where features or
        components share them.
    :raises OptionError: when the shapes do not agree.

    >>> analyzers = FactorAnalyzers(torch.zeros(3, 4), torch.ones(3, 4, 1), torch.ones(3, 4))
    >>> analyzers[torch.tensor([0, 2])].log_prob(torch.ones(2, 4))
    tensor([-4.8805, -4.8805])
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "factor": constraints.independent(constraints.real, 2),
        "noise": constraints.independent(constraints.positive, 1),
    }
    argument_names = ("loc", "factor", "noise")
    support = constraints.real_vector
    _low: LowRank | None = None

    def __init__(
        self, loc: Tensor, factor: Tensor, noise: Tensor, *, validate_args: bool | None = None
    ):
        check_floating("FactorAnalyzers", loc, factor, noise)
        features = loc.shape[-1]
        if (
            factor.dim() < 2
            or factor.shape[-2] != features
            or noise.dim() < 1
            or noise.shape[-1] not in (1, features)
        ):
            raise OptionError(
                f"factor {tuple(factor.shape)} must end in (D, H) and noise {tuple(noise.shape)} "
                f"in (D,) or (1,), with D = {features} as loc {tuple(loc.shape)} has it"
            )
        self.loc, self.factor, self.noise = loc, factor, noise
        batch = batch_shape_of(loc.shape[:-1], factor.shape[:-2], noise.shape[:-1])
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    @property
    def min_rows(self) -> int:
        return self.factor.shape[-1] + 2

    def redundant(self, free: frozenset[str]) -> int:
        if "factor" not in free:
            return 0
        *batch, features, factors = self.factor.shape
        # Rotations of H factors; of more than D factors only D have an effect.
        if factors <= features:
            rotations = factors * (factors - 1) // 2
        else:
            rotations = factors * features - features * (features + 1) // 2
        return math.prod(batch) * rotations

    def _noise(self) -> Tensor:
        return self.noise.expand(self.batch_shape + self.event_shape).reshape(
            self.batch_shape.numel(), self.event_shape[0]
        )

    def low_rank(self) -> LowRank:
        """Return factorized covariances, batch dimensions flattened.

        They are computed once if no gradient is recorded.
        """
        if torch.is_grad_enabled() and (self.factor.requires_grad or self.noise.requires_grad):
            return factorize(self.flat(self.factor, 2), self._noise())
        if self._low is None:
            with torch.no_grad():
                self._low = factorize(self.flat(self.factor, 2), self._noise())
        return self._low

    def subset(self, block: slice) -> "FactorAnalyzers":
        subset = cast(FactorAnalyzers, super().subset(block))
        subset._low = None if self._low is None else self._low.select(block)
        return subset

    def make_kernel(self) -> Quadratic:
        low = self.low_rank()
        offset = low.logdet + self.event_shape[0] * math.log(2 * math.pi)
        return Quadratic(self.flat(self.loc, 1), low.precision, low.projection, offset, -1.0)

    def split_loc(self, component: int, row: Tensor) -> Tensor:
        """Return a mean moved toward ``row`` by what the component's factors explain of it."""
        if not self.factor.shape[-1]:
            return super().split_loc(component, row)
        index = torch.tensor([component], device=row.device)
        return self.signal_at(index, row.unsqueeze(0), None)[0]

    def sample_at(self, index: Tensor) -> Tensor:
        loc = self.flat(self.loc, 1)[index]
        factors = torch.randn(
            *index.shape, self.factor.shape[-1], 1, dtype=loc.dtype, device=loc.device
        )
        signal = (self.flat(self.factor, 2)[index] @ factors).squeeze(-1)
        return loc + signal + self._noise()[index].sqrt() * torch.randn_like(loc)

    def finish(self, sums: NormalStatistics | FactorStatistics) -> FactorStatistics:
        """Add the moments of the factors.

        With V the kernel's projection, E f = L^-T V d and Cov f = L^-T L^-1.
        """
        if isinstance(sums, FactorStatistics):
            return sums
        low = self.low_rank()
        unmix = low.inverse_chol.mT
        mean = (unmix @ inner(low.projection, sums.first.unsqueeze(-2))).squeeze(-1)
        along = unmix @ inner(sums.outer, low.projection) @ unmix.mT
        outer = along + sums.count.view(-1, 1, 1) * posterior_covariance(low)
        cross = mix(unmix, sums.outer)
        return FactorStatistics(
            sums.center, sums.count, sums.first, sums.second, mean, outer, cross
        )

    def maximizers(
        self, statistics: FactorStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        s, rank = statistics, self.factor.shape[-1]
        gram, target = _regression(s)
        coefficients = self._regress(s, gram, target, free)
        out = {}
        if "loc" in free:
            out["loc"] = s.center + coefficients[:, rank]
        if "factor" in free:
            out["factor"] = coefficients[:, :rank].mT
        if "noise" in free:
            left = residual(gram, coefficients, target, s.second)
            variance = pool(left, s.count.unsqueeze(-1), self.noise.shape)
            floor = given_floor(floor, s.center)
            smallest = floor.mean(-1, keepdim=True) if self.noise.shape[-1] == 1 else floor
            out["noise"] = torch.maximum(variance, smallest.expand_as(variance))
        return out

    def _regress(
        self, s: FactorStatistics, gram: Tensor, target: Tensor, free: frozenset[str]
    ) -> Tensor:
        """Regress the rows on [factors, 1]: coefficients (C, H + 1, D), best where free."""
        rank = self.factor.shape[-1]
        if "factor" in free and self.factor.shape != (*s.center.shape, rank):
            raise ClosedFormError(
                f"factor {tuple(self.factor.shape)} is shared by components, which has no closed "
                "form: give each component its own, or use SVI"
            )
        # The statistics of empty components are almost zero; the identity keeps their systems
        # regular.
        empty = (s.count < _EMPTY).view(-1, 1, 1) * torch.eye(
            rank + 1, dtype=gram.dtype, device=gram.device
        )
        if {"factor", "loc"} <= free:
            update_loc(self, s.first, s.center, free)  # refuses a mean that components share
            return solve_small(gram + empty, target)
        if "factor" in free:
            shift = update_loc(self, s.first, s.center, free).unsqueeze(-2)
            explained = target[:, :rank] - gram[:, :rank, rank:] * shift
            factor = solve_small((gram + empty)[:, :rank, :rank], explained)
        else:
            factor = self.flat(self.factor, 2).mT
            explained = s.first - (gram[:, rank:, :rank] @ factor).squeeze(-2)
            shift = update_loc(
                self, explained / empty_to_one(s.count).unsqueeze(-1), s.center, free
            ).unsqueeze(-2)
        return torch.cat([factor, shift], -2)

    def signal_at(self, index: Tensor, value: Tensor, noise: Tensor | None) -> Tensor:
        r"""Return the posterior mean of the noise-free row.

        If ``noise`` is None, all of :math:`\psi` is noise: ``loc + A E[f|x]``. Otherwise ``noise``
        (D,) is the variance of the measurement noise, and the rest of :math:`\psi` is signal.
        """
        low = self.low_rank()
        loc, factor = self.flat(self.loc, 1)[index], self.flat(self.factor, 2)[index]
        diff = value - loc
        explained = (factor @ posterior_mean(low, index, diff.unsqueeze(-1))).squeeze(-1)
        if noise is None:
            return loc + explained
        own = self._noise()[index]
        return loc + explained + (own - noise).clamp_min(0) / own * (diff - explained)

    def marginal(self, features: Tensor) -> "FactorAnalyzers":
        """Return the same components for some of the ``features`` only."""
        noise = self.noise.expand(self.noise.shape[:-1] + self.event_shape)
        return FactorAnalyzers(
            self.loc[..., features],
            self.factor[..., features, :],
            noise[..., features],
            validate_args=False,
        )

    def conditional_mean_at(self, index: Tensor, seen: Tensor, features: Tensor) -> Tensor:
        """Return the mean of the whole row given some features.

        Where features are given, the result is the model's fit to them, not ``seen`` itself.
        """
        marginal = self.marginal(features)
        loc, factor = self.flat(self.loc, 1)[index], self.flat(self.factor, 2)[index]
        diff = (seen - loc[..., features]).unsqueeze(-1)
        return loc + (factor @ posterior_mean(marginal.low_rank(), index, diff)).squeeze(-1)


def _regression(s: FactorStatistics) -> tuple[Tensor, Tensor]:
    """Normal equations of the rows on [factors, 1].

    Returns expected moments (C, H + 1, H + 1) and products with the rows (C, H + 1, D).
    """
    mean = s.factor_mean.unsqueeze(-1)
    top = torch.cat([s.factor_outer, mean], -1)
    bottom = torch.cat([mean.mT, s.count.view(-1, 1, 1)], -1)
    return torch.cat([top, bottom], -2), torch.cat([s.cross, s.first.unsqueeze(-2)], -2)
