"""Base class of families that are given by formulas for a row and its component's arguments."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.data.exact import check_exact
from pyro_mixtures.distributions.components import Components, match_dtype
from pyro_mixtures.distributions.indexing import once
from pyro_mixtures.distributions.statistics import add
from pyro_mixtures.errors import ClosedFormError

# Numbers of gathered rows and arguments alive at once when statistics are summed.
_NUMBERS = 1 << 22


class GatheredComponents(Components):
    """A family given by formulas: each row is evaluated with the arguments of its own component.

    This is the class to subclass for a new family. State ``argument_names``, ``arg_constraints``,
    ``support``, ``min_rows`` (and ``has_rsample``), a constructor that stores the arguments, and
    the five formulas below. They receive rows ``value`` (..., \\*event) and the arguments in the
    order of ``argument_names``, already gathered, so that they broadcast against the rows: an
    argument of event dimension 0 is (...), one of event dimension 1 is (..., D). Padding needs no
    attention.

    EM, SVI, scoring and hard clustering then work. Time and memory are proportional to the number
    of (row, component) pairs; the built-in families are faster because they use matrix products.

    >>> from typing import NamedTuple
    >>> from torch.distributions import constraints
    >>> class Sums(NamedTuple):
    ...     rows: Tensor
    ...     values: Tensor
    >>> class Rates(GatheredComponents):
    ...     argument_names = ("rate",)
    ...     arg_constraints = {"rate": constraints.positive}
    ...     support = constraints.nonnegative
    ...     min_rows = 1
    ...     def __init__(self, rate, *, validate_args=None):
    ...         self.rate = rate
    ...         super().__init__(rate.shape, torch.Size(), validate_args=validate_args)
    ...     def log_density(self, value, rate):
    ...         return rate.log() - rate * value
    ...     def draw(self, rate):
    ...         return torch.empty_like(rate).exponential_() / rate
    ...     def expectation(self, rate):
    ...         return 1 / rate
    ...     def row_statistics(self, value, rate):
    ...         return Sums(torch.ones_like(value), value)
    ...     def best_arguments(self, statistics):
    ...         return {"rate": statistics.rows / statistics.values}
    >>> Rates(torch.tensor([1.0, 2.0]))[torch.tensor([1, 0, -1])].log_prob(torch.ones(3))
    tensor([-1.3069, -1.0000,    -inf])
    """

    # Arguments that best_arguments() accepts as keywords, and holds fixed, when they are frozen.
    freezable: tuple[str, ...] = ()

    # Signatures that end in (*args: Any, **kwargs: Any) let type checkers accept formulas with
    # named arguments, such as log_density(self, value, rate).

    @abstractmethod
    def log_density(self, value: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Return the log density (...) of each row."""

    @abstractmethod
    def draw(self, *arguments: Any, **options: Any) -> Tensor:
        """Return one row (..., *event), drawn at random, for each entry of the arguments."""

    @abstractmethod
    def expectation(self, *arguments: Any, **options: Any) -> Tensor:
        """Return the means (..., *event)."""

    @abstractmethod
    def row_statistics(self, value: Tensor, *arguments: Any, **options: Any) -> Any:
        """Return each row's contributions to the sufficient statistics, a NamedTuple of (n, ...).

        EM multiplies contributions by responsibilities and sums them, in float64. They may
        depend on the present arguments, as the expected precisions of scale mixtures do.
        """

    @abstractmethod
    def best_arguments(self, statistics: Any, *options: Any, **frozen: Any) -> dict[str, Tensor]:
        """Return all arguments (C, ...) that maximize the expected log density, by name.

        :param statistics: the NamedTuple of :meth:`row_statistics`, summed over each component's
            rows: tensors (C, ...) in float64. The sums of components without rows are zero; they
            keep their present arguments where a quotient is NaN.
        :param frozen: present values (C, ...) of frozen arguments, of those named in ``freezable``.
        """

    # What follows from the formulas.

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        # Padding is evaluated with the first component's arguments; the caller ignores the result.
        arguments = self._gather(once(index).clamp_min(0))
        return self.log_density(self._rows(value), *arguments).expand(index.shape)

    def sample_at(self, index: Tensor) -> Tensor:
        return self.draw(*self._gather(index))

    def mean_at(self, index: Tensor) -> Tensor:
        return self.expectation(*self._gather(index))

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> Any:
        batch = value.shape[: value.dim() - len(self.event_shape)]
        rows = self._rows(value).reshape(batch.numel(), *self.event_shape)
        row_number = torch.arange(len(rows), device=rows.device).reshape(batch)
        # Rows without weight may hold anything, NaN included.
        counted = (index >= 0) & (weight > 0)
        component, weight = index[counted], weight[counted].double()
        row_number = row_number.expand(index.shape)[counted]
        numbers = self.event_shape.numel() + sum(
            tensor[0].numel() for tensor in self._flat_arguments()
        )
        step = max(1, _NUMBERS // numbers)
        sums = None
        for start in range(0, max(1, len(component)), step):
            block = slice(start, start + step)
            block_sums = self._sums(rows[row_number[block]], component[block], weight[block])
            sums = block_sums if sums is None else add(sums, block_sums)
        return sums

    def maximizers(
        self, statistics: Any, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        self._check_free(free)
        frozen = {
            name: tensor.double()
            for name, tensor in zip(self.argument_names, self._flat_arguments(), strict=True)
            if name not in free
        }
        best = self.best_arguments(statistics, **frozen)
        without_rows = torch.stack(
            [(total.unsqueeze(-1).flatten(1) == 0).all(-1) for total in statistics]
        ).all(0)
        return {name: self._where_known(name, best[name], without_rows) for name in free}

    def split(self, component: int, row: Tensor | None, statistics: Any) -> dict[str, Tensor]:
        """Return arguments halfway between the component's own and the best ones for ``row``."""
        if row is None:
            return {}
        index = torch.tensor([component], device=row.device)
        one_row, arguments = self._rows(row.unsqueeze(0)), self._gather(index)
        contributions = self.row_statistics(one_row, *arguments)
        best = self.best_arguments(type(contributions)(*(t.double() for t in contributions)))
        halfway = {
            name: own[0].lerp(best[name][0].to(own), 0.5)
            for name, own in zip(self.argument_names, arguments, strict=True)
        }
        return {name: value for name, value in halfway.items() if bool(value.isfinite().all())}

    def _rows(self, value: Tensor) -> Tensor:
        """Rows in the dtype of the arguments; integers as they are, if that dtype holds them."""
        like = self.arguments[self.argument_names[0]]
        if value.is_floating_point():
            return match_dtype(value, like)
        check_exact(value, like.dtype)
        return value

    def _flat_arguments(self) -> list[Tensor]:
        return [
            self.flat(tensor, self.arg_constraints[name].event_dim)
            for name, tensor in self.arguments.items()
        ]

    def _gather(self, index: Tensor) -> list[Tensor]:
        """Each argument (*index.shape, *its event) at the numbered components."""
        return [tensor[index] for tensor in self._flat_arguments()]

    def _sums(self, rows: Tensor, component: Tensor, weight: Tensor) -> Any:
        """Weighted sums (C, ...) of the contributions of (row, component) pairs."""
        contributions = self.row_statistics(rows, *self._gather(component))
        sums = []
        for contribution in contributions:
            event = contribution.shape[1:]
            weighted = weight.reshape(-1, *(1,) * len(event)) * contribution.double()
            zeros = weighted.new_zeros(self.batch_shape.numel(), *event)
            sums.append(zeros.index_add_(0, component, weighted))
        return type(contributions)(*sums)

    def _check_free(self, free: frozenset[str]) -> None:
        frozen = set(self.argument_names) - free - set(self.freezable)
        if frozen:
            raise ClosedFormError(
                f"{type(self).__name__} maximizes {', '.join(self.argument_names)} together, but "
                f"{', '.join(sorted(frozen))} is frozen: freeze all of them or none, or use SVI"
            )
        shared = [name for name in sorted(free) if not self.is_per_component(name)]
        if shared:
            raise ClosedFormError(
                f"components share {', '.join(shared)}, which has no closed form in "
                f"{type(self).__name__}: give each component its own, freeze it, or use SVI"
            )

    def _where_known(self, name: str, best: Tensor, without_rows: Tensor) -> Tensor:
        """The argument in its given shape; components without rows keep what is undefined."""
        present = self.arguments[name]
        best = best.to(present.dtype).reshape(present.shape)
        event_dim = self.arg_constraints[name].event_dim
        unknown = without_rows.reshape(
            present.shape[: present.dim() - event_dim] + (1,) * event_dim
        )
        return torch.where(unknown & best.isnan(), present, best)
