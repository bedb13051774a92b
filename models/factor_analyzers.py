"""Mixtures of factor analyzers: low-rank plus diagonal covariances."""

from typing import Any

import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions import FactorAnalyzers
from pyro_mixtures.errors import OptionError
from pyro_mixtures.models.base import NormalMixture
from pyro_mixtures.options import check_flag, check_whole


class MixtureOfFactorAnalyzers(NormalMixture):
    """Model rows as ``x ~ Normal(loc[z], factor[z] factor[z]^T + diag(noise[z]))``.

    Params: ``weights`` (C,), ``loc`` (C, D), ``factor`` (C, D, H), and ``noise`` (C, D), or (D,) if
    tied. Loadings start as small random numbers: start the means at
    :func:`pyro_mixtures.init.seed_rows`.

    Ghahramani & Hinton, "The EM algorithm for mixtures of factor analyzers" (1996).

    :param components: C.
    :param features: D.
    :param factors: H, the number of columns of each component's loadings.
    :param tied: whether all components share one ``noise`` (D,).
    :raises OptionError: when an option has an impossible value.

    >>> model = MixtureOfFactorAnalyzers(components=3, features=4, factors=2)
    >>> model.factor.shape
    torch.Size([3, 4, 2])
    >>> model(torch.zeros(7, 4), torch.ones(7)).shape
    torch.Size([7, 4])
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

    def component_distributions(self) -> FactorAnalyzers:
        """Return the C component distributions at the current params."""
        return FactorAnalyzers(self.loc, self.factor, self.noise)

    def set_variance(self, variance: Tensor) -> None:
        """Start with the variances (D,) of the data as noise, and with small random loadings.

        :returns: None; ``noise`` and ``factor`` are set in place.
        """
        with torch.no_grad():
            self.noise = variance.expand_as(self.noise).clone()
            self.factor = torch.rand_like(self.factor).mul_(0.1 * variance.sqrt().unsqueeze(-1))
