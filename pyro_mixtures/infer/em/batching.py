"""Batch size: how many rows per call a fit gives its program, and in which order."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.infer import SVI
from torch import Tensor

from pyro_mixtures.data.rows import Batches, spaced_rows
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.searching_guide import SearchingGuide

# Working memory of one call of the model.
_BATCH_BYTES = 64 << 20
# Share of it that each evaluation of a component for a row takes.
_BYTES_PER_EVALUATION = 24
# Parameters of at most this size stay in a cache in any order of the rows. For larger ones it is
# faster to sort the rows in every epoch, so that consecutive rows share components.
_CACHED_BYTES = 8 << 20
# Large models are given larger batches, because every batch reads all parameters.
_BATCHES_PER_PARAMETERS = 32
_MIN_ROWS = 1024


class Plan(NamedTuple):
    """Batches of a fit, and whether rows are to be sorted by their most probable component."""

    batches: Batches
    ordered: bool


def plan(inference: EM | SVI, rows: tuple[Tensor, ...], batch_size: int | None) -> Plan:
    """Return the batches of a fit.

    :param batch_size: rows per batch. None stands for all rows, or, where the result is the same,
        for as many as the working memory allows.
    """
    batches = Batches(rows, batch_size)
    guide: PartitionGuide = inference.guide
    if batch_size is not None or guide.needs_all_rows or not _allows_batches(inference):
        return Plan(batches, ordered=False)
    first_rows = spaced_rows(batches.tensors, guide.components)
    parameter_bytes = guide.read(*first_rows).parameter_bytes
    evaluations = guide.components
    if isinstance(guide, SearchingGuide):
        evaluations = guide.evaluations_per_row
    ordered = isinstance(guide, SearchingGuide) and parameter_bytes > _CACHED_BYTES
    memory = max(_BATCH_BYTES, parameter_bytes // _BATCHES_PER_PARAMETERS)
    row_bytes = _bytes_per_row(batches, ordered) + _BYTES_PER_EVALUATION * evaluations
    return Plan(Batches(batches.tensors, max(_MIN_ROWS, memory // row_bytes)), ordered)


def _allows_batches(inference: EM | SVI) -> bool:
    """Whether batches in any order give the same result as all rows in one call.

    They do for exact EM, if the program takes ``index`` and ``size``.
    """
    if not isinstance(inference, EM):
        return False
    if inference.step_size is not None or inference.gradient is not None:
        return False
    return {"index", "size"} <= parameter_names(inference.model)


def parameter_names(model: Callable[..., Any]) -> set[str]:
    """Return the names of the arguments of a program; none if it does not tell them."""
    program = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        return set(inspect.signature(program).parameters)
    except (TypeError, ValueError):
        return set()


def _bytes_per_row(batches: Batches, ordered: bool) -> int:
    """Return the memory of the copies of a row: sorted, and converted to the parameters' dtype."""
    parameter_bytes = torch.finfo(torch.get_default_dtype()).bits // 8
    total = 0
    for tensor in batches.tensors:
        converted = tensor.dtype != torch.uint8 and tensor.element_size() < parameter_bytes
        bytes_per_number = tensor.element_size() if ordered else 0
        if converted:
            bytes_per_number += parameter_bytes
        total += tensor[0].numel() * bytes_per_number
    return total
