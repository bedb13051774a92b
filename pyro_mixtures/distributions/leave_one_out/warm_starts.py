"""What rows add to the minimal loss of clusters that are trained by gradients, from a few steps."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import grad, grad_and_value, vjp, vmap

from pyro_mixtures.errors import ClosedFormError, NumericalError

# Largest number of entries that simultaneous problems may keep for their gradients.
_NUMBERS = 1 << 24
# Products with the Hessian that estimate its largest curvature.
_POWER_ITERATIONS = 12

Params = dict[str, Tensor]
Losses = Callable[[Params], Tensor]  # parameters -> the losses (n,) of a cluster's rows


class Descent(NamedTuple):
    """Gradient descent that fits clusters."""

    steps: int
    rate: float | None  # step size; None for one over the largest curvature of the mean loss


def gains_by_steps(losses: Losses, params: Params, weight: Tensor, descent: Descent) -> Tensor:
    r"""Estimate what each row adds to the minimal weighted sum of a cluster's losses.

    The cluster, and the cluster without each row, take the same steps of gradient descent from
    ``params``, so that the gain of a cluster that is not yet fitted by training alone cancels.
    Steps that would raise a problem's loss are not taken, and halve its later ones; without a row,
    the end point of the whole cluster may be the better one. So with :math:`\theta` the parameters

    .. math:: w_i \ell_i \le \mathrm{gain}_i \le F_S(\theta) - f(S \setminus i),

    where the row's loss on the left is that after the steps of the whole cluster. Gains tend to the
    exact ones as the number of steps grows, if the steps reach minima; without steps, and without
    parameters, they are the rows' losses. Each step evaluates n problems of n rows, simultaneously
    as far as memory allows.

    :param losses: computes the losses (n,) of the cluster's rows from parameters.
    :param params: the cluster's parameters.
    :param weight: (n,) row weights.
    :param descent: steps to take.
    :returns: (n,) in float64.
    :raises ClosedFormError: when ``torch.vmap`` cannot run the losses for many parameters at once.
    """
    params, weight = {name: value.detach() for name, value in params.items()}, weight.double()
    if not params:
        return weight * losses(params).detach().double()
    try:
        rate = _rate(losses, params, weight) if descent.rate is None else descent.rate
        length = rate / weight.sum()
        whole, end = _descend(losses, params, weight.unsqueeze(0), length, descent.steps)
        with torch.no_grad():
            end_params = {name: value[0] for name, value in end.items()}
            row_losses = weight * losses(end_params).double()
        without = []
        numbers = torch.arange(len(weight), device=weight.device)
        for rows in numbers.split(_problems(losses, params)):
            others = weight.expand(len(rows), -1).scatter(1, rows.unsqueeze(-1), 0.0)
            without.append(_descend(losses, params, others, length, descent.steps)[0])
    except RuntimeError as error:
        raise ClosedFormError(
            "leave-one-out gains train an expert for many rows at once by torch.vmap, which "
            f"refuses it: {error}; use score='loss', or experts of plain torch operations without "
            "randomness"
        ) from error
    return whole - torch.minimum(torch.cat(without), whole - row_losses)


def _descend(
    losses: Losses, start: Params, weight: Tensor, length: Tensor, steps: int
) -> tuple[Tensor, Params]:
    """Minimize R weighted sums of losses by gradient descent.

    :param weight: (R, n) row weights of the problems.
    :param length: () first step size.
    :returns: the losses (R,) and the parameters (R, ...) after the steps.
    """

    def total(params: Params, row_weight: Tensor) -> Tensor:
        return (losses(params).double() * row_weight).sum()

    evaluate = vmap(grad_and_value(total))
    params = {name: value.expand(len(weight), *value.shape) for name, value in start.items()}
    length = length.expand(len(weight))
    slope, loss = evaluate(params, weight)
    for _ in range(steps):
        trial = {name: value - _like(length, value) * slope[name] for name, value in params.items()}
        trial_slope, trial_loss = evaluate(trial, weight)
        accepted = trial_loss <= loss
        params, slope = _choose(accepted, trial, params), _choose(accepted, trial_slope, slope)
        loss = torch.where(accepted, trial_loss, loss)
        length = torch.where(accepted, length, 0.5 * length)
    return loss, params


def _like(rows: Tensor, value: Tensor) -> Tensor:
    return rows.to(value.dtype).reshape(-1, *(1,) * (value.dim() - 1))


def _choose(accepted: Tensor, new: Params, old: Params) -> Params:
    return {
        name: torch.where(_like(accepted, new[name]).bool(), new[name], old[name]) for name in new
    }


def _rate(losses: Losses, params: Params, weight: Tensor) -> float:
    """Return one over the largest absolute curvature of the mean loss, by power iteration."""

    def mean(params: Params) -> Tensor:
        return (losses(params).double() * weight).sum() / weight.sum()

    generator = torch.Generator("cpu").manual_seed(0)
    # The Hessian is symmetric, so a vector-Jacobian product of the gradient is a Hessian product.
    hessian_product: Callable[[Params], tuple[Params]] = vjp(grad(mean), params)[1]
    direction = {
        name: torch.randn(value.shape, generator=generator, device="cpu").to(value)
        for name, value in params.items()
    }
    norm = _norm(direction)
    for _ in range(_POWER_ITERATIONS):
        (direction,) = hessian_product({name: value / norm for name, value in direction.items()})
        norm = _norm(direction)
        if not 0 < norm < math.inf:
            raise NumericalError(
                f"the loss of a cluster has curvature {norm}, which allows no step size: "
                "pass leave_one_out_rate="
            )
    return 1 / norm


def _norm(params: Params) -> float:
    return float(sum(value.double().square().sum() for value in params.values())) ** 0.5


def _problems(losses: Losses, params: Params) -> int:
    """Return how many problems to solve simultaneously, by what one keeps for its gradients."""
    # Parameters, trial parameters, and the slopes of both.
    sizes = [value.numel() for value in params.values()] * 4

    def record(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(record, lambda tensor: tensor):
        losses({name: value.detach().requires_grad_() for name, value in params.items()})
    return max(1, _NUMBERS // sum(sizes))
