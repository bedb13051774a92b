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
    """Model labels by the pseudo-likelihood ``exp(-loss)`` of one linear SVM per component.

    Params: ``weight`` (C, P) and ``bias`` (C,), or (C, K, P) and (C, K) for more than two classes,
    and ``loc`` (C, P) if ``input_density`` is given. A pseudo-likelihood cannot be sampled, so
    labels must always be given.

    :param components: C.
    :param features: P, the number of covariates.
    :param classes: K. Labels are 0, ..., K - 1; for more than two classes, each component has K
        one-against-the-rest machines.
    :param ridge: lambda per row; see :class:`SupportVectorMachines`.
    :param loss: see :class:`SupportVectorMachines`.
    :param solver: see :class:`SupportVectorMachines`.
    :param equal_weights: whether the weights are constant and equal. They are by default, since a
        pseudo-likelihood is not normalized, and weights cannot be compared with it.
    :param input_density: None, or the weight of the distance between covariates and the location
        of their machine; see :class:`ConditionalMixture`. Without it, a cluster of one class has
        almost no loss, no matter where its rows are.
    :raises OptionError: when an option has an impossible value.

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
        """Return the C pseudo-likelihoods of the label given covariates ``x`` (B, P)."""
        return SupportVectorMachines(
            x, self.weight, self.bias, ridge=self.ridge, loss=self.loss, solver=self.solver
        )
