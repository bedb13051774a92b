"""Which variables of a program belong to its components, and the permutations that give draws the same labels."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_mixtures.diagnostics.alignment import overlap, permutation_of
from pyro_mixtures.diagnostics.arviz_io.chains import Chains, Draw, leaves
from pyro_mixtures.diagnostics.arviz_io.ownership import Owned, numbered
from pyro_mixtures.diagnostics.arviz_io.program import (
    COMPONENT,
    CONTRAST,
    EVENT_NAMES,
    Program,
    log_prior,
    read_params,
)
from pyro_mixtures.errors import ModelError
from pyro_mixtures.infer import Responsibilities
from pyro_mixtures.infer.scoring.posteriors import posteriors
from pyro_mixtures.poutine import log_joint

# Candidates of a row that count for an alignment.
_TOP = 8
# Rows in which a relabelled model is compared with the model as it is.
_PROBES = 32
# Of more variables whose dimensions nobody knows not all subsets are tried.
_MOST_UNKNOWN = 6


def permutations(chains: Chains, reference: Draw, *, truncated: bool, chunk: int | None) -> Tensor:
    """Permutations (chain, draw, C), on the CPU, to the labels of ``reference``, by responsibilities of all rows."""
    options: Any = {"truncated": truncated, "chunk": chunk}
    pivot = _responsibilities(chains, reference, **options)
    components = chains.structure.components

    def found(draw: Draw) -> Tensor:
        return permutation_of(
            overlap(_responsibilities(chains, draw, **options), pivot, components)
        )

    several = [chain if chains.labels == "draw" else chain[:1] for chain in chains.draws]
    orders = torch.stack([torch.stack([found(draw) for draw in chain]) for chain in several])
    return orders.expand(*chains.shape, components)


def owned_by_components(
    chains: Chains, program: Program, draw: Draw, dims: Mapping[str, tuple[str, ...]]
) -> Owned:
    """What has to be permuted for a relabelling to be complete.

    Known from our families and the user's dims "component" and "contrast"; other variables with as
    many entries in their first dimension are tried, and numbered ones. Whether it is complete shows
    in the model: labels rotated by one, all log joints of a row must rotate with them and the log
    prior must stay.

    :raises ModelError: when no choice does so.
    """
    params = read_params(draw.model, chains.structure, chains.rows, draw.given)
    # What has labels of its own: params too, unless the draws of a chain share them and not their
    # labels.
    shared = chains.labels == "draw" and bool(draw.given)
    variables = {**({} if shared else params), **draw.given}
    before = _fingerprint(chains, draw.model, draw.given)
    for owned in _candidates(chains, program, variables, dims):
        if owned and _is_complete(chains, program, draw, variables, owned, before):
            return owned
    raise ModelError(
        f"labels cannot be aligned: no relabelling of {sorted(variables)} leaves the model as it is. Name the "
        f'dimension of variables that belong to components, dims={{name: ["{COMPONENT}", ...]}}, or "{CONTRAST}" where '
        "they are differences from the first one. If components have constants, penalties or priors of their own, "
        "pass align=False: every fit or draw then keeps its labels, which may differ from the others'"
    )


def _responsibilities(
    chains: Chains, draw: Draw, *, truncated: bool, chunk: int | None
) -> Responsibilities:
    """Of two draws multiplied with each other, these count rows by their weights."""
    guide, site = draw.guide if truncated else None, chains.structure.site
    found = []
    for posterior, _ in posteriors(draw.model, chains.rows, guide, site, draw.given, chunk):
        best, root = posterior.top(_TOP), posterior.row_weight.sqrt()
        found.append(
            Responsibilities(best.candidates.T, torch.where(root > 0, root * best.probs, 0.0).T)
        )
    return Responsibilities(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _candidates(
    chains: Chains,
    program: Program,
    variables: Mapping[str, Tensor],
    dims: Mapping[str, tuple[str, ...]],
) -> Iterator[Owned]:
    """What is known, with more and with less of what may belong to components besides."""
    axes, contrasts = (_named(dim, program, variables, dims) for dim in (COMPONENT, CONTRAST))
    others = {name: value for name, value in variables.items() if name not in axes | contrasts}
    lists = numbered(others, chains.structure.components)
    single = others.keys() - {name for names in lists for each in names for name in each}
    unknown = [
        name for name in others if name in single and _may_count(name, variables, program, chains)
    ]
    for extra in _choices([*lists, *unknown]):
        found = [names for one in extra if isinstance(one, tuple) for names in one]
        yield Owned(
            axes | {name: 0 for name in extra if isinstance(name, str)}, contrasts, tuple(found)
        )


def _named(
    dim: str, program: Program, variables: Mapping[str, Tensor], dims: Mapping[str, tuple[str, ...]]
) -> dict[str, int]:
    """Where each of the variables has the dimension ``dim``, of those that have."""
    known = {}
    for name in variables:
        for names in (program.dims.get(name, ()), dims.get(name, ())):
            if dim in names:
                known[name] = names.index(dim)
    return known


def _may_count(
    name: str, variables: Mapping[str, Tensor], program: Program, chains: Chains
) -> bool:
    """Whether the first dimension has the components' size, and no family says that it is another one."""
    told = program.dims.get(name, ("",))[:1]
    fits = variables[name].shape[:1] == (chains.structure.components,)
    return fits and not told[0].endswith(EVENT_NAMES)


def _choices(entries: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Subsets of ``entries``, larger ones first."""
    fewest = 0 if len(entries) <= _MOST_UNKNOWN else len(entries)
    for count in range(len(entries), fewest - 1, -1):
        yield from itertools.combinations(entries, count)


def _is_complete(
    chains: Chains,
    program: Program,
    draw: Draw,
    variables: Mapping[str, Tensor],
    owned: Owned,
    before: tuple[np.ndarray, float],
) -> bool:
    order = torch.arange(chains.structure.components, device="cpu").roll(-1)
    moved = owned.relabel(variables, order)
    given = {name: moved.get(name, value) for name, value in draw.given.items()}
    try:
        with _rotated(chains, program, draw, owned, moved) as model:
            joint, prior = _fingerprint(chains, model, given)
    except (
        ValueError
    ):  # Pyro's: a distribution refuses these values, which therefore are not the components'
        return False
    size = 1.0 + np.where(np.isfinite(before[0]), np.abs(before[0]), 0.0).max(0)
    same_prior = abs(prior - before[1]) <= 1e-4 * (1.0 + abs(prior))
    return same_prior and bool(
        np.isclose(joint, before[0][order.numpy()], rtol=0.0, atol=1e-4 * size).all()
    )


@contextmanager
def _rotated(
    chains: Chains, program: Program, draw: Draw, owned: Owned, moved: Mapping[str, Tensor]
) -> Iterator[Callable]:
    """The draw's program with its params ``moved``, until the end."""
    one_each = {name for names in owned.numbered for name in names}
    data = {
        program.names[name]: value
        for name, value in moved.items()
        if name in program.names.keys() - one_each
    }
    found = leaves(draw.model, chains.rows) if one_each else {}
    cycles = [
        [found[program.names[name]] for name in names]
        for names in owned.numbered
        if names[0] in program.names
    ]
    _rotate(cycles, 1)  # in place: modules take no other values than their own
    try:
        yield pyro.poutine.substitute(draw.model, data=data) if data else draw.model
    finally:
        _rotate(cycles, -1)


def _rotate(cycles: list[list[Tensor]], by: int) -> None:
    """Give every tensor of a cycle the values of the next one, or of the one before."""
    with torch.no_grad():
        for cycle in cycles:
            values = [leaf.clone() for leaf in cycle]
            for k, leaf in enumerate(cycle):
                leaf.copy_(values[(k + by) % len(cycle)])


def _fingerprint(
    chains: Chains, model: Callable, given: Mapping[str, Tensor]
) -> tuple[np.ndarray, float]:
    """Log joints (C, B) of some rows, and the log prior."""
    d, count = chains.structure, len(chains.rows[0])
    some = torch.arange(min(count, _PROBES), device="cpu") * count // min(count, _PROBES)
    rows = tuple(tensor[some.to(tensor.device)] for tensor in chains.rows)

    def all_components(index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(d.components, device=device).unsqueeze(-1)

    joint = log_joint(model, d, all_components, rows, {}, given).log_joint
    return joint.double().cpu().numpy(), log_prior(model, d, chains.rows, given)
