"""Mixtures of softmax distributions over items with features: multinomial logits with latent classes."""

from typing import Any

import pyro
import torch
from pyro.nn import PyroParam
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.distributions import MixtureWeights
from pyro_mixtures.distributions.logit.softmax_components import SoftmaxComponents
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.models.base import MixtureProgram, weighted
from pyro_mixtures.poutine import data_plate

# Deviation of the logits that thetas start with, about.
_START = 0.1


class SoftmaxMixture(MixtureProgram):
    r"""``z ~ MixtureWeights(weights)``, ``x ~ SoftmaxComponents(theta, features)[z]``: params ``weights``, ``theta``.

    A row is one draw of an item, P(j) proportional to :math:`\exp(x_j \cdot \theta_z)`. Draws are
    best given as distinct items with their counts as ``row_weight``: see
    :func:`pyro_mixtures.data.items.count_items`.

    :param components: C, no more than there are items.
    :param features: (p, L) of the items; ``item_features`` holds them centred, which changes no probability. Params
        have their dtype and device.
    :param ridge, solver, steps: see :class:`SoftmaxComponents`.
    :param equal_weights: constant, equal weights. :raises DataError, OptionError: when features are
    not finite, or constant over items, or options do not fit.

    Thetas start as small random numbers: all components near the uniform distribution, and near
    each other.

    >>> model = SoftmaxMixture(components=2, features=torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]]))
    >>> model(torch.tensor([0, 2]), torch.tensor([5, 3])).shape
    torch.Size([2])
    """

    weights: Any
    theta: Any
    item_features: Tensor

    def __init__(
        self,
        *,
        components: int,
        features: Any,
        ridge: float = 0.0,
        solver: str = "newton",
        steps: int | None = 1,
        equal_weights: bool = False,
    ):
        features = _checked(as_rows(features))
        if components > len(features):
            raise OptionError(
                f"components={components} for {len(features)} items: there are no more to tell apart"
            )
        super().__init__(
            components=components, features=features.shape[1], equal_weights=equal_weights
        )
        self._options: Any = {"ridge": ridge, "solver": solver, "steps": steps}
        wide = features.double()
        deviation = wide.std(0, correction=0)
        start = _START * torch.randn(components, self.features, device=features.device) / deviation
        self.theta = PyroParam(start / self.features**0.5)
        self.register_buffer("item_features", wide - wide.mean(0))
        self.to(features)
        self.component_distributions()  # refuses options

    def component_distributions(self) -> SoftmaxComponents:
        """The C component distributions of the present parameters."""
        return SoftmaxComponents(self.theta, self.item_features, **self._options)

    def start_at(self, theta: Tensor, weights: Tensor | None = None) -> None:
        """Put the components at ``theta`` (C, L), with ``weights`` (C,), equal ones by default.

        :raises DataError: for other shapes, numbers that cannot be used, and unequal weights where
            they are constant.
        """
        shape = (self.components, self.features)
        if theta.shape != shape or not bool(theta.isfinite().all()):
            raise DataError(f"theta {tuple(theta.shape)} must be {shape} finite numbers")
        if weights is None:
            weights = torch.full(shape[:1], 1.0 / self.components, device=theta.device)
        if (
            weights.shape != shape[:1]
            or not bool(((weights >= 0) & weights.isfinite()).all())
            or not weights.sum() > 0
        ):
            raise DataError(
                f"weights {tuple(weights.shape)} must be {shape[:1]} numbers, not negative, with a sum"
            )
        shares = (weights / weights.sum()).to(self.weights)
        if self.equal_weights and not torch.allclose(shares, self.weights):
            raise DataError("this model's weights are constant and equal: start it at theta alone")
        with torch.no_grad():
            # Copies: steps in place must not move what was given.
            self.theta = theta.to(self.theta, copy=True)
            if not self.equal_weights:
                self.weights = shares

    def forward(
        self,
        x: Tensor | None = None,
        row_weight: Tensor | None = None,
        index: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """The program: items ``x`` (B,) observed, or ``size`` items drawn when ``x`` is None.

        :param row_weight: (B,) weights of the rows, such as counts: two counts as two rows, zero as
            none.
        :param index: (B,) row numbers of a minibatch within a data set of ``size`` rows.
        """
        if x is not None and x.dim() != 1:
            raise DataError(f"rows must be item numbers (N,), not {tuple(x.shape)}")
        counted = weighted(row_weight, 0 if x is None else len(x), dtype=self.item_features.dtype)
        self._warn_if_shared()
        weights, components = MixtureWeights(self.weights), self.component_distributions()
        with data_plate(x, index, size), counted:
            z = pyro.sample("z", weights)
            return pyro.sample("x", components[z], obs=x)


def _checked(features: Tensor) -> Tensor:
    """Features (p, L) that tell items apart, floating."""
    features = features if features.is_floating_point() else features.to(torch.get_default_dtype())
    if features.dim() != 2 or len(features) < 2 or not features.shape[1]:
        raise DataError(
            f"features {tuple(features.shape)} must be (p, L): of at least two items, at least one feature"
        )
    if not bool(features.isfinite().all()):
        raise DataError(
            f"features of item {int((~features.isfinite()).any(-1).nonzero()[0])} are not finite"
        )
    constant = (features == features[0]).all(0).nonzero()[:, 0]
    if len(constant):
        raise DataError(
            f"feature {int(constant[0])} is the same for all items: it changes no probability, leave it out"
        )
    return features
