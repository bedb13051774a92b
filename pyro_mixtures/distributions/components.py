"""The base class of component families, and the lazy selection ``components[z]``."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_mixtures.data.exact import as_floating
from pyro_mixtures.distributions.indexing import flat_index, once
from pyro_mixtures.distributions.shapes import Shape, broadcast
from pyro_mixtures.distributions.statistics import add
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError
from pyro_mixtures.ops.memo import TensorMemo

# The type of family that found a tensor valid. Checking every entry of very large parameters again
# in every run of a program would cost as much as an EM step.
_VALIDATED: TensorMemo[type] = TensorMemo()

_NORMAL_FAMILIES = "use IsotropicNormals, DiagonalNormals, FullNormals or FactorAnalyzers"
_NO_LEAVE_ONE_OUT = "use score='loss', or a family that implements them"


class Components(TorchDistribution):
    """C component distributions of one family, batch shape (..., C).

    ``self[z]`` selects one component per row. This class is the contract between families and
    algorithms. Most new families are easier to write as a
    :class:`~pyro_mixtures.distributions.GatheredComponents`, which needs formulas only. Subclass
    ``Components`` itself when a faster evaluation exists: a matrix product, a table or a kernel.

    Methods that end in ``_at`` take flat component numbers ``index``. Callers reach them through
    ``self[z]`` (:class:`Selected`) and :meth:`maximize`, which handle three things so that families
    need not:

    - *Padding.* Candidate sets are padded with -1. ``Selected`` replaces the log density there by
      -inf. ``sample_at``, ``mean_at`` and the optional methods are never called with -1.
    - *Accumulation.* ``statistics_at`` returns the sums of one batch; ``Selected`` adds batches up.
    - *Frozen arguments.* :meth:`maximizers` is called only if an argument is free, and
      :meth:`maximize` discards what it returns for frozen arguments.
    """

    argument_names: tuple[str, ...]
    # Keywords of the constructor, and attributes, that are shared by all components and are not
    # estimated: options, covariates.
    option_names: tuple[str, ...] = ()
    location: str | None = None  # the argument that lies among the rows, if any; see split_loc()
    pads = False  # whether log_prob_at() itself returns -inf where the index is -1
    on_kernels = False  # whether this package's CPU kernels do nearly all of the work
    maximizes_in_blocks = True  # whether maximize() may get one block of components at a time
    leaves_one_out = False  # whether leave_one_out_at() and alone_at() are stated

    def __init__(
        self, batch_shape: torch.Size, event_shape: torch.Size, *, validate_args: bool | None = None
    ):
        if validate_args is not False and self._is_validated():
            validate_args = False
        super().__init__(batch_shape, event_shape, validate_args=validate_args)
        if self._validate_args:
            for argument in self.arguments.values():
                _VALIDATED.set(argument, type(self))

    def _is_validated(self) -> bool:
        """Whether this type of family has validated these very tensors, unchanged since."""
        return all(_VALIDATED.get(argument) is type(self) for argument in self.arguments.values())

    def __getitem__(self, z: Tensor) -> "Selected":
        """Return the distribution of rows whose component is ``z`` (...), without a gather."""
        return Selected(self, z)

    @property
    def components(self) -> int:
        """C, the number of components."""
        return self.batch_shape[-1]

    @property
    def arguments(self) -> dict[str, Tensor]:
        """The argument tensors by name: the very objects that were given."""
        return {name: getattr(self, name) for name in self.argument_names}

    def is_per_component(self, argument: str) -> bool:
        """Return whether each component has its own value of ``argument``, which else is tied."""
        tensor = self.arguments[argument]
        batch_dims = tensor.dim() - self.arg_constraints[argument].event_dim
        return batch_dims > 0 and tensor.shape[batch_dims - 1] == self.components

    def flat(self, argument: Tensor, event_dim: int) -> Tensor:
        """Return ``argument`` with its batch dimensions expanded and flattened into one."""
        event = argument.shape[argument.dim() - event_dim :]
        return argument.expand(self.batch_shape + event).reshape((self.batch_shape.numel(), *event))

    def subset(self, block: slice) -> "Components":
        """Return the components ``block`` alone, their arguments as views; for batch shape (C,)."""
        return self.with_arguments(
            {
                name: tensor[block] if self.is_per_component(name) else tensor
                for name, tensor in self.arguments.items()
            }
        )

    def with_arguments(self, arguments: Mapping[str, Tensor]) -> "Components":
        """Return the same family with other ``arguments``, which are not validated."""
        options = {name: getattr(self, name) for name in self.option_names}
        make: Any = type(self)
        return make(**arguments, **options, validate_args=False)

    # Pyro's interface for all components at once.

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log densities (..., C) of ``value`` (..., C or 1, *event) under all components."""
        return self[torch.arange(self.components, device=value.device)].log_prob(value)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        return self[self._all()].rsample(sample_shape)

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        return self[self._all()].sample(sample_shape)

    @property
    def mean(self) -> Tensor:
        return self[self._all()].mean

    def _all(self) -> Tensor:
        device = self.arguments[self.argument_names[0]].device
        return torch.arange(self.components, device=device)

    # What every family defines.

    @abstractmethod
    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Return the log densities of rows ``value`` (*batch, *event) under components ``index``.

        The two broadcast. Where the index is -1 the result is ignored, unless ``pads`` is set.
        """

    @abstractmethod
    def sample_at(self, index: Tensor) -> Tensor:
        """Return one row drawn from each numbered component, (*index.shape, *event).

        Draws are reparameterized if ``has_rsample`` is set.
        """

    @abstractmethod
    def mean_at(self, index: Tensor) -> Tensor:
        """Return the means (*index.shape, *event) of the numbered components."""

    @property
    @abstractmethod
    def min_rows(self) -> int:
        """Rows that a component's parameters need; a component with fewer counts as empty."""

    # The closed-form M-step.

    def redundant(self, free: frozenset[str]) -> int:
        """Return the number of directions of ``free`` arguments that leave all densities alone."""
        return 0

    @abstractmethod
    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> Any:
        """Return sums over the rows ``value`` under responsibilities ``weight`` (*index.shape).

        Pairs of index -1 contribute nothing, even if their rows hold NaN.
        """

    def add_statistics_at(self, sums: Any, index: Tensor, value: Tensor, weight: Tensor) -> Any:
        """Return ``sums``, which may be overwritten, plus those of :meth:`statistics_at`."""
        return add(sums, self.statistics_at(index, value, weight))

    def finish(self, sums: Any) -> Any:
        """Return the sufficient statistics for ``sums`` over all rows; may be called repeatedly."""
        return sums

    def floor(self, sums: Any, fraction: float) -> Tensor | None:
        """Return the smallest variances (D,) that :meth:`maximize` may set, None if there are none.

        :param fraction: of the variances of the whole data set.
        """
        return None

    def maximize(
        self, statistics: Any, free: frozenset[str], *, floor: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the ``free`` arguments that maximize the expected log density.

        :param statistics: those of :meth:`finish`.
        :param free: names of the arguments to estimate; all others keep their values.
        :param floor: that of :meth:`floor`.
        :returns: the free arguments by name, in the shapes in which they were given.
        :raises ClosedFormError: when these arguments have no closed form.
        """
        if not free:
            return {}
        maximizers = self.maximizers(statistics, free, floor)
        return {name: maximizers[name] for name in sorted(free)}

    @abstractmethod
    def maximizers(
        self, statistics: Any, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        """Return at least the ``free`` arguments (never none) at the maximum, given all others."""

    def split(self, component: int, row: Tensor | None, statistics: Any) -> dict[str, Tensor]:
        """Return the arguments in which a new half of ``component`` (flat number) differs from it.

        The remaining arguments are copied. Two identical components would never separate.

        :param row: one of the component's rows, as the site observed it, if one is known.
        :param statistics: sums of all components.
        """
        if self.location is None or row is None:
            return {}
        return {self.location: self.split_loc(component, row.to(self.arguments[self.location]))}

    # Optional capabilities.

    def split_loc(self, component: int, row: Tensor) -> Tensor:
        """Return the location (D,) of a new half of ``component``, moved toward ``row`` (D,)."""
        raise self.does_not_implement("split_loc()", "leave location = None, or implement it")

    def partition_statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> Any:
        """Return what :meth:`leave_one_out_at` needs to know about a partition of all rows.

        :param index: (B,) cluster of each row, -1 for rows outside.
        """
        return self.finish(self.statistics_at(index, value, weight))

    def leave_one_out_at(
        self, statistics: Any, index: Tensor, value: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        r"""Return what each row (B,) adds to the minimal loss of its cluster, f(S) - f(S \ i).

        The loss is minus the log density.

        :param statistics: those of :meth:`partition_statistics_at`, all rows included.
        :param index: (B,) cluster of each row.
        :param weight: (B,) how many times each row's loss counts in f, the same as in the
            statistics; once by default.
        """
        raise self.does_not_implement("leave-one-out gains", _NO_LEAVE_ONE_OUT)

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Return the minimal loss (*index.shape) of a cluster that consists of this row alone."""
        raise self.does_not_implement("the losses of single rows", _NO_LEAVE_ONE_OUT)

    def signal_at(self, index: Tensor, value: Tensor, noise: Tensor | None) -> Tensor:
        """Return the posterior mean (*index.shape, D) of the noise-free row.

        :param noise: variances (D,) of the noise; None takes the family's own noise, if it has any.
        """
        raise self.does_not_implement("the signal in a noisy row", _NORMAL_FAMILIES)

    def marginal(self, features: Tensor) -> "Components":
        """Return the same components for some of the ``features`` (numbers) only."""
        raise self.does_not_implement(
            "the marginal distribution of some features", _NORMAL_FAMILIES
        )

    def conditional_mean_at(self, index: Tensor, seen: Tensor, features: Tensor) -> Tensor:
        """Return the mean (*index.shape, D) of the whole row given some features.

        :param seen: values (..., F) of those features.
        :param features: their numbers (F,).
        """
        raise self.does_not_implement("the mean of a row given some features", _NORMAL_FAMILIES)

    def does_not_implement(self, what: str, remedy: str) -> ClosedFormError:
        """Return the error for a capability that this family lacks."""
        return ClosedFormError(f"{type(self).__name__} does not implement {what}: {remedy}")


class Selected(TorchDistribution):
    """Rows whose component is known: ``components[z]``.

    The batch shape is that of ``z``, broadcast with leading batch dimensions of the components.

    >>> from pyro_mixtures.distributions import DiagonalNormals
    >>> components = DiagonalNormals(torch.tensor([[0.0], [5.0]]), torch.ones(2, 1))
    >>> rows = components[torch.tensor([1, 0, -1])]
    >>> rows.log_prob(torch.tensor([[5.0], [5.0], [5.0]]))
    tensor([ -0.9189, -13.4189,     -inf])
    """

    arg_constraints = {}

    def __init__(self, components: Components, z: Tensor, *, batch_shape: Shape | None = None):
        self.family, self.z = components, z
        lead = self.lead
        if z.is_floating_point():
            raise DataError(f"components are selected by integers, not by {z.dtype}: pass z.long()")
        self.has_rsample = components.has_rsample
        shape = broadcast(lead, z.shape) if batch_shape is None else torch.Size(batch_shape)
        super().__init__(shape, components.event_shape, validate_args=False)

    @property
    def lead(self) -> torch.Size:
        """Leading batch dimensions of the components, and one for rows: (P, 1) for P particles."""
        lead = self.family.batch_shape[:-1]
        return lead if lead[-1:] in ((), (1,)) else torch.Size((*lead, 1))

    @property
    def support(self) -> Any:
        return self.family.support

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "Selected":
        return Selected(self.family, self.z, batch_shape=batch_shape)

    def flat_index(self) -> Tensor:
        """Return the flat component number of every row, not yet expanded to the batch shape."""
        return flat_index(self.z.long(), self.lead, self.family.components)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = broadcast(self._rows_shape(value), self.batch_shape)
        index = self.flat_index().expand(shape)
        log_prob = self.family.log_prob_at(index, value)
        return log_prob if self.family.pads else torch.where(once(index) < 0, -torch.inf, log_prob)

    def of_family(self, family: Components) -> "Selected":
        """Return the same rows of another family of the same shape."""
        return Selected(family, self.z, batch_shape=self.batch_shape)

    def statistics(self, value: Tensor, weight: Tensor, into: Any = None) -> Any:
        """Return sums over the rows ``value`` under responsibilities ``weight``.

        :param weight: broadcasts to the batch shape.
        :param into: sums of earlier batches, which are added to and may be overwritten.
        :returns: sums for :meth:`Components.finish`.
        :raises ClosedFormError: for components with leading batch dimensions or no closed form.
        """
        family = self.family
        if family.batch_shape[:-1].numel() != 1:
            raise ClosedFormError(
                "closed-form statistics need one set of parameters, not a batch of "
                f"{tuple(family.batch_shape[:-1])}: run EM on one model at a time, or use SVI"
            )
        shape = broadcast(self._rows_shape(value), self.batch_shape)
        index, weight = self.flat_index().expand(shape), weight.expand(shape)
        if into is None:
            return family.statistics_at(index, value, weight)
        return family.add_statistics_at(into, index, value, weight)

    def _rows_shape(self, value: Tensor) -> torch.Size:
        event = self.event_shape
        if value.shape[value.dim() - len(event) :] != event:
            raise DataError(
                f"rows of shape {tuple(value.shape)} do not end in the components' event shape "
                f"{tuple(event)}; pass rows (N, {', '.join(map(str, event))})"
            )
        return value.shape[: value.dim() - len(event)]

    def _expanded_index(self, sample_shape: Shape = torch.Size()) -> Tensor:
        return self.flat_index().clamp_min(0).expand(torch.Size(sample_shape) + self.batch_shape)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        if not self.has_rsample:
            raise NotImplementedError(
                f"{type(self.family).__name__} has no reparameterized sampler: use sample()"
            )
        return self.family.sample_at(self._expanded_index(sample_shape))

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.family.sample_at(self._expanded_index(sample_shape))

    @property
    def mean(self) -> Tensor:
        return self.family.mean_at(self._expanded_index())


def match_dtype(value: Tensor, like: Tensor) -> Tensor:
    """Widen ``value`` to the dtype of the parameters ``like``.

    :raises DataError: when that would lose precision, of integers too.
    """
    if value.dtype == like.dtype:
        return value
    if torch.promote_types(value.dtype, like.dtype) != like.dtype:
        raise DataError(
            f"rows are {value.dtype} but the parameters {like.dtype}: "
            "cast one, for example model.double() or x.float()"
        )
    return as_floating(value, like.dtype)


def check_floating(name: str, *arguments: Tensor) -> None:
    """Refuse dtypes in which a mixture cannot be computed."""
    for argument in arguments:
        if not argument.is_floating_point():
            raise OptionError(
                f"{name} needs floating-point parameters, not {argument.dtype}: pass .float()"
            )
        if argument.device.type == "cpu" and argument.dtype in (torch.float16, torch.bfloat16):
            raise OptionError(
                f"{name} in {argument.dtype} on the CPU is not supported: use float32 or float64"
            )


def batch_shape_of(*shapes: torch.Size) -> torch.Size:
    """Return the broadcast batch shape; it has at least one dimension, that of the components."""
    shape = broadcast(*shapes)
    return shape if shape else torch.Size([1])
