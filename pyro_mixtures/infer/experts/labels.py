"""What routing and reports ask of a guide: the labels of the rows that it was fitted to."""

from torch import Tensor

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.infer.labelled_guide import LabelledGuide


def labels_of(guide: LabelledGuide, rows: int) -> Tensor:
    """The labels (N,) of the guide, which have to be those of ``rows`` rows; -1 where one was not seen."""
    if not isinstance(guide, LabelledGuide):
        raise PartitionError(
            f"{type(guide).__name__} holds no labels of rows: give the HardPartition of the fit"
        )
    if guide.labels is None or len(guide.labels) != rows:
        held = "no labels" if guide.labels is None else f"the labels of {len(guide.labels)} rows"
        raise PartitionError(
            f"the guide holds {held}, but {rows} rows were given: give those of its fit"
        )
    return guide.labels
