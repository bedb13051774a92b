"""Mixtures of softmax distributions over items with features: latent-class multinomial logits."""

from typing import Any

import pyro
import torch
from pyro.nn import PyroParam
from torch import Tensor

from pyro_mixtures.data.exact import floating_dtype
from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.distributions import MixtureWeights
from pyro_mixtures.distributions.logit.softmax_components import SoftmaxComponents
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.models.base import MixtureProgram
from pyro_mixtures.models.row_weights import check_tensor
from pyro_mixtures.poutine import data_plate

# Approximate standard deviation of the initial logits over items.
_INITIAL_DEVIATION = 0.1


class SoftmaxMixture(MixtureProgram):
    r"""Model draws of items by ``x ~ SoftmaxComponents(theta, features)[z]``.

    Params: ``weights`` (C,) and ``theta`` (C, L). A row is the number of one drawn item j, whose
    probability is proportional to :math:`\exp(x_j \cdot \theta_z)`. Pass many draws as distinct
    items with their counts as ``row_weight``: see :func:`pyro_mixtures.data.items.count_items`.
    Coefficients ``theta`` start as small random numbers, so all components start close to the
    uniform distribution and to each other.

    :param components: C, at most the number of items.
    :param features: (p, L) features of the items. The buffer ``item_features`` holds them centered,
        which does not change any probability. Params have their dtype and device.
    :param ridge: see :class:`SoftmaxComponents`.
    :param solver: see :class:`SoftmaxComponents`.
    :param steps: see :class:`SoftmaxComponents`.
    :param equal_weights: whether the weights are constant and equal.
    :raises DataError: when features are not finite, or constant over items.
    :raises OptionError: when an option has an impossible value.

    >>> features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
    >>> model = SoftmaxMixture(components=2, features=features)
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
                f"components={components} for {len(features)} items: "
                "use at most one component per item"
            )
        super().__init__(
            components=components, features=features.shape[1], equal_weights=equal_weights
        )
        self._options: Any = {"ridge": ridge, "solver": solver, "steps": steps}
        features_float64 = features.double()
        deviation = features_float64.std(0, correction=0)
        start = (
            _INITIAL_DEVIATION
            * torch.randn(components, self.features, device=features.device)
            / deviation
        )
        self.theta = PyroParam(start / self.features**0.5)
        self.register_buffer("item_features", features_float64 - features_float64.mean(0))
        self.to(features)
        self.component_distributions()  # checks the options

    def component_distributions(self) -> SoftmaxComponents:
        """Return the C component distributions at the current params."""
        return SoftmaxComponents(self.theta, self.item_features, **self._options)

    def start_at(self, theta: Tensor, weights: Tensor | None = None) -> None:
        """Start the components at ``theta`` (C, L), with ``weights`` (C,), equal by default.

        :returns: None; the params are set in place.
        :raises DataError: for other shapes, for coefficients that are not finite, for weights that
            are negative or all zero, and for unequal weights if the model's are constant.
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
                f"weights {tuple(weights.shape)} must be {shape[:1]} non-negative numbers, "
                "with a positive sum"
            )
        shares = (weights / weights.sum()).to(self.weights)
        if self.equal_weights and not torch.allclose(shares, self.weights):
            raise DataError("this model's weights are constant and equal: leave weights= out")
        with torch.no_grad():
            # A copy, because later steps write the param in place.
            self.theta = theta.to(self.theta, copy=True)
            if not self.equal_weights:
                self.weights = shares

    def forward(
        self,
        x: Tensor | None = None,
        row_weight: Tensor | None = None,
        *,
        index: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Run the program: observe items ``x`` (B,), or draw ``size`` items if ``x`` is None.

        :param row_weight: (B,) weights of the rows, such as counts: a row of weight two counts as
            two rows, a row of weight zero as none.
        :param index: (B,) row numbers of a minibatch within a data set of ``size`` rows.
        :returns: the items, observed or drawn.
        :raises DataError: when the arguments do not fit the model or each other.
        """
        if x is not None:
            check_tensor("rows", x)
        if x is not None and x.dim() != 1:
            raise DataError(f"rows must be item numbers (N,), not {tuple(x.shape)}")
        row_weights = self._weighted_rows(row_weight, 0 if x is None else len(x), index)
        self._warn_if_shared()
        weights, components = MixtureWeights(self.weights), self.component_distributions()
        with data_plate(x, index, size), row_weights:
            z = pyro.sample("z", weights)
            return pyro.sample("x", components[z], obs=x)


def _checked(features: Tensor) -> Tensor:
    """Return floating-point features (p, L), each of which differs between items."""
    features = features.to(floating_dtype(features, "features"))
    if features.dim() != 2 or len(features) < 2 or not features.shape[1]:
        raise DataError(
            f"features {tuple(features.shape)} must be (p, L), "
            "with at least two items and at least one feature"
        )
    if not bool(features.isfinite().all()):
        item = int((~features.isfinite()).any(-1).nonzero()[0])
        raise DataError(f"features of item {item} are not finite")
    constant = (features == features[0]).all(0).nonzero()[:, 0]
    if len(constant):
        raise DataError(
            f"feature {int(constant[0])} is the same for all items and has no effect: leave it out"
        )
    return features
