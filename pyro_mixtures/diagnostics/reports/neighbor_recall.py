"""How many of the truly nearest components the neighbour graph of a guide holds."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.poutine import ProgramStructure, ReuseMessenger, log_joint

# Rows that a component's divergences are averaged over, at most.
_ROWS_A_COMPONENT = 32


class NeighborRecall(NamedTuple):
    """Of some components, whose rows were all evaluated with everybody."""

    share: float  # of the G - 1 nearest others that are in the graph
    neighbors: int  # G - 1
    components: int  # that were looked at


def neighbor_recall(
    model: Callable,
    structure: ProgramStructure,
    neighbors: Tensor,
    labels: Tensor,
    *rows: Tensor,
    sample: int = 1000,
    given: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> NeighborRecall | None:
    r"""Share of the true nearest components in ``neighbors`` (C, G), each component itself first.

    Nearness is the guide's, :math:`D(c, k) = \mathrm{mean}_{n: z_n = c} \log p(x_n | c) - \log
    p(x_n | k)`, here with all k evaluated for some of the rows of random components c: C joint
    densities a row.

    :param structure: of the ``model``, read from these rows.
    :param labels: (N,) component of every row, negative for none.
    :param sample: rows in all, at most 32 of a component.
    :param generator: picks components and rows, on the CPU; torch's global one by default.
    :returns: None where components have no neighbours but themselves.
    """
    if neighbors.shape[1] < 2:
        return None
    handled, found, left = ReuseMessenger()(model), [], sample
    for component, members in _members(labels, generator):
        members = members[:left]
        part = tuple(tensor[members.to(tensor.device)] for tensor in rows)
        with structure.threads():
            nearest = _nearest(handled, structure, component, part, neighbors.shape[1], given)
        found.append(
            torch.isin(nearest, neighbors[component, 1:].to("cpu", torch.int64)).double().mean()
        )
        left -= len(members)
        if left <= 0:
            break
    return NeighborRecall(float(torch.stack(found).mean()), neighbors.shape[1] - 1, len(found))


def _members(labels: Tensor, generator: torch.Generator | None):
    """Components that have rows, in random order, with some of their rows."""
    shuffled = torch.randperm(len(labels), generator=generator, device="cpu")
    shuffled = shuffled[labels[shuffled] >= 0]
    order = shuffled[labels[shuffled].argsort(stable=True)]
    live, counts = labels[order].unique_consecutive(return_counts=True)
    groups = order.split(counts.tolist())
    for number in torch.randperm(len(live), generator=generator, device="cpu").tolist():
        yield int(live[number]), groups[number][:_ROWS_A_COMPONENT]


def _nearest(
    model: Callable,
    d: ProgramStructure,
    component: int,
    rows: tuple[Tensor, ...],
    size: int,
    given: Mapping | None,
) -> Tensor:
    """The ``size`` - 1 other components (G - 1,) of least divergence from this one, on the CPU."""

    def all_components(index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(d.components, device=device).unsqueeze(-1)

    joint = log_joint(model, d, all_components, rows, {}, given)
    density = joint.log_density.expand(joint.log_joint.shape).double()
    divergence = (density[component] - density).mean(1)
    divergence[component] = (
        torch.inf
    )  # infinite ones are nobody's neighbours, and it is not its own
    return divergence.topk(size - 1, largest=False).indices.to("cpu")
