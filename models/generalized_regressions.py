"""Mixtures of logistic and of Poisson regressions."""

from typing import Any

import torch
from pyro.nn import PyroParam
from torch import Tensor

from pyro_mixtures.distributions.regression.generalized_regressions import (
    LogisticRegressions,
    PoissonRegressions,
)
from pyro_mixtures.models.base import ConditionalMixture
from pyro_mixtures.options import check_number


class _MixtureOfGeneralizedRegressions(ConditionalMixture):
    """A mixture of regressions with params ``weight`` (C, P) and ``bias`` (C,)."""

    weight: Any
    bias: Any

    def __init__(
        self,
        *,
        components: int,
        features: int,
        ridge: float = 0.0,
        equal_weights: bool = False,
        input_density: float | None = None,
    ):
        super().__init__(
            components=components,
            features=features,
            equal_weights=equal_weights,
            input_density=input_density,
        )
        check_number(ridge=ridge)
        self.ridge = ridge
        self.weight = PyroParam(0.1 * torch.randn(components, features))
        self.bias = PyroParam(0.1 * torch.randn(components))


class MixtureOfLogisticRegressions(_MixtureOfGeneralizedRegressions):
    """Model outcomes in {0, 1} as ``y ~ Bernoulli(sigmoid(weight[z] x + bias[z]))``.

    Params: ``weights`` (C,), ``weight`` (C, P), ``bias`` (C,), and ``loc`` (C, P) if
    ``input_density`` is given.

    :param components: C.
    :param features: P, the number of covariates.
    :param ridge: lambda; see :class:`LogisticRegressions`. Choose a positive one for hard
        partitions, whose clusters are often separable.
    :param equal_weights: whether the weights are constant and equal, so that they do not enter the
        objective of a hard partition.
    :param input_density: None, or the weight of the distance between covariates and the location
        of their expert; see :class:`ConditionalMixture`.
    :raises OptionError: when an option has an impossible value.

    >>> model = MixtureOfLogisticRegressions(components=3, features=5)
    >>> model(torch.zeros(7, 5)).shape
    torch.Size([7])
    """

    def component_distributions(self, x: Tensor) -> LogisticRegressions:
        """Return the C distributions of the outcome given covariates ``x`` (B, P)."""
        return LogisticRegressions(x, self.weight, self.bias, ridge=self.ridge)


class MixtureOfPoissonRegressions(_MixtureOfGeneralizedRegressions):
    """Model counts as ``y ~ Poisson(exp(weight[z] x + bias[z]))``.

    Params and options are those of :class:`MixtureOfLogisticRegressions`.

    >>> model = MixtureOfPoissonRegressions(components=3, features=5)
    >>> model(torch.zeros(7, 5)).shape
    torch.Size([7])
    """

    def component_distributions(self, x: Tensor) -> PoissonRegressions:
        """Return the C distributions of the outcome given covariates ``x`` (B, P)."""
        return PoissonRegressions(x, self.weight, self.bias, ridge=self.ridge)
