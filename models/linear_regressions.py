"""Mixtures of linear regressions."""

from typing import Any

import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.models.base import ConditionalMixture
from pyro_mixtures.options import check_number, check_whole


class MixtureOfRegressions(ConditionalMixture):
    """``z ~ MixtureWeights(weights)``, ``y ~ Normal(weight[z] x + bias[z], scale[z])`` with a ridge penalty.

    :param components: C.
    :param features: P, covariates of a row.
    :param outputs: None for outcomes ``y`` (N,), M for outcomes (N, M).
    :param ridge: lambda; see :class:`LinearRegressions`.
    :param scale: None for a standard deviation of each component and output, learned from the data;
        or one number, constant: squared error.
    :param equal_weights: constant, equal weights, as the objective of a hard partition wants them.
    :param input_density: what distance from an expert's place costs; see
        :class:`ConditionalMixture`.

    Coefficients start as small random numbers: start hard partitions from labels or several
    restarts.

    >>> model = MixtureOfRegressions(components=3, features=5)
    >>> model(torch.zeros(7, 5)).shape
    torch.Size([7])
    """

    weight: Any
    bias: Any
    scale: Any

    def __init__(
        self,
        *,
        components: int,
        features: int,
        outputs: int | None = None,
        ridge: float = 0.0,
        scale: float | None = None,
        equal_weights: bool = False,
        input_density: float | None = None,
    ):
        super().__init__(
            components=components,
            features=features,
            equal_weights=equal_weights,
            input_density=input_density,
        )
        if outputs is not None:
            check_whole(outputs=outputs)
        if scale is not None:
            check_number(positive=True, scale=scale)
        check_number(ridge=ridge)
        self.ridge = ridge
        shape = (components,) if outputs is None else (components, outputs)
        self.weight = PyroParam(0.1 * torch.randn(*shape, features))
        self.bias = PyroParam(0.1 * torch.randn(shape))
        if scale is None:
            self.scale = PyroParam(torch.ones(shape), constraint=constraints.positive)
        else:
            self.register_buffer("scale", torch.full(shape, float(scale)))

    def component_distributions(self, x: Tensor) -> LinearRegressions:
        return LinearRegressions(x, self.weight, self.bias, self.scale, ridge=self.ridge)
