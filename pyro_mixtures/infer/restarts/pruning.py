"""Pruning a mixture: remove the component whose loss costs the least log likelihood."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer.restarts.stored_fits import constrained_value
from pyro_mixtures.infer.scoring.posteriors import posteriors
from pyro_mixtures.poutine.params import ParamHandle


def pruning_losses(
    model: Callable[..., Any],
    rows: tuple[Tensor, ...],
    weights: Tensor,
    *,
    site: str,
    chunk: int | None,
) -> Tensor:
    r"""Return how much log likelihood, in nats, the removal of each component would cost.

    All other params stay as they are. Without component c the other weights grow by
    :math:`1 / (1 - w_c)`, and row n keeps the fraction :math:`(1 - r_{nc}) / (1 - w_c)` of its
    density, where :math:`r_{nc}` is the component's responsibility. The loss is therefore
    :math:`\sum_n \log(1 - w_c) - \log(1 - r_{nc})`. One exact pass over the rows gives it for all
    components. It is small for a component that shares its rows with another one.

    :param weights: (C,) of the components.
    :param site: name of the discrete site.
    :param chunk: rows evaluated at once.
    :returns: losses (C,); infinite for a component that has all the weight.
    """
    losses = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    weight_of_others = _sum_of_others(weights.double())
    for posterior, _ in posteriors(model, rows, None, site, None, chunk):
        responsibility_of_others = _sum_of_others(posterior.log_prob.double().exp())
        row_losses = weight_of_others.log().unsqueeze(-1) - responsibility_of_others.log()
        row_weight = posterior.row_weight.double()
        losses += torch.where(row_weight > 0, row_weight * row_losses, 0.0).sum(-1)
    return torch.where(weight_of_others > 0, losses, torch.inf)


def _sum_of_others(probs: Tensor) -> Tensor:
    """Return for each of ``probs`` (C, ...) the sum of the others, which is one minus itself."""
    # One minus a probability close to one loses digits; the sum of the others does not. At most one
    # probability exceeds one half.
    large = probs > 0.5
    return torch.where(large, torch.where(large, 0.0, probs).sum(0), 1 - probs)


def component_weights(
    params: Mapping[str, ParamHandle], values: Mapping[str, Tensor], components: int
) -> Tensor:
    """Return the value (C,) of the simplex param that holds the weights.

    :raises OptionError: if there is no such param.
    """
    for name, param in params.items():
        if param.constraint is constraints.simplex and values[name].shape == (components,):
            return values[name]
    raise OptionError(
        "a warm start needs weights that are one simplex param: pass warm_start=False"
    )


def prune_values(
    component: int,
    params: Mapping[str, ParamHandle],
    values: Mapping[str, Tensor],
    components: int,
) -> dict[str, Tensor]:
    """Return the params' ``values`` without ``component``, with weights that sum to one again.

    :param params: those of the program with C - 1 components.
    :param values: constrained values of the params of the program with C ``components``.
    """
    others = [c for c in range(components) if c != component]
    pruned = {}
    for name, param in params.items():
        value, shape = values[name], constrained_value(param).shape
        # Growth has checked that params of another shape have one entry per component.
        if value.shape != shape:
            value = value[others]
        if param.constraint is constraints.simplex and shape == (components - 1,):
            value = value / value.sum()
        pruned[name] = value
    return pruned
