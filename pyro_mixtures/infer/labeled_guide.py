"""Base classes of guides that assign each row to one component and can start from labels."""

from abc import abstractmethod

from torch import Tensor

from pyro_mixtures.infer.guide import PartitionGuide


class LabeledGuide(PartitionGuide):
    """Guide of a hard partition: each row has a label, the component that it is assigned to.

    Strategies that work on labels accept any subclass: restarts, routing, reports, the bootstrap.
    :class:`~pyro_mixtures.guides.HardPartition` is one. Rows keep their labels until another
    component is better, so a component that EM splits off would win no rows: EM leaves the
    re-seeding of empty components to such guides.
    """

    labels: Tensor | None  # (N,) int32 on the CPU, -1 for rows not seen yet; None before any row
    capacity: int | None = None  # largest number of rows of a cluster

    @abstractmethod
    def set_labels(self, labels: Tensor) -> None:
        """Start from ``labels`` (N,), integers in [0, C)."""

    @property
    @abstractmethod
    def sizes(self) -> Tensor:
        """Rows of each cluster, (C,) int64 on the CPU."""

    @property
    def reseeded(self) -> int:
        """Empty components that the guide has re-seeded since :meth:`reset_counts`."""
        return 0
