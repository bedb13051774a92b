"""Distributions of a mixture's discrete site: their base class, and the mixture weights."""

import math
from abc import abstractmethod
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.indexing import flat_index
from pyro_mixtures.distributions.shapes import Shape, broadcast
from pyro_mixtures.distributions.statistics import ComponentCounts, add
from pyro_mixtures.errors import ClosedFormError, OptionError
from pyro_mixtures.ops.lookup import count_weights, take


class ComponentWeights(TorchDistribution):
    """Base class of distributions over C component numbers that have a closed-form M-step.

    A subclass keeps the tensors that it was given, and defines ``arguments``, ``components``,
    ``log_prob``, ``sample``, ``expand`` and the M-step. Its log probability at the padding value -1
    is -inf. Its statistics have an attribute ``counts`` (C,), the expected numbers of rows.
    """

    has_enumerate_support = True

    @property
    @abstractmethod
    def arguments(self) -> dict[str, Tensor]:
        """The argument tensors by name: the very objects that were given."""

    @property
    @abstractmethod
    def components(self) -> int:
        """C, the number of components."""

    @property
    def min_rows(self) -> int:
        """Rows that a component needs for its probability: none."""
        return 0

    @abstractmethod
    def redundant(self, free: frozenset[str]) -> int:
        """Return the number of directions of ``free`` arguments that leave probabilities alone.

        Directions that the arguments' constraints exclude do not count.
        """

    def statistics(self, value: Tensor, weight: Tensor, into: Any = None) -> Any:
        """Return sums over rows of components ``value`` under responsibilities ``weight``.

        :param value: component numbers, broadcast to ``weight``; -1 is padding.
        :param into: sums of earlier batches, which are added to and may be overwritten.
        :returns: the sums, with the expected numbers of rows as ``counts`` (C,).
        """
        sums = self.statistics_of(value, weight)
        return sums if into is None else add(into, sums)

    @abstractmethod
    def statistics_of(self, value: Tensor, weight: Tensor) -> Any:
        """Return the :meth:`statistics` of one batch."""

    def finish(self, sums: Any) -> Any:
        """Return the sufficient statistics for the ``sums`` over all rows: these sums."""
        return sums

    def maximize(
        self, statistics: Any, free: frozenset[str], *, dropped: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the ``free`` arguments that maximize the expected log probability.

        :param dropped: (C,) components that get probability zero, which EM cannot raise again.
        :returns: the free arguments by name, in the shapes in which they were given.
        :raises ClosedFormError: when these arguments have no closed form.
        """
        return self.maximizers(statistics, free, dropped) if free else {}

    @abstractmethod
    def maximizers(
        self, statistics: Any, free: frozenset[str], dropped: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the ``free`` arguments (never none) as :meth:`maximize` does."""

    @abstractmethod
    def halve(self, values: dict[str, Tensor], component: int, like: int) -> None:
        """Give ``component`` half the probability of ``like``, in place in the arguments."""

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, self.components - 1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        device = next(iter(self.arguments.values())).device
        values = torch.arange(self.components, device=device).reshape(
            (-1,) + (1,) * len(self.batch_shape)
        )
        return values.expand((-1, *self.batch_shape)) if expand else values


class MixtureWeights(ComponentWeights):
    """Categorical distribution over C components.

    Unlike ``dist.Categorical`` it keeps the tensor it was given, so that the closed-form M-step
    recognizes the param behind it, and its log_prob gathers from one (C,) table: nothing of size
    (values, C) is allocated, in the backward pass either. Components of weight zero and the padding
    value -1 have log probability -inf and receive no gradient.

    :param probs: (..., C) on the simplex.
    :param logits: (..., C) unnormalized log probabilities, instead of ``probs``.
    :raises OptionError: unless exactly one of the two is given.

    >>> MixtureWeights(torch.tensor([0.25, 0.75])).log_prob(torch.tensor([1, 1, 0])).exp()
    tensor([0.7500, 0.7500, 0.2500])
    """

    arg_constraints = {
        "probs": constraints.simplex,
        "logits": constraints.independent(constraints.real, 1),
    }

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if (probs is None) == (logits is None):
            raise OptionError(
                f"MixtureWeights got {'neither' if probs is None else 'both'} of probs and logits: "
                "pass one of them"
            )
        if probs is not None:
            self.probs = given = probs
        elif logits is not None:
            self.logits = given = logits
        self._given = given
        # torch checks every argument named here: only the one that was given exists.
        self.arg_constraints = {name: type(self).arg_constraints[name] for name in self.arguments}
        super().__init__(given.shape[:-1], torch.Size(), validate_args=validate_args)

    @property
    def arguments(self) -> dict[str, Tensor]:
        """The tensor that was given, by name."""
        return {name: self.__dict__[name] for name in ("probs", "logits") if name in self.__dict__}

    @property
    def components(self) -> int:
        """C, the number of components."""
        return self._given.shape[-1]

    def redundant(self, free: frozenset[str]) -> int:
        # Logits are identified up to a constant; the simplex leaves probs no such freedom.
        return self._given.shape[:-1].numel() if "logits" in free else 0

    @property
    def param_shape(self) -> torch.Size:
        """Shape of the tensor that was given, as in ``dist.Categorical``."""
        return self._given.shape

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "MixtureWeights":
        new: MixtureWeights = self._get_checked_instance(MixtureWeights, _instance)
        new.__dict__.update(self.arguments)
        new._given = self._given
        super(MixtureWeights, new).__init__(
            torch.Size(batch_shape), torch.Size(), validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def table(self) -> Tensor:
        """Return log weights (..., C); where a weight is zero, -inf with gradient zero."""
        if "logits" in self.__dict__:
            return self.logits.log_softmax(-1)
        floor = torch.finfo(self.probs.dtype).tiny
        return torch.where(self.probs > 0, self.probs.clamp_min(floor).log(), -torch.inf)

    def log_prob(self, value: Tensor) -> Tensor:
        table = self.table()
        shape = broadcast(value.shape, self.batch_shape)
        index = flat_index(value.long(), table.shape[:-1], self.components)
        return take(table.reshape(-1), index).expand(shape)

    def statistics_of(self, value: Tensor, weight: Tensor) -> ComponentCounts:
        """Return responsibility-weighted counts of the components."""
        if value.shape[-1:] == (1,):  # all rows have the same candidates
            weight = weight.sum(-1, keepdim=True, dtype=torch.float64)
        counts = count_weights(
            value.expand(weight.shape).reshape(-1), weight.reshape(-1), self.components
        )
        return ComponentCounts(counts)

    def maximizers(
        self, statistics: ComponentCounts, free: frozenset[str], dropped: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the maximum-likelihood weights, as the argument that was given."""
        if self._given.shape[:-1].numel() != 1:
            raise ClosedFormError(
                f"weights {tuple(self._given.shape)} with batch dimensions have no closed form: "
                "use SVI"
            )
        counts = (
            statistics.counts if dropped is None else statistics.counts.masked_fill(dropped, 0.0)
        )
        shares = (counts / counts.sum()).to(self._given.dtype).reshape(self._given.shape)
        return {name: shares if name == "probs" else shares.log() for name in free}

    def halve(self, values: dict[str, Tensor], component: int, like: int) -> None:
        for argument, value in values.items():
            value[like] = value[like] / 2 if argument == "probs" else value[like] - math.log(2)
            value[component] = value[like]

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            probs = self.table().exp()
            lead = probs.shape[:-1]
            draws = probs.reshape(-1, self.components).multinomial(
                max(1, shape.numel()), replacement=True
            )
            if lead.numel() == 1:
                return draws.reshape(-1)[: shape.numel()].reshape(shape)
            rows = (
                torch.arange(lead.numel(), device=probs.device)
                .reshape(lead)
                .expand(shape)
                .reshape(-1)
            )
            return draws[rows, torch.arange(len(rows), device=probs.device)].reshape(shape)
