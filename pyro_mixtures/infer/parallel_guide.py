"""Base class of guides that hold the hard partitions of several restarts."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.infer.labeled_guide import LabeledGuide


@dataclass
class RestartCounts:
    """What happened in each of R restarts during an epoch, (R,) on the CPU."""

    loss: Tensor  # float64, minus the ELBO, in nats
    objective: Tensor  # float64, sum of the rows' losses without the prior of z, in nats
    moved: Tensor  # int64, rows that changed their component
    reseeded: Tensor  # int64, empty components that were given rows

    @classmethod
    def zeros(cls, restarts: int) -> "RestartCounts":
        """Return counts of zero."""

        def zeros(dtype: torch.dtype) -> Tensor:
            return torch.zeros(restarts, dtype=dtype, device="cpu")

        return cls(
            loss=zeros(torch.float64),
            objective=zeros(torch.float64),
            moved=zeros(torch.int64),
            reseeded=zeros(torch.int64),
        )


class ParallelGuide(LabeledGuide):
    """Guide of the hard partitions of R restarts, which run as one mixture of R K components.

    ``labels`` are (R, N) in [0, K), and ``sizes`` are (R, K).
    :class:`~pyro_mixtures.guides.ParallelHardPartition` is one; see
    :func:`~pyro_mixtures.infer.fit_restarts`.
    """

    restarts: int  # R
    restart_counts: RestartCounts  # since reset_counts

    @abstractmethod
    def losses(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return minus the ELBO (R,) of each partition as it stands, in nats; change nothing."""

    @abstractmethod
    def hold(self, restarts: Tensor) -> None:
        """Keep the labels of the restarts marked True (R,) until new labels are set."""
