"""Rows from tensors and arrays, and image patches. Knows nothing of Pyro."""

from pyro_mixtures.data.patches import average_patches, extract_patches
from pyro_mixtures.data.rows import Batch, Batches, as_rows

__all__ = ["Batch", "Batches", "as_rows", "average_patches", "extract_patches"]
