"""Base classes of the mixtures: their weights, and the Pyro programs of rows and of outcomes.

Every model is a :class:`MixtureProgram`. A :class:`Mixture` models rows ``x``; a
:class:`ConditionalMixture` models outcomes ``y`` given covariates ``x``. Their programs take the
observed tensors first, then ``row_weight``, so that ``fit(em, x, row_weight)`` batches them
together; ``index`` and ``size`` are keyword-only.
"""

import warnings
from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.data.rows import numbered
from pyro_mixtures.distributions import Components, IsotropicNormals, MixtureWeights
from pyro_mixtures.errors import DataError, OptionError, SharedParamsWarning
from pyro_mixtures.init import Seeds
from pyro_mixtures.models.row_weights import check_tensor, weighted_rows
from pyro_mixtures.options import check_flag, check_number, check_whole
from pyro_mixtures.poutine import data_plate


class MixtureProgram(PyroModule):
    """A Pyro program with mixture weights (C,), either a param or constant and equal.

    With constant weights, the objective of a hard partition consists of the components' losses
    alone.

    :param components: C.
    :param features: number of features of a row, or of covariates.
    :param equal_weights: whether the weights are constant and equal.
    :raises OptionError: when an option has an impossible value.
    """

    # A PyroParam is a tensor when it is read, which its class does not tell a type checker.
    weights: Any

    def __init__(self, *, components: int, features: int, equal_weights: bool = False):
        super().__init__()
        check_whole(components=components, features=features)
        check_flag(equal_weights=equal_weights)
        self.components, self.features = components, features
        equal = torch.full((components,), 1.0 / components)
        if equal_weights:
            self.register_buffer("weights", equal)
        else:
            self.weights = PyroParam(equal, constraint=constraints.simplex)

    @property
    def equal_weights(self) -> bool:
        """Whether the weights are constant."""
        return "weights" in dict(self.named_buffers(recurse=False))

    def _check_rows(self, x: Tensor) -> None:
        check_tensor("rows", x)
        if x.dim() != 2 or x.shape[-1] != self.features:
            raise DataError(f"rows must be (N, {self.features}), not {tuple(x.shape)}")

    def _weighted_rows(
        self, row_weight: Tensor | None, rows: int, index: Tensor | None
    ) -> AbstractContextManager[None]:
        """Return the context in which the program's sites have ``row_weight``."""
        if row_weight is None:
            return nullcontext()
        with numbered(index):
            return weighted_rows(row_weight, rows, next(self.parameters()).dtype)

    def _warn_if_shared(self) -> None:
        """Warn if Pyro's param store replaces params of this model with those of another model.

        The store identifies params by name alone. The check is made in every run, because models
        may be used in turn: one is fitted, then another, then the first is evaluated.
        """
        leaves = {
            name.removesuffix("_unconstrained"): leaf for name, leaf in self.named_parameters()
        }
        stored = dict(pyro.get_param_store().named_parameters())
        shared = sorted(
            name for name, leaf in leaves.items() if name in stored and stored[name] is not leaf
        )
        if shared and not pyro.settings.get("module_local_params"):
            warnings.warn(
                f"this model takes the values of {shared} from Pyro's param store, where another "
                "model of this process left them: call pyro.clear_param_store() before building "
                "it, or keep params apart with pyro.settings.set(module_local_params=True)",
                SharedParamsWarning,
                stacklevel=3,
            )


class Mixture(MixtureProgram):
    """The program of a mixture over rows: ``z ~ MixtureWeights(weights)``, ``x ~ component[z]``.

    A subclass defines its component distributions, and how to start them at seeds.
    """

    @abstractmethod
    def component_distributions(self) -> Components:
        """Return the C component distributions at the current params."""

    @abstractmethod
    def place(self, seeds: Seeds) -> None:
        """Set the components' params from ``seeds``.

        The shapes of the seeds have been checked, and no gradients are recorded. Params must not
        share memory with the seeds, which may be views of the rows: closed-form steps write params
        in place.
        """

    def start_at(self, seeds: Seeds) -> None:
        """Start the components at ``seeds``, with equal weights.

        :param seeds: C rows and the variances of the data, from
            :func:`pyro_mixtures.init.seed_rows`.
        :returns: None; the params are set in place.
        :raises DataError: when the seeds have another number of components or features.
        """
        if not isinstance(seeds, Seeds):
            raise OptionError(
                f"seeds is a {type(seeds).__name__}: pass the result of seed_rows(x, "
                f"{self.components})"
            )
        expected = (self.components, self.features)
        if seeds.loc.shape != expected:
            raise DataError(f"seeds are {tuple(seeds.loc.shape)}, but the model needs {expected}")
        with torch.no_grad():
            self.weights = torch.full_like(self.weights, 1.0 / self.components)
            self.place(seeds)

    def _observed(self, x: Tensor) -> Tensor:
        """Return the values that the program observes for rows ``x``."""
        return x

    def forward(
        self,
        x: Tensor | None = None,
        row_weight: Tensor | None = None,
        *,
        index: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Run the program: observe rows ``x`` (B, D), or draw ``size`` rows if ``x`` is None.

        :param row_weight: (B,) weights of the rows: a row of weight two counts as two rows, a row
            of weight zero as none.
        :param index: (B,) row numbers of a minibatch within a data set of ``size`` rows.
        :returns: the rows, observed or drawn.
        :raises DataError: when the arguments do not fit the model or each other.
        """
        if x is not None:
            self._check_rows(x)
            with numbered(index):
                x = self._observed(x)
        row_weights = self._weighted_rows(row_weight, 0 if x is None else len(x), index)
        self._warn_if_shared()
        weights, components = MixtureWeights(self.weights), self.component_distributions()
        with data_plate(x, index, size), row_weights:
            z = pyro.sample("z", weights)
            return pyro.sample("x", components[z], obs=x)


class NormalMixture(Mixture):
    """A mixture whose components have means, the param ``loc`` (C, D), and covariances.

    A family adds the params of its covariances.
    """

    loc: Any

    def __init__(self, *, components: int, features: int):
        super().__init__(components=components, features=features)
        self.loc = PyroParam(torch.randn(components, features))

    @abstractmethod
    def set_variance(self, variance: Tensor) -> None:
        """Start every component with the variances (D,) of the data.

        :returns: None; the params of the covariances are set in place.
        """

    def place(self, seeds: Seeds) -> None:
        """Set the means to the seeds, and the covariances to the variances of the data."""
        self.loc = seeds.loc.to(self.loc, copy=True)
        self.set_variance(seeds.variance.to(self.loc))


class ConditionalMixture(MixtureProgram):
    """The program of a mixture over outcomes: ``z ~ MixtureWeights(weights)``, ``y ~ expert_z(x)``.

    A family adds the experts' params, and defines the component distributions of a batch of
    covariates.

    :param input_density: None, or the weight of the distance between a row's covariates and the
        location of its expert, param ``loc`` (C, P): the loss grows by
        ``input_density |x - loc[z]|^2 / P``, which is about ``input_density`` for standardized
        covariates. Each expert then owns a region of the input space, which a gate can learn;
        without it, only the outcomes may tell the experts' rows apart. The program states it as a
        second observed site, ``x ~ Normal(loc[z], constant)``.
    """

    loc: Any

    def __init__(
        self,
        *,
        components: int,
        features: int,
        equal_weights: bool = False,
        input_density: float | None = None,
    ):
        super().__init__(components=components, features=features, equal_weights=equal_weights)
        self.input_density = input_density
        if input_density is not None:
            check_number(positive=True, input_density=input_density)
            self.loc = PyroParam(torch.randn(components, features))
            self.register_buffer(
                "spread", torch.full((components,), (features / (2 * input_density)) ** 0.5)
            )

    @abstractmethod
    def component_distributions(self, x: Tensor) -> Components:
        """Return the C distributions of the outcome given covariates ``x`` (B, P)."""

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        row_weight: Tensor | None = None,
        *,
        index: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Run the program: observe outcomes given covariates, or draw them.

        :param x: (B, P) covariates.
        :param y: (B, ...) outcomes; None draws them.
        :param row_weight: (B,) weights of the rows: a row of weight two counts as two rows, a row
            of weight zero as none.
        :param index: (B,) row numbers of a minibatch within a data set of ``size`` rows.
        :returns: the outcomes, observed or drawn.
        :raises DataError: when the arguments do not fit the model or each other.
        """
        self._check_rows(x)
        if y is not None:
            check_tensor("outcomes", y)
            if len(y) != len(x):
                raise DataError(f"{len(y)} outcomes for {len(x)} rows of covariates")
        row_weights = self._weighted_rows(row_weight, len(x), index)
        self._warn_if_shared()
        weights, components = MixtureWeights(self.weights), self.component_distributions(x)
        if y is not None and y.shape[1:] != components.event_shape:
            sizes = ", ".join(map(str, ("N", *components.event_shape)))
            expected = f"({sizes}{',' * (sizes == 'N')})"
            raise DataError(f"outcomes must be {expected}, not {tuple(y.shape)}")
        with data_plate(x, index, size), row_weights:
            z = pyro.sample("z", weights)
            if self.input_density is not None:
                pyro.sample("x", IsotropicNormals(self.loc, self.spread)[z], obs=x)
            return pyro.sample("y", components[z], obs=y)
