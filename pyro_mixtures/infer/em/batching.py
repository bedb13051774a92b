"""How many rows a fit gives its program at a time, and in which order."""

import inspect
from typing import NamedTuple

import torch
from pyro.infer import SVI
from torch import Tensor

from pyro_mixtures.data.rows import Batches, spaced_rows
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.searching_guide import SearchingGuide

# Working memory of one call of the model, and how much of it each component takes that is evaluated
# for a row.
_BATCH_BYTES = 64 << 20
_SLOT_BYTES = 24
# Parameters that stay in a cache are met by rows in any order alike. Larger ones want rows that
# share components, which are put in such an order by a copy in every epoch.
_CACHED_BYTES = 8 << 20


class Plan(NamedTuple):
    """Batches of a fit, and whether their rows are to be put in the order of their winning components."""

    batches: Batches
    ordered: bool


def plan(inference: EM | SVI, rows: tuple[Tensor, ...], batch_size: int | None) -> Plan:
    """Batches of ``batch_size`` rows. None: all rows, or as many as bounds the memory where that changes nothing."""
    batches = Batches(rows, batch_size)
    if batch_size is not None or inference.guide.needs_all_rows or not _takes_batches(inference):
        return Plan(batches, False)
    guide: PartitionGuide = inference.guide
    size = guide.read(*spaced_rows(batches.tensors, guide.components)).parameter_bytes
    searches = isinstance(guide, SearchingGuide)
    evaluations_per_row = (
        guide.evaluations_per_row if isinstance(guide, SearchingGuide) else guide.components
    )
    # Every batch passes over all parameters: of a large model that is worth some more rows.
    room, slots = max(_BATCH_BYTES, size // 32), _SLOT_BYTES * evaluations_per_row
    ordered = searches and size > _CACHED_BYTES
    return Plan(
        Batches(batches.tensors, max(1024, room // (_bytes_a_row(batches, ordered) + slots))),
        ordered,
    )


def _takes_batches(inference: EM | SVI) -> bool:
    """Whether rows may be given some at a time, in any order, with nothing changed: exact EM, and a program for it."""
    if (
        not isinstance(inference, EM)
        or inference.step_size is not None
        or inference.gradient is not None
    ):
        return False
    try:
        taken = inspect.signature(getattr(inference.model, "forward", inference.model)).parameters
    except (TypeError, ValueError):
        return False
    return {"index", "size"} <= taken.keys()


def _bytes_a_row(batches: Batches, ordered: bool) -> int:
    """Memory of the copies of a row: in the order of its batch, and widened to the parameters' dtype."""
    widened = torch.finfo(torch.get_default_dtype()).bits // 8
    total = 0
    for tensor in batches.tensors:
        as_it_is = tensor.dtype == torch.uint8 or tensor.element_size() >= widened
        item = (tensor.element_size() if ordered else 0) + (0 if as_it_is else widened)
        total += tensor[0].numel() * item
    return total
