"""Chains of draws of one mixture: programs with their params, and values of their latent sites."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_mixtures.infer import History
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.poutine import ProgramStructure
from pyro_mixtures.poutine.params import leaf_of

Model = Callable[..., Any]
LatentValues = Mapping[str, Tensor]  # of the latent sites other than z, in one draw
Rows = tuple[Tensor, ...]


class Draw(NamedTuple):
    """One draw: a program that runs with its own params, and values of its latent sites."""

    model: Model
    guide: PartitionGuide | None
    latents: LatentValues


@dataclass
class Chains:
    """Draws of one mixture, the same number in each chain."""

    structure: ProgramStructure
    rows: Rows
    draws: list[list[Draw]]
    # What numbers components independently; None if all draws share their numbering.
    labels_of: Literal["chain", "draw"] | None = None
    reference: Draw | None = None  # the draw with which labels are aligned, if the source has one
    draw_numbers: np.ndarray | None = None  # (draws,), if only some draws of a source were taken
    stats: dict[str, np.ndarray] = field(default_factory=dict)  # (chain, draw), or (chain,)
    histories: list[History] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of chains and number of draws in each."""
        return len(self.draws), len(self.draws[0])

    @property
    def all(self) -> list[Draw]:
        """All draws, chain after chain."""
        return [draw for chain in self.draws for draw in chain]


def param_leaves(model: Model, rows: Rows) -> dict[str, Tensor]:
    """Return the unconstrained tensors of a program's params, by their names in Pyro."""
    first_rows = tuple(tensor[:1] for tensor in rows)
    with pyro.poutine.block(), torch.no_grad():
        trace = pyro.poutine.trace(model, param_only=True).get_trace(*first_rows)
    nodes: dict[str, Any] = dict(trace.nodes)
    return {name: leaf_of(node["value"]) for name, node in nodes.items() if node["type"] == "param"}
