"""Pairs cut into tiles of one component each, for torch's batched products on any device."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops.pairs import SortedPairs

# Rows per tile, and the largest number of elements of a gathered array.
_TILE_ROWS = 32
_TILE_ELEMENTS = 1 << 23


class Tile(NamedTuple):
    """Up to ``_TILE_ROWS`` pairs of one component in each of T tiles."""

    components: Tensor  # (T,)
    rows: Tensor  # (T, rows)
    slots: Tensor  # (T, rows)
    valid: Tensor  # (T, rows)


def component_tiles(pairs: SortedPairs, width: int) -> Iterator[Tile]:
    """Cut the sorted pairs into tiles of one component each, in batches of bounded memory.

    :param width: elements that the caller gathers or computes per pair.
    """
    counts = pairs.starts.diff()
    tile_counts = (counts + _TILE_ROWS - 1) // _TILE_ROWS
    total = int(tile_counts.sum())
    components = torch.repeat_interleave(
        torch.arange(len(counts), device=counts.device), tile_counts, output_size=total
    )
    first_tile = tile_counts.cumsum(0) - tile_counts
    tile_number = torch.arange(total, device=counts.device) - first_tile[components]
    begin = pairs.starts[components] + tile_number * _TILE_ROWS
    lane = torch.arange(_TILE_ROWS, device=counts.device)
    batch_size = max(1, _TILE_ELEMENTS // (_TILE_ROWS * max(1, width)))
    for start in range(0, total, batch_size):
        batch = slice(start, start + batch_size)
        component = components[batch]
        position = begin[batch].unsqueeze(-1) + lane
        valid = position < pairs.starts[component + 1].unsqueeze(-1)
        # Invalid lanes read the component's first pair.
        position = torch.where(valid, position, pairs.starts[component].unsqueeze(-1))
        yield Tile(component, pairs.rows[position], pairs.order[position], valid)
