"""Starts of hard partitions: labels, or the methods that draw them."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError, ModelError, OptionError
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.infer.labelled_guide import LabelledGuide
from pyro_mixtures.init.labels import METHODS, start_labels

Build = Callable[..., EM | tuple[Callable, EM]]
Start = Tensor | np.ndarray | str


class Trial(NamedTuple):
    """The fit from one start, and the param store that it left behind."""

    fit: Fit
    params: Any
    objective: float
    labels: Tensor


def as_starts(starts: Any) -> list[Tensor | str]:
    """One entry a start: labels, or a method's name.

    :raises OptionError: for no starts, an unknown method, or what is neither a number nor a
        sequence.
    """
    several = _entries(starts)
    if not several:
        raise OptionError(f"starts={starts!r}: give a positive number, or an entry for each start")
    several = [
        torch.as_tensor(start) if isinstance(start, np.ndarray) else start for start in several
    ]
    unknown = [start for start in several if not isinstance(start, Tensor) and start not in METHODS]
    if unknown:
        raise OptionError(
            f"starts {unknown} are neither labels (N,), a tensor or array, nor methods: {METHODS}"
        )
    return several


def _entries(starts: Any) -> list[Any]:
    if isinstance(starts, Integral) and not isinstance(starts, bool):
        return ["uniform"] * int(starts)
    if isinstance(starts, Tensor | np.ndarray):
        if starts.ndim == 2:
            return list(starts)
        raise OptionError(
            f"starts has shape {tuple(starts.shape)}: labels of one start go into a list, starts=[labels]"
        )
    if isinstance(starts, str):
        raise OptionError(
            f"starts={starts!r}: methods go into a list, one entry for each start: starts=[{starts!r}] * 10"
        )
    if isinstance(starts, Sequence):
        return list(starts)
    raise OptionError(
        f"starts={starts!r} is neither a whole number nor a sequence with an entry for each start"
    )


class Starter:
    """Draws the labels of starts, by the places of the rows.

    :param rows: the model's tensors; of the first of them are the places, unless ``on`` (N, D) has
        them.
    """

    def __init__(self, rows: tuple[Tensor, ...], on: Tensor | None):
        self.places = rows[0].reshape(len(rows[0]), -1) if on is None else as_rows(on)
        if len(self.places) != len(rows[0]):
            raise DataError(
                f"on= has {len(self.places)} rows, the data have {len(rows[0])}: give one for each"
            )

    def labels(self, start: Tensor | str, guide: LabelledGuide, seed: int) -> Tensor:
        """Labels (N,) for ``guide``."""
        if isinstance(start, Tensor):
            return start
        capacity = guide.capacity if start == "balanced" else None
        generator = torch.Generator("cpu").manual_seed(seed)
        return start_labels(
            self.places, guide.components, method=start, capacity=capacity, generator=generator
        )


def labelled_guide(inference: EM) -> LabelledGuide:
    """The guide, if it starts from labels."""
    if not isinstance(inference.guide, LabelledGuide):
        name = type(inference.guide).__name__
        raise ModelError(f"{name} does not start from labels: restarts need a HardPartition guide")
    return inference.guide


def check_new(inference: EM, earlier: Sequence[EM | Fit]) -> None:
    """Refuse a model or guide that an earlier start has changed."""
    guide, model = inference.guide, inference.model
    # The params of a plain function live in the store alone, and so are new in every start.
    if any(
        guide is e.guide or (model is e.model and isinstance(model, nn.Module)) for e in earlier
    ):
        raise OptionError(
            "build() returned the model or guide of an earlier start: make them inside build()"
        )
