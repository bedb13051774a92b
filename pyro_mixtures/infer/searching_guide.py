"""Base class of guides that search for each row's candidate components."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.errors import ModelError
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.partition import NeighborGraph


class SearchingGuide(PartitionGuide):
    """Guide whose E-steps search for better candidates of each row along a graph of components.

    E-steps alone improve q(z) under such a guide. :func:`~pyro_mixtures.infer.fit` therefore runs
    warm-up epochs before the first update, and afterward chooses the epochs that search.
    :class:`~pyro_mixtures.guides.TruncatedPartition` is one.
    """

    search: bool = True  # False: E-steps only re-weigh the candidates that rows already have
    graph: NeighborGraph | None = None  # of the components; None before the first E-step

    @property
    @abstractmethod
    def evaluations_per_row(self) -> int:
        """Largest number of components that an E-step evaluates for a row."""

    def row_order(self) -> Tensor | None:
        """Return row numbers (N,) such that consecutive rows share components; None if unknown."""
        return None

    def _sample(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            raise ModelError(
                "this guide searches and keeps candidate sets, which a Jit loss would freeze: use "
                "TraceEnum_ELBO, or pass candidates to truncate() as a tensor argument"
            )
        return super()._sample(args, kwargs)
