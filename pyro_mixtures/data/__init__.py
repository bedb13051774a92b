"""Rows from tensors, arrays, images and tables of choices. Does not depend on Pyro."""

from pyro_mixtures.data.choices import ChoiceTable, choices_from_long, choices_from_wide
from pyro_mixtures.data.items import count_items
from pyro_mixtures.data.patches import average_patches, extract_patches
from pyro_mixtures.data.rows import Batch, Batches, as_rows

__all__ = [
    "Batch",
    "Batches",
    "ChoiceTable",
    "as_rows",
    "average_patches",
    "choices_from_long",
    "choices_from_wide",
    "count_items",
    "extract_patches",
]
