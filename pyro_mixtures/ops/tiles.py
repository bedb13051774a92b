"""Pairs cut into tiles of one component each: how torch's batched products meet them, on any device."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops.pairs import SortedPairs

# Rows of one tile, and how many elements of a gathered tile array may be alive at once.
_TILE_ROWS = 32
_TILE_ELEMENTS = 1 << 23


class Tile(NamedTuple):
    """Up to ``_TILE_ROWS`` pairs of one component in each of T tiles."""

    components: Tensor  # (T,)
    rows: Tensor  # (T, rows)
    slots: Tensor  # (T, rows)
    valid: Tensor  # (T, rows)


def tiles(pairs: SortedPairs, width: int) -> Iterator[Tile]:
    """Cut the sorted pairs into tiles of one component each, in batches of bounded memory."""
    counts = pairs.starts.diff()
    tiles_of = (counts + _TILE_ROWS - 1) // _TILE_ROWS
    total = int(tiles_of.sum())
    components = torch.repeat_interleave(
        torch.arange(len(counts), device=counts.device), tiles_of, output_size=total
    )
    within = torch.arange(total, device=counts.device) - (tiles_of.cumsum(0) - tiles_of)[components]
    begin = pairs.starts[components] + within * _TILE_ROWS
    lane = torch.arange(_TILE_ROWS, device=counts.device)
    batch = max(1, _TILE_ELEMENTS // (_TILE_ROWS * max(1, width)))
    for at in range(0, total, batch):
        c = components[at : at + batch]
        position = begin[at : at + batch].unsqueeze(-1) + lane
        valid = position < pairs.starts[c + 1].unsqueeze(-1)
        position = torch.where(valid, position, pairs.starts[c].unsqueeze(-1))
        yield Tile(c, pairs.rows[position], pairs.order[position], valid)
