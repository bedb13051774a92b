"""The labels of the rows that a guide was fitted to."""

from torch import Tensor

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.labeled_guide import LabeledGuide
from pyro_mixtures.infer.parallel_guide import ParallelGuide


def labels_of(guide: PartitionGuide, rows: int) -> Tensor:
    """Return the labels (N,) of the guide, -1 for rows that it has not seen.

    :param rows: N, the number of rows that the labels must have.
    :raises PartitionError: when the guide has no labels, or those of another number of rows.
    """
    if not isinstance(guide, LabeledGuide) or isinstance(guide, ParallelGuide):
        raise PartitionError(
            f"{type(guide).__name__} does not have one label per row: pass the HardPartition of "
            "the fit"
        )
    labels = guide.labels
    if labels is None:
        raise PartitionError("the guide has no labels yet: fit it, or call set_labels()")
    if len(labels) != rows:
        raise PartitionError(
            f"the guide has the labels of {len(labels)} rows, but {rows} rows were given: pass the "
            "rows of its fit"
        )
    return labels
