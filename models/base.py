"""What the mixtures share: weights, means or covariates, and the plain Pyro programs."""

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions import Components, IsotropicNormals, MixtureWeights
from pyro_mixtures.errors import DataError, SharedParamsWarning
from pyro_mixtures.init import Seeds
from pyro_mixtures.options import check_flag, check_number, check_whole
from pyro_mixtures.poutine import data_plate


class MixtureProgram(PyroModule):
    """Weights (C,) of C components: a param, or constant and equal.

    Constant weights leave a hard partition's objective to the losses of the components alone.
    """

    # PyroParams: tensors when read. Any, since their class says otherwise to a type checker.
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

    def _warn_if_shared(self) -> None:
        """Pyro's store knows params by name alone: a model would silently continue with another one's, for good.

        Looked at in every run, as models fitted in turn come back: evidence of the first, after the
        second was fitted.
        """
        own = {name.removesuffix("_unconstrained"): leaf for name, leaf in self.named_parameters()}
        stored = dict(pyro.get_param_store().named_parameters())
        shared = sorted(
            name for name, leaf in own.items() if name in stored and stored[name] is not leaf
        )
        if shared and not pyro.settings.get("module_local_params"):
            warnings.warn(
                f"this model takes the values of {shared} from Pyro's param store, where another model of the process "
                "left them: call pyro.clear_param_store() before it, or keep params apart with "
                "pyro.settings.set(module_local_params=True)",
                SharedParamsWarning,
                stacklevel=3,
            )


class RowMixture(MixtureProgram):
    """A mixture over rows (B, D), whose components have places among them that can be seeded."""

    @abstractmethod
    def component_distributions(self) -> Components:
        """The C component distributions of the present parameters."""

    @abstractmethod
    def place(self, seeds: Seeds) -> None:
        """Put the components at ``seeds`` of as many components and features, without gradients.

        Params must not share memory with the seeds, which may be views of the rows: steps are taken
        in place.
        """

    def start_at(self, seeds: Seeds) -> None:
        """Put the components at ``seeds`` of :func:`pyro_mixtures.init.seed_rows`, with equal weights.

        :raises DataError: when the seeds have another number of components or features.
        """
        if seeds.loc.shape != (self.components, self.features):
            raise DataError(
                f"seeds are {tuple(seeds.loc.shape)}, the model needs {(self.components, self.features)}"
            )
        with torch.no_grad():
            self.weights = torch.full_like(self.weights, 1.0 / self.components)
            self.place(seeds)


class Mixture(RowMixture):
    """Params ``weights`` (C,) and ``loc`` (C, D), and the program of a mixture over rows ``x``.

    A family adds the params of its covariances and states how they make the components.
    """

    loc: Any

    def __init__(self, *, components: int, features: int):
        super().__init__(components=components, features=features)
        self.loc = PyroParam(torch.randn(components, features))

    @abstractmethod
    def set_variance(self, variance: Tensor) -> None:
        """Start every component with the variances (D,) of the data."""

    def place(self, seeds: Seeds) -> None:
        """Means at the seeds, the data's variance."""
        self.loc = seeds.loc.to(self.loc, copy=True)
        self.set_variance(seeds.variance.to(self.loc))

    def forward(
        self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """The program: rows ``x`` (B, D) observed, or ``size`` rows drawn when ``x`` is None.

        :param index: (B,) row numbers of a minibatch within a data set of ``size`` rows.
        """
        if x is not None:
            self._check_rows(x)
        self._warn_if_shared()
        weights, components = MixtureWeights(self.weights), self.component_distributions()
        with data_plate(x, index, size):
            z = pyro.sample("z", weights)
            return pyro.sample("x", components[z], obs=x)


class ConditionalMixture(MixtureProgram):
    """The program of a mixture of experts without a gate: ``z ~ MixtureWeights(weights)``, ``y ~ expert[z](x)``.

    A family adds the experts' params and states how they make the components of a batch of
    covariates.

    :param input_density: None, or what a row pays for its distance from its expert's place (param
        ``loc`` (C, P)): ``input_density |x - loc[z]|^2 / P``, for standardised covariates about
        that much. Experts then own regions, where a gate can find them again; without it a
        partition may be one that only the outcomes tell apart. In the program it is a second
        observed site, ``x ~ Normal(loc[z], constant)``.
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
        """The C distributions of the outcome given covariates ``x`` (B, P)."""

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        index: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """The program: outcomes ``y`` (B, ...) of rows with covariates ``x`` (B, P) observed, or drawn when None.

        :param index: (B,) row numbers of a minibatch within a data set of ``size`` rows.
        """
        self._check_rows(x)
        if y is not None:
            check_tensor("outcomes", y)
            if len(y) != len(x):
                raise DataError(f"{len(y)} outcomes for {len(x)} rows of covariates")
        self._warn_if_shared()
        weights, components = MixtureWeights(self.weights), self.component_distributions(x)
        if y is not None and y.shape[1:] != components.event_shape:
            wanted = ", ".join(map(str, ("N", *components.event_shape)))
            raise DataError(
                f"outcomes must be ({wanted}{',' * (wanted == 'N')}), not {tuple(y.shape)}"
            )
        with data_plate(x, index, size):
            z = pyro.sample("z", weights)
            if self.input_density is not None:
                pyro.sample("x", IsotropicNormals(self.loc, self.spread)[z], obs=x)
            return pyro.sample("y", components[z], obs=y)


def check_tensor(name: str, value: Any) -> None:
    """Programs take tensors alone; the strategies of :mod:`pyro_mixtures.infer` take arrays too."""
    if not isinstance(value, Tensor) or not value.dim():
        given = (
            f"a tensor {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else f"{type(value).__name__}"
        )
        raise DataError(
            f"{name} must be a tensor (N, ...), not {given}: give torch.as_tensor({name})"
        )


def check_row_weight(row_weight: Tensor, rows: int) -> None:
    """Refuse ``row_weight`` that are not (rows,) finite numbers of zero or more.

    They may all be zero: strategies call programs with some of the rows, nobody's perhaps.

    :raises DataError: which names the first such row.
    """
    check_tensor("row_weight", row_weight)
    if row_weight.shape != (rows,):
        raise DataError(
            f"row_weight {tuple(row_weight.shape)} for {rows} rows: give one weight for each row"
        )
    wrong = ~(row_weight.isfinite() & (row_weight >= 0))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"row_weight of row {row} is {row_weight[row].item()}: weights are finite, and zero or more"
        )


def weighted(
    row_weight: Tensor | None, rows: int, *, dtype: torch.dtype | None = None
) -> AbstractContextManager[None]:
    """Context of sites whose rows count ``row_weight`` (rows,) times; None stands for once, zero for not at all.

    Weights are checked at once, before the context is entered, and cast to ``dtype``.

    :raises DataError: see :func:`check_row_weight`.
    """
    if row_weight is None:
        return nullcontext()
    check_row_weight(row_weight, rows)
    return _counted(row_weight.to(dtype or row_weight.dtype))


@contextmanager
def _counted(row_weight: Tensor) -> Iterator[None]:
    seen: Any = row_weight > 0
    if bool(seen.all()):
        with pyro.poutine.scale(scale=row_weight):
            yield
        return
    # Pyro scales by positive numbers alone, and knows zero as a mask.
    scale: Any = row_weight.masked_fill(~seen, 1)
    with pyro.poutine.scale(scale=scale), pyro.poutine.mask(mask=seen):
        yield
