"""Mixtures of linear support vector machines."""

from typing import Any

import torch
from pyro.nn import PyroParam
from torch import Tensor

from pyro_mixtures.distributions.regression.support_vectors import (
    SupportVectorMachines,
    check_options,
)
from pyro_mixtures.models.base import ConditionalMixture
from pyro_mixtures.options import check_number, check_whole


class MixtureOfSVMs(ConditionalMixture):
    """``z ~ MixtureWeights(weights)``, and the pseudo-likelihood exp(-loss) of label y under the linear SVM z.

    Weights are constant and equal by default: a pseudo-likelihood is no probability that weights
    could be set against. The program has no samples of y, so labels must always be given.

    :param components: C.
    :param features: P, covariates of a row.
    :param classes: K. Labels are 0, ..., K - 1; for more than two each SVM is K machines one
        against the rest.
    :param ridge: lambda of each row; see :class:`SupportVectorMachines`, also for ``loss`` and
        ``solver``.
    :param input_density: what distance from a machine's place costs; see
        :class:`ConditionalMixture`. Without it a part of one class costs next to nothing, wherever
        its rows are.

    >>> model = MixtureOfSVMs(components=3, features=5)
    >>> model(torch.zeros(7, 5), torch.ones(7)).shape
    torch.Size([7])
    """

    weight: Any
    bias: Any

    def __init__(
        self,
        *,
        components: int,
        features: int,
        classes: int = 2,
        ridge: float = 1e-3,
        loss: str = "squared_hinge",
        solver: str = "newton",
        equal_weights: bool = True,
        input_density: float | None = None,
    ):
        super().__init__(
            components=components,
            features=features,
            equal_weights=equal_weights,
            input_density=input_density,
        )
        check_number(positive=True, ridge=ridge)
        check_options(ridge=ridge, loss=loss, solver=solver)
        check_whole(minimum=2, classes=classes)
        self.ridge, self.loss, self.solver = ridge, loss, solver
        shape = (components,) if classes == 2 else (components, classes)
        self.weight = PyroParam(0.1 * torch.randn(*shape, features))
        self.bias = PyroParam(0.1 * torch.randn(shape))

    def component_distributions(self, x: Tensor) -> SupportVectorMachines:
        return SupportVectorMachines(
            x, self.weight, self.bias, ridge=self.ridge, loss=self.loss, solver=self.solver
        )
