"""Generalized EM: gradient steps for sites without a closed form."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_mixtures.errors import ClosedFormError
from pyro_mixtures.poutine import (
    CandidateMessenger,
    Posterior,
    ProgramStructure,
    collect_statistics,
)
from pyro_mixtures.poutine.joint import site_term
from pyro_mixtures.poutine.params import ParamHandle


class Call(NamedTuple):
    """Arguments of one call of the program, with q(z) of its rows."""

    posterior: Posterior
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def sites_without_closed_form(
    model: Callable[..., Any], structure: ProgramStructure, call: Call
) -> frozenset[str]:
    """Return the observed sites that have no closed-form M-step."""
    return frozenset(
        site for site in structure.observed if not _has_closed_form(site, model, structure, call)
    )


def _has_closed_form(
    site: str, model: Callable[..., Any], structure: ProgramStructure, call: Call
) -> bool:
    other_sites = frozenset(structure.observed) - {site}
    try:
        collect_statistics(
            model, structure, call.posterior, call.args, call.kwargs, skip=other_sites
        )
    except ClosedFormError:
        return False
    return True


def gradient_step(
    model: Callable[..., Any],
    structure: ProgramStructure,
    optimizer: Any,
    calls: list[Call],
    *,
    sites: frozenset[str],
    params: Mapping[str, ParamHandle],
    closed_form: set[str],
    freeze: frozenset[str],
) -> None:
    """Take one step on the expected log density of ``sites`` under the q(z) of ``calls``.

    :param optimizer: a Pyro optimizer.
    :param params: all params of the program, by name.
    :param closed_form: names of the params that closed-form sites set.
    :param freeze: names of params to leave unchanged.
    :raises ClosedFormError: when ``sites`` depend on a param of a closed-form site.
    """
    trained = [
        handle.leaf
        for name, handle in params.items()
        if name not in closed_form | freeze and handle.leaf.requires_grad
    ]
    if not sites or not trained:
        return
    closed_form_leaves = {
        name: handle.leaf
        for name, handle in params.items()
        if name in closed_form - freeze and handle.leaf.requires_grad
    }
    for call in calls:
        loss = _expected_loss(model, structure, sites, call)
        _refuse_shared_params(loss, closed_form_leaves)
        loss.backward()
    optimizer(trained)
    # Gradients of frozen params must not accumulate until a later fit trains these params.
    pyro.infer.util.zero_grads([handle.leaf for handle in params.values()])


def _expected_loss(
    model: Callable[..., Any], structure: ProgramStructure, sites: frozenset[str], call: Call
) -> Tensor:
    """Return minus the expected log density of ``sites``, in nats."""
    posterior = call.posterior

    def propose(*_: Any) -> Tensor:
        return posterior.candidates

    messenger = CandidateMessenger(structure, propose, index=posterior.index)
    with pyro.poutine.block():
        trace = pyro.poutine.trace(messenger(model)).get_trace(*call.args, **call.kwargs)
    nodes: Any = trace.nodes
    weight = posterior.probs * posterior.row_weight
    log_densities = [site_term(nodes[site], nodes[structure.site], structure) for site in sites]
    totals = [torch.where(weight > 0, weight * terms, 0.0).sum() for terms in log_densities]
    return -torch.stack(totals).sum()


def _refuse_shared_params(loss: Tensor, closed_form_leaves: Mapping[str, Tensor]) -> None:
    """Refuse params of both kinds of sites: neither step alone is certain to raise the ELBO."""
    if not closed_form_leaves:
        return
    gradients = torch.autograd.grad(
        loss, list(closed_form_leaves.values()), retain_graph=True, allow_unused=True
    )
    shared = [
        name
        for name, gradient in zip(closed_form_leaves, gradients, strict=True)
        if gradient is not None
    ]
    if shared:
        raise ClosedFormError(
            f"params {shared} belong to a closed-form site and to a site without a closed form: "
            "freeze= them, or use SVI"
        )
