"""Normal components with full covariance matrices, by their Cholesky factors."""

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.components import batch_shape_of, check_floating
from pyro_mixtures.distributions.normal.closed_form import empty_to_one, pool, update_loc
from pyro_mixtures.distributions.normal.floors import given_floor
from pyro_mixtures.distributions.normal.quadratic_components import QuadraticComponents
from pyro_mixtures.distributions.statistics import NormalStatistics
from pyro_mixtures.errors import OptionError
from pyro_mixtures.ops import Quadratic


class FullNormals(QuadraticComponents):
    """Normal components with full covariance matrices.

    :param loc: means (C, D).
    :param scale_tril: lower Cholesky factors (C, D, D) of the covariance matrices, or (D, D) if
        components share one.
    :raises OptionError: when the shapes do not agree.

    >>> normals = FullNormals(torch.zeros(3, 2), torch.eye(2))
    >>> normals[torch.tensor([0, 2])].log_prob(torch.zeros(2, 2)).exp()
    tensor([0.1592, 0.1592])
    """

    arg_constraints = {"loc": constraints.real_vector, "scale_tril": constraints.lower_cholesky}
    argument_names = ("loc", "scale_tril")
    support = constraints.real_vector

    def __init__(self, loc: Tensor, scale_tril: Tensor, *, validate_args: bool | None = None):
        check_floating("FullNormals", loc, scale_tril)
        if scale_tril.shape[-2:] != (loc.shape[-1],) * 2:
            raise OptionError(
                f"scale_tril {tuple(scale_tril.shape)} must end in (D, D) with D = "
                f"{loc.shape[-1]}, as loc {tuple(loc.shape)} has it"
            )
        self.loc, self.scale_tril = loc, scale_tril
        batch = batch_shape_of(loc.shape[:-1], scale_tril.shape[:-2])
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    @property
    def min_rows(self) -> int:
        return 2

    def make_kernel(self) -> Quadratic:
        loc = self.flat(self.loc, 1)
        identity = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        inverse = torch.linalg.solve_triangular(
            self.scale_tril, identity.expand_as(self.scale_tril), upper=False
        )
        logdet = 2 * self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        offset = self.flat(logdet, 0) + loc.shape[-1] * math.log(2 * math.pi)
        return Quadratic(loc, torch.zeros_like(loc), self.flat(inverse, 2), offset, 1.0)

    def moment_projection(self) -> Tensor:
        """Return the identity.

        Covariances of the kernel's projections would lose digits to the condition number.
        """
        features = self.event_shape[0]
        identity = torch.eye(features, dtype=self.loc.dtype, device=self.loc.device)
        return identity.expand(self.batch_shape.numel(), features, features)

    def sample_at(self, index: Tensor) -> Tensor:
        loc = self.flat(self.loc, 1)[index]
        noise = torch.randn_like(loc).unsqueeze(-1)
        return loc + (self.flat(self.scale_tril, 2)[index] @ noise).squeeze(-1)

    def maximizers(
        self, statistics: NormalStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        loc = statistics.center
        count = empty_to_one(statistics.count)
        shift = update_loc(self, statistics.first / count.unsqueeze(-1), loc, free)
        out = {"loc": loc + shift} if "loc" in free else {}
        if "scale_tril" in free:
            cross = shift.unsqueeze(-1) * statistics.first.unsqueeze(-2)
            outer = shift.unsqueeze(-1) * shift.unsqueeze(-2) * statistics.count.view(-1, 1, 1)
            scatter = statistics.outer - cross - cross.mT + outer
            covariance = pool(scatter, statistics.count.view(-1, 1, 1), self.scale_tril.shape)
            out["scale_tril"] = _floored_cholesky(covariance, given_floor(floor, loc))
        return out

    def signal_at(self, index: Tensor, value: Tensor, noise: Tensor | None) -> Tensor:
        """Return the posterior mean of the noise-free row; ``noise`` (D,) are equal numbers."""
        if noise is None or not bool((noise == noise[0]).all()):
            raise OptionError(
                "FullNormals has no parameter for noise: pass noise=, one standard deviation"
            )
        covariance = self.flat(self.scale_tril @ self.scale_tril.mT, 2)
        values, vectors = torch.linalg.eigh(covariance)
        gain = (vectors * ((values - noise[0]).clamp_min(0) / values).unsqueeze(-2)) @ vectors.mT
        loc = self.flat(self.loc, 1)[index]
        return loc + (gain[index] @ (value - loc).unsqueeze(-1)).squeeze(-1)

    def marginal(self, features: Tensor) -> "FullNormals":
        """Return the same components for some of the ``features`` only."""
        covariance = (self.scale_tril @ self.scale_tril.mT)[..., features, :][..., features]
        return FullNormals(
            self.loc[..., features], torch.linalg.cholesky(covariance), validate_args=False
        )

    def conditional_mean_at(self, index: Tensor, seen: Tensor, features: Tensor) -> Tensor:
        covariance = self.scale_tril @ self.scale_tril.mT
        among = covariance[..., features, :][..., features]
        gain = self.flat(torch.linalg.solve(among, covariance[..., features, :]).mT, 2)
        loc = self.flat(self.loc, 1)[index]
        return loc + (gain[index] @ (seen - loc[..., features]).unsqueeze(-1)).squeeze(-1)


def _floored_cholesky(covariance: Tensor, floor: Tensor) -> Tensor:
    """Return Cholesky factors (C, D, D) of covariance matrices.

    Eigenvalues of singular matrices, in units of ``floor`` (D,), are raised to 1.
    """
    covariance = (covariance + covariance.mT) / 2
    factor, failed = torch.linalg.cholesky_ex(covariance)
    least = factor.diagonal(dim1=-2, dim2=-1).square() < floor
    bad = (failed != 0) | least.any(-1) | ~factor.isfinite().all(-1).all(-1)
    if not bool(bad.any()):
        return factor
    unit = floor.clamp_min(torch.finfo(floor.dtype).tiny).sqrt()
    values, vectors = torch.linalg.eigh(covariance[bad] / (unit.unsqueeze(-1) * unit))
    # A float cannot hold eigenvalues further below the largest one than its precision.
    least_value = (8 * len(unit) * torch.finfo(unit.dtype).eps * values[..., -1:]).clamp_min(1)
    raised = (vectors * torch.maximum(values, least_value).unsqueeze(-2)) @ vectors.mT
    factor = factor.clone()
    factor[bad] = torch.linalg.cholesky((raised + raised.mT) / 2) * unit.unsqueeze(-1)
    return factor
