"""What routing and reports ask of a guide: the labels of the rows that it was fitted to."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from pyro_mixtures.errors import PartitionError


@runtime_checkable
class Partition(Protocol):
    """What is asked of the guide: ``pyro_mixtures.guides.HardPartition`` is one."""

    components: int
    site: str
    labels: Tensor | None


def labels_of(guide: Partition, rows: int) -> Tensor:
    """The labels (N,) of the guide, which have to be those of ``rows`` rows; -1 where one was not seen."""
    if not isinstance(guide, Partition):
        raise PartitionError(
            f"{type(guide).__name__} holds no labels of rows: give the HardPartition of the fit"
        )
    if guide.labels is None or len(guide.labels) != rows:
        held = "no labels" if guide.labels is None else f"the labels of {len(guide.labels)} rows"
        raise PartitionError(
            f"the guide holds {held}, but {rows} rows were given: give those of its fit"
        )
    return guide.labels
