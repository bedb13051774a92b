"""Alignment of labels: a permutation for each draw, and the variables that it applies to."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_mixtures.diagnostics.alignment import overlap, permutation_of
from pyro_mixtures.diagnostics.arviz_io.chains import Chains, Draw, Model, param_leaves
from pyro_mixtures.diagnostics.arviz_io.component_variables import (
    ComponentVariables,
    NameList,
    numbered_variables,
)
from pyro_mixtures.diagnostics.arviz_io.dimensions import COMPONENT, CONTRAST, EVENT_NAMES
from pyro_mixtures.diagnostics.arviz_io.program import Program, log_prior, read_params
from pyro_mixtures.errors import ModelError
from pyro_mixtures.infer import Responsibilities
from pyro_mixtures.infer.scoring.posteriors import posteriors
from pyro_mixtures.poutine import log_joint

_TOP = 8  # components per row that are used for an alignment
_PROBE_ROWS = 32  # in which a relabeled model is compared with the original
_MAX_UNKNOWN = 6  # variables of unknown dimensions of which all subsets are tried
_TOLERANCE = 1e-4  # relative, of log joints and log priors


class _Fingerprint(NamedTuple):
    """Values by which a relabeled model is recognized."""

    log_joint: np.ndarray  # (C, B) of the probe rows
    log_prior: float


def align_draws(chains: Chains, reference: Draw, *, truncated: bool, chunk: int | None) -> Tensor:
    """Return permutations (chain, draw, C), on the CPU, to the labels of ``reference``.

    They maximize the agreement of the responsibilities of all rows.
    """
    components = chains.structure.components
    pivot = _responsibilities(chains, reference, truncated, chunk)

    def permutation(draw: Draw) -> Tensor:
        responsibilities = _responsibilities(chains, draw, truncated, chunk)
        return permutation_of(overlap(responsibilities, pivot, components))

    labeled_draws = [chain if chains.labels_of == "draw" else chain[:1] for chain in chains.draws]
    permutations = torch.stack(
        [torch.stack([permutation(draw) for draw in chain]) for chain in labeled_draws]
    )
    return permutations.expand(*chains.shape, components)


def find_component_variables(
    chains: Chains, program: Program, draw: Draw, dims: Mapping[str, tuple[str, ...]]
) -> ComponentVariables:
    """Find the variables that have to be permuted for a relabeling to be complete.

    They are known for our families and for the user's dims "component" and "contrast". Other
    variables whose first dimension has size C are tried, and numbered ones. The model shows whether
    the choice is complete: if labels are rotated by one, all log joints of a row must rotate with
    them, and the log prior must not change.

    :raises ModelError: if no choice is complete.
    """
    params = read_params(draw.model, chains.structure, chains.rows, draw.latents)
    # Params are relabeled too, unless the draws of a chain share them but not their labels.
    params_are_shared = chains.labels_of == "draw" and bool(draw.latents)
    variables = {**({} if params_are_shared else params), **draw.latents}
    original = _fingerprint(chains, draw.model, draw.latents)
    for choice in _choices(chains, program, variables, dims):
        if choice and _is_complete(chains, program, draw, variables, choice, original):
            return choice
    raise ModelError(
        f"labels cannot be aligned: no relabeling of {sorted(variables)} leaves the model "
        "unchanged. Name the dimension of variables with an entry per component, "
        f'dims={{name: ["{COMPONENT}", ...]}}, or "{CONTRAST}" if they are differences from the '
        "first one. If components have constants, penalties or priors of their own, pass "
        "align=False: then every fit or draw keeps its labels, which may differ between them"
    )


def _responsibilities(
    chains: Chains, draw: Draw, truncated: bool, chunk: int | None
) -> Responsibilities:
    """Responsibilities times the root of the row weights.

    Products of those of two draws then count rows by their weights.
    """
    guide, site = draw.guide if truncated else None, chains.structure.site
    components, probs = [], []
    for posterior, _ in posteriors(draw.model, chains.rows, guide, site, draw.latents, chunk):
        best, root = posterior.top(_TOP), posterior.row_weight.sqrt()
        components.append(best.candidates.T)
        probs.append(torch.where(root > 0, root * best.probs, 0.0).T)
    return Responsibilities(torch.cat(components), torch.cat(probs))


def _choices(
    chains: Chains,
    program: Program,
    variables: Mapping[str, Tensor],
    dims: Mapping[str, tuple[str, ...]],
) -> Iterator[ComponentVariables]:
    """The variables known to have entries per component, with subsets of the possible ones."""
    components = chains.structure.components
    axes = _variables_with(COMPONENT, program, variables, dims)
    contrasts = _variables_with(CONTRAST, program, variables, dims)
    others = {name: value for name, value in variables.items() if name not in axes | contrasts}
    module_lists = numbered_variables(others, components)
    names_in_lists = {
        name for module_list in module_lists for names in module_list for name in names
    }
    possible = [
        name
        for name in others
        if name not in names_in_lists and _may_count(name, variables, program, components)
    ]
    for selected_lists, selected_names in _subsets(module_lists, possible):
        numbered = tuple(names for module_list in selected_lists for names in module_list)
        yield ComponentVariables(axes | dict.fromkeys(selected_names, 0), contrasts, numbered)


def _variables_with(
    dim: str, program: Program, variables: Mapping[str, Tensor], dims: Mapping[str, tuple[str, ...]]
) -> dict[str, int]:
    """The variables with a dimension named ``dim``, and its position."""
    positions = {}
    for name in variables:
        for names in (program.dims.get(name, ()), dims.get(name, ())):
            if dim in names:
                positions[name] = names.index(dim)
    return positions


def _may_count(
    name: str, variables: Mapping[str, Tensor], program: Program, components: int
) -> bool:
    """Whether the first dimension has size C, and no family gives it another meaning."""
    first_dim = program.dims.get(name, ("",))[:1]
    has_size = variables[name].shape[:1] == (components,)
    return has_size and not first_dim[0].endswith(EVENT_NAMES)


def _subsets(
    module_lists: list[tuple[NameList, ...]], names: list[str]
) -> Iterator[tuple[list[tuple[NameList, ...]], list[str]]]:
    """Subsets of both, larger ones first; all of both only, if there are many."""
    n_lists, total = len(module_lists), len(module_lists) + len(names)
    smallest = 0 if total <= _MAX_UNKNOWN else total
    for size in range(total, smallest - 1, -1):
        for subset in itertools.combinations(range(total), size):
            yield (
                [module_lists[i] for i in subset if i < n_lists],
                [names[i - n_lists] for i in subset if i >= n_lists],
            )


def _is_complete(
    chains: Chains,
    program: Program,
    draw: Draw,
    variables: Mapping[str, Tensor],
    choice: ComponentVariables,
    original: _Fingerprint,
) -> bool:
    order = torch.arange(chains.structure.components, device="cpu").roll(-1)
    rotated = choice.relabel(variables, order)
    latents = {name: rotated.get(name, value) for name, value in draw.latents.items()}
    try:
        with _rotated_program(chains, program, draw, choice, rotated) as model:
            fingerprint = _fingerprint(chains, model, latents)
    except ValueError:  # a distribution rejects the values, so they are not per component
        return False
    expected = original.log_joint[order.numpy()]
    finite_size = np.where(np.isfinite(original.log_joint), np.abs(original.log_joint), 0.0)
    tolerance = _TOLERANCE * (1.0 + finite_size.max(0))
    prior_tolerance = _TOLERANCE * (1.0 + abs(fingerprint.log_prior))
    same_prior = abs(fingerprint.log_prior - original.log_prior) <= prior_tolerance
    same_joint = np.isclose(fingerprint.log_joint, expected, rtol=0.0, atol=tolerance)
    return same_prior and bool(same_joint.all())


@contextmanager
def _rotated_program(
    chains: Chains,
    program: Program,
    draw: Draw,
    choice: ComponentVariables,
    rotated: Mapping[str, Tensor],
) -> Iterator[Model]:
    """The draw's program with its params ``rotated``, within the context.

    Numbered params are rotated in place, because modules do not accept substituted values.
    """
    numbered_names = {name for names in choice.numbered for name in names}
    substituted = {
        program.pyro_names[name]: value
        for name, value in rotated.items()
        if name in program.pyro_names.keys() - numbered_names
    }
    leaves = param_leaves(draw.model, chains.rows) if numbered_names else {}
    cycles = [
        [leaves[program.pyro_names[name]] for name in names]
        for names in choice.numbered
        if names[0] in program.pyro_names
    ]
    model = pyro.poutine.substitute(draw.model, data=substituted) if substituted else draw.model
    _rotate(cycles, 1)
    try:
        yield model
    finally:
        _rotate(cycles, -1)


def _rotate(cycles: list[list[Tensor]], by: int) -> None:
    """Give every tensor of a cycle the values of the next one, or of the previous one."""
    with torch.no_grad():
        for cycle in cycles:
            values = [leaf.clone() for leaf in cycle]
            for position, leaf in enumerate(cycle):
                leaf.copy_(values[(position + by) % len(cycle)])


def _fingerprint(chains: Chains, model: Model, latents: Mapping[str, Tensor]) -> _Fingerprint:
    structure, n = chains.structure, len(chains.rows[0])
    n_probes = min(n, _PROBE_ROWS)
    probes = torch.arange(n_probes, device="cpu") * n // n_probes
    rows = tuple(tensor[probes.to(tensor.device)] for tensor in chains.rows)

    def all_components(index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.arange(structure.components, device=device).unsqueeze(-1)

    joint = log_joint(model, structure, all_components, rows, {}, latents).log_joint
    prior = log_prior(model, structure, chains.rows, latents)
    return _Fingerprint(joint.double().cpu().numpy(), prior)
