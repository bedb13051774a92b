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
    """Model outcomes as ``y ~ Normal(weight[z] x + bias[z], scale[z])``, with a ridge penalty.

    Params: ``weights`` (C,), ``weight`` (C, P) or (C, M, P), ``bias`` and ``scale`` (C,) or (C, M),
    and ``loc`` (C, P) if ``input_density`` is given. Coefficients start as small random numbers:
    start hard partitions from labels, or use several restarts.

    :param components: C.
    :param features: P, the number of covariates.
    :param outputs: None for outcomes ``y`` (N,), M for outcomes (N, M).
    :param ridge: lambda; see :class:`LinearRegressions`.
    :param scale: None to learn a standard deviation for each component and output; a number fixes
        all of them, for the squared error.
    :param equal_weights: whether the weights are constant and equal, so that they do not enter the
        objective of a hard partition.
    :param input_density: None, or the weight of the distance between covariates and the location
        of their expert; see :class:`ConditionalMixture`.
    :raises OptionError: when an option has an impossible value.

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
        """Return the C distributions of the outcome given covariates ``x`` (B, P)."""
        return LinearRegressions(x, self.weight, self.bias, self.scale, ridge=self.ridge)
