"""The share of the truly nearest components that the neighbor graph of a guide contains."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.poutine import ProgramStructure, ReuseMessenger, log_joint

# Maximum number of rows over which the divergences of a component are averaged.
_MAX_COMPONENT_ROWS = 32


class NeighborRecall(NamedTuple):
    """Recall of the neighbor graph, over components whose rows were evaluated under all others."""

    share: float  # of the G - 1 nearest other components that are in the graph
    neighbors: int  # G - 1
    components: int  # number of components that were examined


def neighbor_recall(
    model: Callable[..., Any],
    structure: ProgramStructure,
    neighbors: Tensor,
    labels: Tensor,
    *rows: Tensor,
    sample: int = 1000,
    given: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> NeighborRecall | None:
    r"""Compute the share of the true nearest components that a neighbor graph contains.

    Nearness is the guide's, :math:`D(c, k) = \mathrm{mean}_{n: z_n = c} \log p(x_n | c) - \log
    p(x_n | k)`, evaluated for all k on some rows of random components c: C joint densities per row.

    :param model: the fitted program.
    :param structure: of the ``model``, read from these rows.
    :param neighbors: (C, G) the graph, each component itself first.
    :param labels: (N,) component of every row, negative for none.
    :param rows: the model's tensor arguments, N rows each.
    :param sample: total number of rows, at most 32 per component.
    :param given: values of the model's other latent sites.
    :param generator: draws components and rows, on the CPU; torch's global one by default.
    :returns: the recall, or None if components have no neighbors but themselves.
    """
    if neighbors.shape[1] < 2:
        return None
    reusing_model, shares, remaining = ReuseMessenger()(model), [], sample
    for component, members in _random_components(labels, generator):
        members = members[:remaining]
        member_rows = tuple(tensor[members.to(tensor.device)] for tensor in rows)
        with structure.threads():
            divergence = _divergences(reusing_model, structure, component, member_rows, given)
        nearest = divergence.topk(neighbors.shape[1] - 1, largest=False).indices.to("cpu")
        graph_neighbors = neighbors[component, 1:].to("cpu", torch.int64)
        shares.append(torch.isin(nearest, graph_neighbors).double().mean())
        remaining -= len(members)
        if remaining <= 0:
            break
    return NeighborRecall(float(torch.stack(shares).mean()), neighbors.shape[1] - 1, len(shares))


def _random_components(
    labels: Tensor, generator: torch.Generator | None
) -> Iterator[tuple[int, Tensor]]:
    """Non-empty components in random order, each with the numbers of some of its rows."""
    shuffled = torch.randperm(len(labels), generator=generator, device="cpu")
    shuffled = shuffled[labels[shuffled] >= 0]
    order = shuffled[labels[shuffled].argsort(stable=True)]
    components, counts = labels[order].unique_consecutive(return_counts=True)
    members = order.split(counts.tolist())
    for number in torch.randperm(len(components), generator=generator, device="cpu").tolist():
        yield int(components[number]), members[number][:_MAX_COMPONENT_ROWS]


def _divergences(
    model: Callable[..., Any],
    structure: ProgramStructure,
    component: int,
    rows: tuple[Tensor, ...],
    given: Mapping[str, Tensor] | None,
) -> Tensor:
    """Divergences (C,) of all components from this one; infinite for the component itself."""

    def all_components(index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(structure.components, device=device).unsqueeze(-1)

    joint = log_joint(model, structure, all_components, rows, {}, given)
    density = joint.log_density.expand(joint.log_joint.shape).double()
    divergence = (density[component] - density).mean(1)
    divergence[component] = torch.inf
    return divergence
