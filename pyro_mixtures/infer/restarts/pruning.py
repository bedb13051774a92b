"""Growth in reverse: a mixture without the components that its rows miss least."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer.scoring.posteriors import posteriors
from pyro_mixtures.poutine.params import ParamHandle

Values = Mapping[str, Tensor]  # constrained, by name


def losses(
    model: Callable, rows: tuple[Tensor, ...], weights: Tensor, *, site: str, chunk: int | None
) -> Tensor:
    r"""What the log likelihood would lose (C,), in nats, if a component were taken away and all else stayed.

    The others' weights grow by 1 / (1 - w_c), and so row n keeps (1 - r_nc) / (1 - w_c) of its
    density, r_nc being the component's responsibility: the loss is :math:`\sum_n \log(1 - w_c) -
    \log(1 - r_{nc})`, for all components by one exact pass. A component that shares its rows with
    another one loses little, one that has rows to itself all.

    :param weights: (C,) of the components.
    """
    total, left = (
        torch.zeros(len(weights), dtype=torch.float64, device=weights.device),
        _others(weights.double()),
    )
    for posterior, _ in posteriors(model, rows, None, site, None, chunk):
        q = posterior.log_prob.double().exp()
        lost = left.log().unsqueeze(-1) - _others(q).log()
        weight = posterior.row_weight.double()
        total += torch.where(weight > 0, weight * lost, 0.0).sum(-1)
    # Without the component that has all weight there is no mixture.
    return torch.where(left > 0, total, torch.inf)


def _others(probs: Tensor) -> Tensor:
    """What each of probabilities (C, ...) leaves to the others."""
    # At most one is more than half: the sum of the others is what it leaves, not one minus itself,
    # which rounds.
    large = probs > 0.5
    return torch.where(large, torch.where(large, 0.0, probs).sum(0), 1 - probs)


def weights_of(params: Mapping[str, ParamHandle], values: Values, components: int) -> Tensor:
    """The one simplex param (C,).

    :raises OptionError: when there is none.
    """
    for name, param in params.items():
        if param.constraint is constraints.simplex and values[name].shape == (components,):
            return values[name]
    raise OptionError(
        "a warm start needs weights that are one simplex param: give warm_start=False"
    )


def without(
    component: int, params: Mapping[str, ParamHandle], values: Values, components: int
) -> dict[str, Tensor]:
    """Values of ``params``, those of C - 1 components, from ``values`` of C."""
    kept = [c for c in range(components) if c != component]
    found = {}
    for name, param in params.items():
        value, shape = values[name], _shape(param)
        if (
            value.shape != shape
        ):  # one entry a component, as growth has checked; others are shared by all
            value = value[kept]
        if param.constraint is constraints.simplex and shape == (components - 1,):
            value = value / value.sum()
        found[name] = value
    return found


def _shape(param: ParamHandle) -> Any:
    return torch.distributions.transform_to(param.constraint)(param.leaf.detach()).shape
