"""Batches of component distributions, and the lazy selection ``components[z]``."""

from abc import abstractmethod
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_mixtures.distributions.indexing import flat_index
from pyro_mixtures.distributions.shapes import broadcast
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError

_VALID = "_pyro_mixtures_valid"


class Components(TorchDistribution):
    """C component distributions of one family, batch shape (..., C). ``self[z]`` selects one a row, lazily.

    A family states its argument names in ``argument_names``, how to evaluate, sample and average at
    flat component numbers, and (for closed-form EM) its sufficient statistics and their maximiser.
    """

    argument_names: tuple[str, ...]
    location: str | None = (
        None  # the argument that places a component among the rows, for split_loc()
    )
    on_kernels = False  # whether the kernels of this package do nearly all of the work, on the CPU
    maximizes_in_parts = True  # whether maximize() may be given some of the components at a time
    leaves_one_out = False  # whether leave_one_out_at() exists

    def __init__(
        self, batch_shape: torch.Size, event_shape: torch.Size, *, validate_args: bool | None = None
    ):
        if validate_args is not False and self._validated():
            validate_args = False
        super().__init__(batch_shape, event_shape, validate_args=validate_args)
        if self._validate_args:
            for argument in self.arguments.values():
                argument.__dict__[_VALID] = (type(self), argument._version)

    def _validated(self) -> bool:
        """Whether the arguments are the tensors that a family of this type has found valid before, unchanged since.

        Looking at every number of very large parameters again, in every run of a program, would
        cost as much as a step.
        """
        return all(
            t.__dict__.get(_VALID) == (type(self), t._version) for t in self.arguments.values()
        )

    def __getitem__(self, z: Tensor) -> "Selected":
        """The distribution of rows whose component is ``z`` (...); nothing is gathered until it is evaluated."""
        return Selected(self, z)

    @property
    def components(self) -> int:
        """C, the number of components."""
        return self.batch_shape[-1]

    @property
    def arguments(self) -> dict[str, Tensor]:
        """The tensors that were given, by name and identity."""
        return {name: getattr(self, name) for name in self.argument_names}

    def is_own(self, argument: str) -> bool:
        """Whether every component has its own value of ``argument`` (rather than a tied one)."""
        lead = getattr(self, argument).dim() - self.arg_constraints[argument].event_dim
        return lead > 0 and getattr(self, argument).shape[lead - 1] == self.components

    def flat(self, argument: Tensor, event_dim: int) -> Tensor:
        """``argument`` with all batch dimensions expanded and flattened into one."""
        event = argument.shape[argument.dim() - event_dim :]
        return argument.expand(self.batch_shape + event).reshape((self.batch_shape.numel(), *event))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value`` (..., C or 1, *event) under each component, (..., C)."""
        return self[torch.arange(self.components, device=value.device)].log_prob(value)

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        return self[self._all()].rsample(sample_shape)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        return self[self._all()].sample(sample_shape)

    @property
    def mean(self) -> Tensor:
        return self[self._all()].mean

    def _all(self) -> Tensor:
        return torch.arange(self.components, device=getattr(self, self.argument_names[0]).device)

    @abstractmethod
    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Log density of ``value`` (*batch, *event) at flat component numbers ``index`` (-1: -inf), broadcast."""

    @abstractmethod
    def sample_at(self, index: Tensor) -> Tensor:
        """One draw (*index.shape, *event) from each numbered component; reparameterised where that exists."""

    @abstractmethod
    def mean_at(self, index: Tensor) -> Tensor:
        """Means (*index.shape, *event)."""

    @property
    @abstractmethod
    def min_rows(self) -> int:
        """A component with fewer rows than this cannot support its own parameters: it is dead."""

    def redundant(self, free: frozenset[str]) -> int:
        """Return in how many directions the ``free`` arguments can move without changing a density."""
        return 0

    @abstractmethod
    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor, into: Any = None) -> Any:
        """Sums over ``value`` rows under responsibilities ``weight`` (shape of ``index``), added to ``into``."""

    def finish(self, sums: Any) -> Any:
        """Sufficient statistics from the sums of :meth:`statistics_at`, which may be overwritten."""
        return sums

    def floor(self, sums: Any, fraction: float) -> Tensor | None:
        """Smallest variances (D,) that :meth:`maximize` is to allow; None for families that have none."""
        return None

    @abstractmethod
    def maximize(self, statistics: Any, free: frozenset[str], *, floor: Any) -> dict[str, Tensor]:
        """The ``free`` arguments that maximise the expected log density, each in the shape it was given."""

    def partition_statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> Any:
        """What :meth:`leave_one_out_at` has to know of the partition ``index`` (B,), -1 outside, all its rows given."""
        return self.finish(self.statistics_at(index, value, weight))

    def leave_one_out_at(
        self, statistics: Any, index: Tensor, value: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        r"""What each row (B,) adds to the minimal loss of its part ``index``, f(S) - f(S \ i); loss is -log density.

        :param statistics: of the partition that ``index`` belongs to, all its rows included.
        :param weight: (B,) how many times each row's loss counts in f, as it did in the statistics;
            once by default.
        """
        raise self._does_not_state("what a row adds to its part")

    def split(self, component: int, row: Tensor | None, statistics: Any) -> dict[str, Tensor]:
        """Arguments of a half split off the ``component`` (flat number), where they differ from its own.

        The others are copied. A half without any difference would stay the other's copy for good.

        :param row: a row of the component's, as the site observed it, if one is known.
        :param statistics: of all components.
        """
        if self.location is None or row is None:
            return {}
        return {self.location: self.split_loc(component, row.to(self.arguments[self.location]))}

    def split_loc(self, component: int, row: Tensor) -> Tensor:
        """The location (D,) of a half split off the ``component`` (flat number) towards ``row`` (D,)."""
        raise self._does_not_state("where a split component is to go")

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Minimal loss (*index.shape) of a part that holds this row alone."""
        raise self._does_not_state("the loss of a row by itself")

    def _does_not_state(self, what: str) -> ClosedFormError:
        return ClosedFormError(
            f"{type(self).__name__} does not state {what}: use a family that does"
        )

    def part(self, some: slice) -> "Components":
        """The components ``some`` alone; needs one batch dimension. Views of their arguments, nothing is copied."""
        arguments: Any = {
            name: value[some] if self.is_own(name) else value
            for name, value in self.arguments.items()
        }
        return self.of(arguments)

    def of(self, arguments: dict[str, Any]) -> "Components":
        """The same family of other arguments, unchecked."""
        return type(self)(**arguments, validate_args=False)


class Selected(TorchDistribution):
    """Rows whose component is known: ``components[z]``, batch shape that of ``z`` (with the components' own)."""

    arg_constraints = {}

    def __init__(self, components: Components, z: Tensor, *, batch_shape: torch.Size | None = None):
        self.family, self.z = components, z
        lead = self.lead
        if z.is_floating_point():
            raise DataError(f"components are selected by integers, not by {z.dtype}")
        self.has_rsample = components.has_rsample
        shape = broadcast(lead, z.shape) if batch_shape is None else torch.Size(batch_shape)
        super().__init__(shape, components.event_shape, validate_args=False)

    @property
    def lead(self) -> torch.Size:
        """Batch dimensions of the parameters, with a place for the rows: P particles are (P, 1) against B rows."""
        lead = self.family.batch_shape[:-1]
        return lead if lead[-1:] in ((), (1,)) else torch.Size((*lead, 1))

    @property
    def support(self):
        return self.family.support

    def expand(self, batch_shape, _instance=None):
        return Selected(self.family, self.z, batch_shape=batch_shape)

    def flat_index(self) -> Tensor:
        """Flat component number of every row, not expanded beyond what ``z`` and the components have."""
        return flat_index(self.z.long(), self.lead, self.family.components)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = broadcast(self._rows_shape(value), self.batch_shape)
        return self.family.log_prob_at(self.flat_index().expand(shape), value)

    def of_family(self, family: Components) -> "Selected":
        """The same rows, of another family of the same shape."""
        return Selected(family, self.z, batch_shape=self.batch_shape)

    def statistics(self, value: Tensor, weight: Tensor, into: Any = None) -> Any:
        """Sums over the rows under responsibilities ``weight`` (batch shape), added to ``into``; see ``finish``."""
        if self.family.batch_shape[:-1].numel() != 1:
            raise ClosedFormError(
                "closed-form statistics need one set of parameters, not a batch of them"
            )
        shape = broadcast(self._rows_shape(value), self.batch_shape)
        return self.family.statistics_at(
            self.flat_index().expand(shape), value, weight.expand(shape), into
        )

    def _rows_shape(self, value: Tensor) -> torch.Size:
        event = self.event_shape
        if value.shape[value.dim() - len(event) :] != event:
            raise DataError(
                f"rows of shape {tuple(value.shape)} do not end in the components' event shape {tuple(event)}; "
                f"pass rows (N, {', '.join(map(str, event))})"
            )
        return value.shape[: value.dim() - len(event)]

    def _expanded_index(self, sample_shape=torch.Size()) -> Tensor:
        return self.flat_index().clamp_min(0).expand(torch.Size(sample_shape) + self.batch_shape)

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        if not self.has_rsample:
            raise NotImplementedError(
                f"{type(self.family).__name__} has no reparameterised sampler"
            )
        return self.family.sample_at(self._expanded_index(sample_shape))

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.family.sample_at(self._expanded_index(sample_shape))

    @property
    def mean(self) -> Tensor:
        return self.family.mean_at(self._expanded_index())


def match_dtype(value: Tensor, like: Tensor) -> Tensor:
    """Widen ``value`` to the dtype of the parameters ``like``; a narrowing is refused."""
    if value.dtype == like.dtype:
        return value
    if torch.promote_types(value.dtype, like.dtype) != like.dtype:
        raise DataError(
            f"rows are {value.dtype} but the parameters {like.dtype}: cast one, for example model.double() or x.float()"
        )
    return value.to(like.dtype)


def check_floating(name: str, *arguments: Tensor) -> None:
    """Refuse dtypes in which a mixture cannot be computed."""
    for argument in arguments:
        if not argument.is_floating_point():
            raise OptionError(f"{name} needs floating-point parameters, not {argument.dtype}")
        if argument.device.type == "cpu" and argument.dtype in (torch.float16, torch.bfloat16):
            raise OptionError(
                f"{name} in {argument.dtype} on the CPU is not supported: use float32 or float64"
            )


def batch_shape_of(*shapes: torch.Size) -> torch.Size:
    """Broadcast batch shape; at least one dimension, the components'."""
    shape = broadcast(*shapes)
    return shape if shape else torch.Size([1])
