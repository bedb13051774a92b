"""Mixtures of exponential families by their means: Bregman clustering, hard or soft."""

from abc import abstractmethod
from typing import Any

import pyro
import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions import Components, MixtureWeights
from pyro_mixtures.distributions.exponential.exponential_families import (
    Bernoullis,
    Exponentials,
    Multinomials,
    Poissons,
)
from pyro_mixtures.distributions.normal.unit_normals import KnownPrecisionNormals, UnitNormals
from pyro_mixtures.errors import OptionError
from pyro_mixtures.init import Seeds
from pyro_mixtures.models.base import RowMixture, weighted
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import data_plate

# Families of one param, by the names of their divergences.
DIVERGENCES: dict[str, Any] = {
    "squared": UnitNormals,
    "mahalanobis": KnownPrecisionNormals,
    "kl": Poissons,
    "logistic": Bernoullis,
    "itakura_saito": Exponentials,
    "multinomial": Multinomials,
}


class MeanMixture(RowMixture):
    """The program of a mixture whose components have their ``mean`` (C, D) alone; rows may carry weights.

    :param family: of the components, whose ``arg_constraints`` and ``start`` are those of the
        means.
    """

    weights: Any
    mean: Any

    def __init__(self, family: Any, *, components: int, features: int, equal_weights: bool):
        super().__init__(components=components, features=features, equal_weights=equal_weights)
        self.family = family
        constraint = family.arg_constraints["mean"]
        self.mean = PyroParam(family.start(torch.rand(components, features)), constraint=constraint)

    @abstractmethod
    def rows(self, x: Tensor) -> Tensor:
        """The rows that are observed of the rows ``x`` (B, D) that are given."""

    def place(self, seeds: Seeds) -> None:
        """Means at the seeds, inside their domain."""
        self.mean = self.family.start(seeds.loc.to(self.mean, copy=True))

    def forward(
        self,
        x: Tensor | None = None,
        row_weight: Tensor | None = None,
        index: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """The program: rows ``x`` (B, D) observed, or ``size`` rows drawn when ``x`` is None.

        :param row_weight: (B,) weights of the rows: two counts as two rows, zero as none.
        :param index: (B,) row numbers of a minibatch within a data set of ``size`` rows.
        """
        if x is not None:
            self._check_rows(x)
            x = self.rows(x)
        counted = weighted(row_weight, 0 if x is None else len(x))
        self._warn_if_shared()
        weights, components = MixtureWeights(self.weights), self.component_distributions()
        with data_plate(x, index, size), counted:
            z = pyro.sample("z", weights)
            return pyro.sample("x", components[z], obs=x)


class BregmanMixture(MeanMixture):
    """``z ~ MixtureWeights(weights)``, ``x ~ ExponentialFamily(mean[z])``: params ``weights`` and ``mean``.

    With :class:`HardPartition` it is Bregman hard clustering, with :class:`FullPartition` or
    :class:`TruncatedPartition` soft clustering. Banerjee et al., JMLR 6 (2005).

    :param components: C.
    :param features: D.
    :param divergence: ``"squared"`` (normals of unit variance), ``"mahalanobis"`` (of a constant
        precision), ``"kl"`` (Poisson), ``"logistic"`` (Bernoulli), ``"itakura_saito"``
        (exponential) or ``"multinomial"`` (histograms).
    :param precision: (D, D) of ``"mahalanobis"``: the inverse of the components' covariance.
    :param total: of the histograms that a ``"multinomial"`` model draws.
    :param equal_weights: constant, equal weights, as the objective of a hard partition wants them.

    Means start as draws near each other: fit real data from :func:`pyro_mixtures.init.seed_rows`,
    see :meth:`start_at`.

    >>> model = BregmanMixture(components=3, features=2, divergence="kl")
    >>> model(torch.tensor([[0.0, 4.0], [1.0, 2.0]])).shape
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
            raise OptionError(
                f"unknown divergence {divergence!r}; choose one of {tuple(DIVERGENCES)}"
            )
        if (precision is None) == (divergence == "mahalanobis"):
            raise OptionError(
                f"divergence={divergence!r}: give precision= with 'mahalanobis', and only then"
            )
        check_whole(total=total)
        if total != 1 and divergence != "multinomial":
            raise OptionError(
                f"total={total} has a meaning for divergence='multinomial' only, not for {divergence!r}"
            )
        family = DIVERGENCES[divergence]
        super().__init__(
            family, components=components, features=features, equal_weights=equal_weights
        )
        self.divergence, self._options = (
            divergence,
            {"total": total} if divergence == "multinomial" else {},
        )
        if precision is not None:
            self.register_buffer("precision", _checked_precision(precision, features))

    def component_distributions(self) -> Components:
        given = {"precision": self.precision} if self.divergence == "mahalanobis" else self._options
        return self.family(self.mean, **given)

    def rows(self, x: Tensor) -> Tensor:
        return x


def _checked_precision(precision: Tensor, features: int) -> Tensor:
    """A copy of the symmetric, positive definite ``precision`` (D, D)."""
    if not isinstance(precision, Tensor):
        raise OptionError(f"precision is a {type(precision).__name__}: give a tensor (D, D)")
    if precision.shape != (features, features) or not precision.is_floating_point():
        given, wanted = (precision.dtype, tuple(precision.shape)), (features, features)
        raise OptionError(f"precision is {given}: give floating-point numbers {wanted}")
    if not bool(constraints.positive_definite.check(precision)):
        raise OptionError(
            "precision must be symmetric and positive definite: the inverse of a covariance"
        )
    return precision.clone()
