"""Mixtures of exponential families with mean parameters: Bregman clustering, hard or soft."""

from typing import Any

import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions import (
    Bernoullis,
    Components,
    Exponentials,
    KnownPrecisionNormals,
    Multinomials,
    Poissons,
    UnitNormals,
)
from pyro_mixtures.errors import OptionError
from pyro_mixtures.init import Seeds
from pyro_mixtures.models.base import Mixture
from pyro_mixtures.options import check_whole

# Families whose only param is the mean, by the names of their Bregman divergences.
DIVERGENCES: dict[str, Any] = {
    "squared": UnitNormals,
    "mahalanobis": KnownPrecisionNormals,
    "kl": Poissons,
    "logistic": Bernoullis,
    "itakura_saito": Exponentials,
    "multinomial": Multinomials,
}


class MeanMixture(Mixture):
    """A mixture whose components have one param, ``mean`` (C, D).

    :param family: class of the components; it defines the constraint of the means in
        ``arg_constraints`` and their starting values in ``start``.
    """

    mean: Any

    def __init__(self, family: Any, *, components: int, features: int, equal_weights: bool):
        super().__init__(components=components, features=features, equal_weights=equal_weights)
        self.family = family
        constraint = family.arg_constraints["mean"]
        self.mean = PyroParam(family.start(torch.rand(components, features)), constraint=constraint)

    def place(self, seeds: Seeds) -> None:
        """Set the means to the seeds, moved inside their domain."""
        self.mean = self.family.start(seeds.loc.to(self.mean, copy=True))


class BregmanMixture(MeanMixture):
    """Model rows as ``x ~ ExponentialFamily(mean[z])``.

    Params: ``weights`` (C,) and ``mean`` (C, D). With :class:`HardPartition` this is Bregman hard
    clustering; with :class:`FullPartition` or :class:`TruncatedPartition` it is soft clustering.
    Banerjee, Merugu, Dhillon & Ghosh, "Clustering with Bregman divergences", JMLR 6 (2005).

    Means start close to each other: start at :func:`pyro_mixtures.init.seed_rows` to fit real data,
    see :meth:`start_at`.

    :param components: C.
    :param features: D.
    :param divergence: ``"squared"`` (normals of unit variance), ``"mahalanobis"`` (normals of a
        constant precision), ``"kl"`` (Poisson), ``"logistic"`` (Bernoulli), ``"itakura_saito"``
        (exponential) or ``"multinomial"`` (histograms).
    :param precision: (D, D), the inverse of the components' covariance; for ``"mahalanobis"`` only.
    :param total: total count of the histograms that a ``"multinomial"`` model draws.
    :param equal_weights: whether the weights are constant and equal, so that they do not enter the
        objective of a hard partition.
    :raises OptionError: when an option has an impossible value, or does not fit the divergence.

    >>> model = BregmanMixture(components=3, features=2, divergence="kl")
    >>> model(torch.tensor([[0.0, 4.0], [1.0, 2.0]]), torch.tensor([3.0, 1.0])).shape
    torch.Size([2, 2])
    """

    precision: Tensor

    def __init__(
        self,
        *,
        components: int,
        features: int,
        divergence: str = "squared",
        precision: Tensor | None = None,
        total: int = 1,
        equal_weights: bool = False,
    ):
        if divergence not in tuple(DIVERGENCES):
            choices = tuple(DIVERGENCES)
            raise OptionError(f"unknown divergence {divergence!r}; choose one of {choices}")
        if (precision is None) == (divergence == "mahalanobis"):
            raise OptionError(
                f"divergence={divergence!r}: pass precision= with 'mahalanobis', and only then"
            )
        check_whole(total=total)
        if total != 1 and divergence != "multinomial":
            raise OptionError(
                f"total={total} needs divergence='multinomial'; it has no effect for {divergence!r}"
            )
        family = DIVERGENCES[divergence]
        super().__init__(
            family, components=components, features=features, equal_weights=equal_weights
        )
        self.divergence = divergence
        self._options = {"total": total} if divergence == "multinomial" else {}
        if precision is not None:
            self.register_buffer("precision", _checked_precision(precision, features))

    def component_distributions(self) -> Components:
        """Return the C component distributions at the current params."""
        if self.divergence == "mahalanobis":
            return self.family(self.mean, precision=self.precision)
        return self.family(self.mean, **self._options)


def _checked_precision(precision: Tensor, features: int) -> Tensor:
    """Return a copy of the symmetric, positive definite ``precision`` (D, D)."""
    if not isinstance(precision, Tensor):
        raise OptionError(f"precision is a {type(precision).__name__}: pass a tensor (D, D)")
    expected = (features, features)
    if precision.shape != expected or not precision.is_floating_point():
        raise OptionError(
            f"precision is {precision.dtype} of shape {tuple(precision.shape)}: "
            f"pass floating-point numbers {expected}"
        )
    if not bool(constraints.positive_definite.check(precision)):
        raise OptionError(
            "precision must be symmetric and positive definite: the inverse of a covariance"
        )
    return precision.clone()
