"""What the mixtures with means share: weights, means, and the plain Pyro program."""

import warnings
from abc import abstractmethod
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions import Components, MixtureWeights
from pyro_mixtures.errors import DataError, OptionError, SharedParamsWarning
from pyro_mixtures.init import Seeds
from pyro_mixtures.poutine import data_plate


class Mixture(PyroModule):
    """Params ``weights`` (C,) and ``loc`` (C, D), and the program of a mixture over rows ``x``.

    A family adds the params of its covariances and states how they make the components.
    """

    # PyroParams: tensors when read. Any, since their class says otherwise to a type checker.
    weights: Any
    loc: Any

    def __init__(self, *, components: int, features: int):
        super().__init__()
        if components < 1 or features < 1:
            raise OptionError(f"components={components} and features={features} must be positive")
        self.components, self.features = components, features
        self._checked_store = False
        self.weights = PyroParam(torch.full((components,), 1.0 / components), constraint=constraints.simplex)
        self.loc = PyroParam(torch.randn(components, features))

    def __getstate__(self) -> dict[str, Any]:
        # A copy has to find out for itself whether the store holds somebody else's params.
        return {**self.__dict__, "_checked_store": False}

    @abstractmethod
    def component_distributions(self) -> Components:
        """The C component distributions of the present parameters."""

    @abstractmethod
    def set_variance(self, variance: Tensor) -> None:
        """Start every component with the variances (D,) of the data."""

    def start_at(self, seeds: Seeds) -> None:
        """Put the means at ``seeds`` of :func:`pyro_mixtures.init.seed_rows`; the data's variance, equal weights.

        :raises DataError: when the seeds have another number of components or features.
        """
        if seeds.loc.shape != (self.components, self.features):
            raise DataError(f"seeds are {tuple(seeds.loc.shape)}, the model needs {(self.components, self.features)}")
        with torch.no_grad():
            self.weights = torch.full_like(self.weights, 1.0 / self.components)
            # A copy: steps in place must not move the seeds, or the rows that they may be a view of.
            self.loc = seeds.loc.to(self.loc, copy=True)
        self.set_variance(seeds.variance.to(self.loc))

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: rows ``x`` (B, D) observed, or ``size`` rows drawn when ``x`` is None.

        :param index: (B,) row numbers of a minibatch within a data set of ``size`` rows.
        """
        if x is not None and (x.dim() != 2 or x.shape[-1] != self.features):
            raise DataError(f"rows must be (N, {self.features}), not {tuple(x.shape)}")
        self._warn_if_shared()
        weights, components = MixtureWeights(self.weights), self.component_distributions()
        with data_plate(x, index, size):
            z = pyro.sample("z", weights)
            return pyro.sample("x", components[z], obs=x)

    def _warn_if_shared(self) -> None:
        """Pyro's store knows params by name alone: a second model would silently continue with the first one's."""
        if self._checked_store:
            return
        self._checked_store = True
        own = {name.removesuffix("_unconstrained"): leaf for name, leaf in self.named_parameters()}
        stored = dict(pyro.get_param_store().named_parameters())
        shared = sorted(name for name, leaf in own.items() if name in stored and stored[name] is not leaf)
        if shared and not pyro.settings.get("module_local_params"):
            warnings.warn(
                f"this model takes the values of {shared} from Pyro's param store, where another model of the process "
                "left them: call pyro.clear_param_store() before it, or keep params apart with "
                "pyro.settings.set(module_local_params=True)",
                SharedParamsWarning,
                stacklevel=3,
            )
