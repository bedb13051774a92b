"""Gaussian mixtures with isotropic, diagonal or full covariances, tied or not."""

from typing import Any

import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions import Components, DiagonalNormals, FullNormals, IsotropicNormals
from pyro_mixtures.errors import OptionError
from pyro_mixtures.models.base import NormalMixture
from pyro_mixtures.options import check_flag

COVARIANCES = ("isotropic", "diagonal", "full")


class GaussianMixture(NormalMixture):
    """Model rows as ``x ~ Normal(loc[z], covariance[z])``.

    Params: ``weights`` (C,), ``loc`` (C, D), and ``scale`` (C,) for isotropic, ``scale`` (C, D) for
    diagonal, ``scale_tril`` (C, D, D) for full covariances; without the first dimension if tied.
    Means start as standard normal draws, scales at one: start at
    :func:`pyro_mixtures.init.seed_rows` to fit real data.

    :param components: C.
    :param features: D.
    :param covariance: ``"isotropic"``, ``"diagonal"`` or ``"full"``.
    :param tied: whether all components share one covariance.
    :raises OptionError: when an option has an impossible value.

    >>> model = GaussianMixture(components=3, features=2, covariance="full", tied=True)
    >>> model.scale_tril.shape
    torch.Size([2, 2])
    >>> model(torch.zeros(7, 2), torch.ones(7)).shape
    torch.Size([7, 2])
    """

    scale: Any
    scale_tril: Any

    def __init__(
        self, *, components: int, features: int, covariance: str = "diagonal", tied: bool = False
    ):
        super().__init__(components=components, features=features)
        if covariance not in COVARIANCES:
            raise OptionError(f"unknown covariance {covariance!r}; choose one of {COVARIANCES}")
        check_flag(tied=tied)
        self.covariance, self.tied = covariance, tied
        lead = () if tied else (components,)
        if covariance == "full":
            tril = torch.eye(features).expand(*lead, features, features).clone()
            self.scale_tril = PyroParam(tril, constraint=constraints.lower_cholesky)
        else:
            shape = lead if covariance == "isotropic" else (*lead, features)
            self.scale = PyroParam(torch.ones(shape), constraint=constraints.positive)

    def component_distributions(self) -> Components:
        """Return the C component distributions at the current params."""
        if self.covariance == "full":
            return FullNormals(self.loc, self.scale_tril)
        family = IsotropicNormals if self.covariance == "isotropic" else DiagonalNormals
        return family(self.loc, self.scale)

    def set_variance(self, variance: Tensor) -> None:
        """Start every component with the variances (D,) of the data (with their mean if isotropic).

        :returns: None; ``scale`` or ``scale_tril`` is set in place.
        """
        with torch.no_grad():
            if self.covariance == "full":
                self.scale_tril = variance.sqrt().diag().expand_as(self.scale_tril).clone()
            elif self.covariance == "isotropic":
                self.scale = variance.mean().sqrt().expand_as(self.scale).clone()
            else:
                self.scale = variance.sqrt().expand_as(self.scale).clone()
