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
from pyro_mixtures.infer.labeled_guide import LabeledGuide
from pyro_mixtures.init.labels import METHODS, start_labels

Build = Callable[..., EM | tuple[Callable[..., Any], EM]]
Start = Tensor | np.ndarray | str
Rows = tuple[Tensor, ...]


class StartSampler:
    """Draws the labels of starts from the positions of the rows.

    :param rows: the model's tensors, of N rows each.
    :param on: (N, D) positions of the rows; the first of ``rows`` by default.
    :raises DataError: if ``on`` has another number of rows.
    """

    def __init__(self, rows: Rows, on: Tensor | None):
        self.positions = rows[0].reshape(len(rows[0]), -1) if on is None else as_rows(on)
        if len(self.positions) != len(rows[0]):
            raise DataError(
                f"on= has {len(self.positions)} rows, but the data have {len(rows[0])}: pass the "
                "position of every row"
            )

    def labels(self, start: Tensor | str, guide: LabeledGuide, seed: int) -> Tensor:
        """Return labels (N,) for ``guide``: those of the start, or drawn by its method."""
        if isinstance(start, Tensor):
            return start
        capacity = guide.capacity if start == "balanced" else None
        generator = torch.Generator("cpu").manual_seed(seed)
        return start_labels(
            self.positions, guide.components, method=start, capacity=capacity, generator=generator
        )


class Restarts(NamedTuple):
    """R starts and how to fit each of them."""

    build: Build
    rows: Rows
    starts: Sequence[Tensor | str]  # labels, or the name of a method
    seeds: Sequence[int]
    sampler: StartSampler
    fit_options: dict[str, Any]


def as_starts(starts: Any) -> list[Tensor | str]:
    """Return one entry per start: labels, or the name of a method.

    :raises OptionError: if there are no starts, a method is unknown, or ``starts`` is neither a
        whole number nor a sequence.
    """
    entries = [
        torch.as_tensor(start) if isinstance(start, np.ndarray) else start
        for start in _as_list(starts)
    ]
    if not entries:
        raise OptionError(f"starts={starts!r}: pass a positive number, or one entry per start")
    unknown = [start for start in entries if not isinstance(start, Tensor) and start not in METHODS]
    if unknown:
        raise OptionError(
            f"starts {unknown} are neither labels (N,), as a tensor or array, nor methods: choose "
            f"from {METHODS}"
        )
    return entries


def _as_list(starts: Any) -> list[Any]:
    if isinstance(starts, Integral) and not isinstance(starts, bool):
        return ["uniform"] * int(starts)
    if isinstance(starts, Tensor | np.ndarray):
        if starts.ndim == 2:
            return list(starts)
        raise OptionError(
            f"starts has shape {tuple(starts.shape)}: put the labels of one start into a list, "
            "starts=[labels]"
        )
    if isinstance(starts, str):
        raise OptionError(
            f"starts={starts!r}: put methods into a list with one entry per start, such as "
            f"starts=[{starts!r}] * 10"
        )
    if isinstance(starts, Sequence):
        return list(starts)
    raise OptionError(
        f"starts={starts!r} is neither a whole number nor a sequence with one entry per start"
    )


def labeled_guide(inference: EM) -> LabeledGuide:
    """Return the guide of ``inference``.

    :raises ModelError: if it does not start from labels.
    """
    if not isinstance(inference.guide, LabeledGuide):
        name = type(inference.guide).__name__
        raise ModelError(f"{name} does not start from labels: restarts need a HardPartition guide")
    return inference.guide


def check_new(inference: EM, earlier: Sequence[Fit]) -> None:
    """Refuse a model or guide that an earlier start has changed.

    The same plain function is allowed in every start: its params exist in the param store alone.

    :raises OptionError: if ``inference`` shares its guide or a module with one of ``earlier``.
    """
    guide, model = inference.guide, inference.model
    for fit in earlier:
        if guide is fit.guide or (model is fit.model and isinstance(model, nn.Module)):
            raise OptionError(
                "build() returned the model or guide of an earlier start: create both in build()"
            )
