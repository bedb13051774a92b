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
    """Params ``weight`` (C, P) and ``bias`` (C,)."""

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
    """``z ~ MixtureWeights(weights)``, ``y ~ Bernoulli(sigmoid(weight[z] x + bias[z]))``, y in {0, 1}.

    :param components: C.
    :param features: P, covariates of a row.
    :param ridge: lambda; see :class:`LogisticRegressions`. Parts of a partition are often
        separable: make it positive.
    :param equal_weights: constant, equal weights, as the objective of a hard partition wants them.
    :param input_density: what distance from an expert's place costs; see
        :class:`ConditionalMixture`.

    >>> model = MixtureOfLogisticRegressions(components=3, features=5)
    >>> model(torch.zeros(7, 5)).shape
    torch.Size([7])
    """

    def component_distributions(self, x: Tensor) -> LogisticRegressions:
        return LogisticRegressions(x, self.weight, self.bias, ridge=self.ridge)


class MixtureOfPoissonRegressions(_MixtureOfGeneralizedRegressions):
    """``z ~ MixtureWeights(weights)``, ``y ~ Poisson(exp(weight[z] x + bias[z]))``, y a count.

    Parameters as those of :class:`MixtureOfLogisticRegressions`.

    >>> model = MixtureOfPoissonRegressions(components=3, features=5)
    >>> model(torch.zeros(7, 5)).shape
    torch.Size([7])
    """

    def component_distributions(self, x: Tensor) -> PoissonRegressions:
        return PoissonRegressions(x, self.weight, self.bias, ridge=self.ridge)
