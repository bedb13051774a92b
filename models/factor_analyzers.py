"""Mixtures of factor analyzers: low-rank plus diagonal covariances."""

from typing import Any

import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions import Components, FactorAnalyzers
from pyro_mixtures.errors import OptionError
from pyro_mixtures.models.base import Mixture
from pyro_mixtures.options import check_flag, check_whole


class MixtureOfFactorAnalyzers(Mixture):
    """``z ~ MixtureWeights(weights)``, ``x ~ Normal(loc[z], factor[z] factor[z]^T + diag(noise[z]))``.

    :param components: C.
    :param features: D.
    :param factors: H, columns of each component's loading matrix ``factor`` (C, D, H).
    :param tied: one ``noise`` (D,) for all components.

    >>> MixtureOfFactorAnalyzers(components=3, features=4, factors=2).factor.shape
    torch.Size([3, 4, 2])
    """

    factor: Any
    noise: Any

    def __init__(self, *, components: int, features: int, factors: int, tied: bool = False):
        super().__init__(components=components, features=features)
        check_whole(minimum=0, factors=factors)
        check_flag(tied=tied)
        if factors > features:
            raise OptionError(f"factors={factors} must lie in [0, features={features}]")
        self.factors, self.tied = factors, tied
        self.factor = PyroParam(torch.rand(components, features, factors).mul_(0.1))
        shape = (features,) if tied else (components, features)
        self.noise = PyroParam(torch.ones(shape), constraint=constraints.positive)

    def component_distributions(self) -> Components:
        return FactorAnalyzers(self.loc, self.factor, self.noise)

    def set_variance(self, variance: Tensor) -> None:
        """Start with the data's variances (D,) as noise, and loadings small against them."""
        with torch.no_grad():
            self.noise = variance.expand_as(self.noise).clone()
            self.factor = torch.rand_like(self.factor).mul_(0.1 * variance.sqrt().unsqueeze(-1))
