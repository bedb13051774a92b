"""The labels that routing and reports read from the guide of a hard partition."""

from torch import Tensor

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.infer.labelled_guide import LabelledGuide


def labels_of(guide: LabelledGuide, rows: int) -> Tensor:
    """Return the labels (N,) of the guide; -1 marks rows that it has not seen.

    :param rows: N, which must be the number of labels.
    :raises PartitionError: if the guide has no labels, or those of another number of rows.
    """
    if not isinstance(guide, LabelledGuide):
        raise PartitionError(
            f"{type(guide).__name__} holds no labels of rows: give the HardPartition of the fit"
        )
    if guide.labels is None or len(guide.labels) != rows:
        state = "no labels" if guide.labels is None else f"the labels of {len(guide.labels)} rows"
        raise PartitionError(
            f"the guide holds {state}, but {rows} rows were given: give the rows of its fit"
        )
    return guide.labels
