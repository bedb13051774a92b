"""Which variables of a program belong to its components, and the permutations that give draws the same labels."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_mixtures.diagnostics.alignment import overlap, permutation_of, relabel
from pyro_mixtures.diagnostics.chains import Chains, Draw
from pyro_mixtures.diagnostics.program import COMPONENT, EVENT_NAMES, Program, log_prior, read_params
from pyro_mixtures.errors import ModelError
from pyro_mixtures.infer import Responsibilities
from pyro_mixtures.infer.scoring import posteriors
from pyro_mixtures.poutine import log_joint

# Candidates of a row that count for an alignment.
_TOP = 8
# Of more variables whose dimensions nobody knows not all subsets are tried.
_MOST_UNKNOWN = 6

Axes = dict[str, int]  # the dimension that counts components, by variable


def permutations(chains: Chains, reference: Draw, *, truncated: bool, chunk: int | None) -> Tensor:
    """Permutations (chain, draw, C), on the CPU, to the labels of ``reference``, by responsibilities of all rows."""
    options: Any = {"truncated": truncated, "chunk": chunk}
    pivot = _responsibilities(chains, reference, **options)
    components = chains.declaration.components

    def found(draw: Draw) -> Tensor:
        return permutation_of(overlap(_responsibilities(chains, draw, **options), pivot, components))

    several = [chain if chains.labels == "draw" else chain[:1] for chain in chains.draws]
    orders = torch.stack([torch.stack([found(draw) for draw in chain]) for chain in several])
    return orders.expand(*chains.shape, components)


def component_axes(chains: Chains, program: Program, draw: Draw, dims: Mapping[str, tuple[str, ...]]) -> Axes:
    """Which dimension of which variable has to be permuted for a relabelling to be complete.

    Known from our families and the user's dims "component"; other variables with as many entries in their first
    dimension are tried. Whether it is complete shows in the model: labels rotated by one, all log joints of a row must
    rotate with them and the log prior must stay.

    :raises ModelError: when no choice does so: components have parameters or priors of their own, which already tell
        them apart.
    """
    params = read_params(draw.model, chains.declaration, chains.rows, draw.given)
    # What has labels of its own: params too, unless the draws of a chain share them and not their labels.
    shared = chains.labels == "draw" and bool(draw.given)
    variables = {**({} if shared else params), **draw.given}
    known = _known(program, variables, dims)
    unknown = [name for name in variables if name not in known and _may_count(name, variables, program, chains)]
    before = _fingerprint(chains, draw.model, draw.given)
    for extra in _choices(unknown):
        axes = known | dict.fromkeys(extra, 0)
        if axes and _is_complete(chains, program, draw, variables, axes, before):
            return axes
    raise ModelError(
        f"labels cannot be aligned: with {sorted(variables)} relabelled the model is another one. Its components may "
        "have constants or priors of their own, which tell them apart already: pass align=False. Or name the dimension "
        f'of variables that belong to components, dims={{name: ["{COMPONENT}", ...]}}'
    )


def _responsibilities(chains: Chains, draw: Draw, *, truncated: bool, chunk: int | None) -> Responsibilities:
    """Of two draws multiplied with each other, these count rows by their weights."""
    guide, site = draw.guide if truncated else None, chains.declaration.site
    found = []
    for posterior, _ in posteriors(draw.model, chains.rows, guide, site, draw.given, chunk):
        best, root = posterior.top(_TOP), posterior.row_weight.sqrt()
        found.append(Responsibilities(best.candidates.T, torch.where(root > 0, root * best.probs, 0.0).T))
    return Responsibilities(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _known(program: Program, variables: Mapping[str, Tensor], dims: Mapping[str, tuple[str, ...]]) -> Axes:
    known = {}
    for name in variables:
        for names in (program.dims.get(name, ()), dims.get(name, ())):
            if COMPONENT in names:
                known[name] = names.index(COMPONENT)
    return known


def _may_count(name: str, variables: Mapping[str, Tensor], program: Program, chains: Chains) -> bool:
    """Whether the first dimension has the components' size, and no family says that it is another one."""
    told = program.dims.get(name, ("",))[:1]
    fits = variables[name].shape[:1] == (chains.declaration.components,)
    return fits and not told[0].endswith(EVENT_NAMES)


def _choices(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Subsets of ``names``, larger ones first."""
    fewest = 0 if len(names) <= _MOST_UNKNOWN else len(names)
    for count in range(len(names), fewest - 1, -1):
        yield from itertools.combinations(names, count)


def _is_complete(
    chains: Chains,
    program: Program,
    draw: Draw,
    variables: Mapping[str, Tensor],
    axes: Axes,
    before: tuple[np.ndarray, float],
) -> bool:
    order = torch.arange(chains.declaration.components, device="cpu").roll(-1)
    moved = relabel({name: variables[name] for name in axes}, order, dim=axes)
    given = {name: moved.get(name, value) for name, value in draw.given.items()}
    params = {program.names[name]: value for name, value in moved.items() if name in program.names}
    model = pyro.poutine.substitute(draw.model, data=params) if params else draw.model
    try:
        joint, prior = _fingerprint(chains, model, given)
    except ValueError:  # Pyro's: a distribution refuses these values, which therefore are not the components'
        return False
    size = 1.0 + np.abs(before[0]).max()
    same_prior = abs(prior - before[1]) <= 1e-4 * (1.0 + abs(prior))
    return same_prior and bool(np.allclose(joint, before[0][order.numpy()], rtol=0.0, atol=1e-4 * size))


def _fingerprint(chains: Chains, model: Callable, given: Mapping[str, Tensor]) -> tuple[np.ndarray, float]:
    """Log joints (C, 1) of the first row, and the log prior."""
    d, first = chains.declaration, tuple(tensor[:1] for tensor in chains.rows)

    def everyone(index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(d.components, device=device).unsqueeze(-1)

    joint = log_joint(model, d, everyone, first, {}, given).log_joint
    return joint.double().cpu().numpy(), log_prior(model, d, chains.rows, given)
