r"""What rows add to parts that only steps can fit: :math:`f(S) - f(S \setminus i)` from a few descents of each."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import grad, grad_and_value, vjp, vmap

from pyro_mixtures.errors import ClosedFormError, NumericalError

# Numbers that descents of many problems side by side may keep for their gradients.
_NUMBERS = 1 << 24
# Products with the Hessian that find its largest curvature.
_POWERS = 12

Params = dict[str, Tensor]
Losses = Callable[[Params], Tensor]  # parameters -> the losses (n,) of a part's rows


class Descent(NamedTuple):
    """How parts are fitted: ``steps`` of length ``rate``, or of one over the largest curvature of the mean loss."""

    steps: int
    rate: float | None


def gains_by_steps(losses: Losses, params: Params, weight: Tensor, descent: Descent) -> Tensor:
    r"""What each of a part's rows (n,), of ``weight`` (n,), adds to the least weighted sum of ``losses``.

    The part, and the part without each row, take the same steps of gradient descent from
    ``params``, so that what a part not yet fitted gains by training alone cancels. Steps that would
    raise a problem's loss are not taken, and halve its next ones; without a row, the part's own end
    may be the better one. So with :math:`\theta` as given

    .. math:: w_i \ell_i \le \mathrm{gain}_i \le F_S(\theta) - f(S \setminus i),

    the row's loss on the left after the part's own steps. Gains tend to the exact ones as steps
    grow, where steps find minima; without steps, and without parameters, they are the rows' losses.
    Each step evaluates n problems of n rows, side by side as far as memory allows.

    :raises ClosedFormError: when ``torch.vmap`` cannot run the part for many parameters at once.
    """
    params, weight = {name: value.detach() for name, value in params.items()}, weight.double()
    if not params:
        return weight * losses(params).detach().double()
    try:
        rate = _rate(losses, params, weight) if descent.rate is None else descent.rate
        length = rate / weight.sum()
        whole, end = _descend(losses, params, weight.unsqueeze(0), length, descent.steps)
        with torch.no_grad():
            own = weight * losses({name: value[0] for name, value in end.items()}).double()
        without = []
        for rows in torch.arange(len(weight), device=weight.device).split(
            _problems(losses, params)
        ):
            others = weight.expand(len(rows), -1).scatter(1, rows.unsqueeze(-1), 0.0)
            without.append(_descend(losses, params, others, length, descent.steps)[0])
    except RuntimeError as error:
        raise ClosedFormError(
            f"leave-one-out gains train an expert for many rows at once by torch.vmap, which refuses it: {error}; use "
            "score='loss', or experts of plain torch operations without randomness"
        ) from error
    return whole - torch.minimum(torch.cat(without), whole - own)


def _descend(
    losses: Losses, start: Params, weight: Tensor, length: Tensor, steps: int
) -> tuple[Tensor, Params]:
    """Losses (R,) of R problems after some steps, and where: problem r weighs rows by ``weight`` (R, n)."""

    def total(at: Params, w: Tensor) -> Tensor:
        return (losses(at).double() * w).sum()

    look = vmap(grad_and_value(total))
    at = {name: value.expand(len(weight), *value.shape) for name, value in start.items()}
    length = length.expand(len(weight))
    slope, here = look(at, weight)
    for _ in range(steps):
        trial = {name: value - _like(length, value) * slope[name] for name, value in at.items()}
        tilted, there = look(trial, weight)
        good = there <= here
        at, slope = _choose(good, trial, at), _choose(good, tilted, slope)
        here, length = torch.where(good, there, here), torch.where(good, length, 0.5 * length)
    return here, at


def _like(rows: Tensor, value: Tensor) -> Tensor:
    return rows.to(value.dtype).reshape(-1, *(1,) * (value.dim() - 1))


def _choose(good: Tensor, new: Params, old: Params) -> Params:
    return {name: torch.where(_like(good, new[name]).bool(), new[name], old[name]) for name in new}


def _rate(losses: Losses, params: Params, weight: Tensor) -> float:
    """One over the largest curvature of the mean loss, in absolute value, by power iteration."""

    def mean(at: Params) -> Tensor:
        return (losses(at).double() * weight).sum() / weight.sum()

    generator = torch.Generator("cpu").manual_seed(0)
    bend: Callable = vjp(grad(mean), params)[1]  # the Hessian is symmetric
    along = {
        name: torch.randn(value.shape, generator=generator, device="cpu").to(value)
        for name, value in params.items()
    }
    size = _norm(along)
    for _ in range(_POWERS):
        (along,) = bend({name: value / size for name, value in along.items()})
        size = _norm(along)
        if not 0 < size < math.inf:
            raise NumericalError(
                f"a part's loss has curvature {size}, which no step's length can follow: pass leave_one_out_rate="
            )
    return 1 / size


def _norm(params: Params) -> float:
    return float(sum(value.double().square().sum() for value in params.values())) ** 0.5


def _problems(losses: Losses, params: Params) -> int:
    """How many problems to solve side by side, by what one keeps for its gradients."""
    kept = [
        value.numel() for value in params.values()
    ] * 4  # the parameters, trials, and both slopes

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(count, lambda tensor: tensor):
        losses({name: value.detach().requires_grad_() for name, value in params.items()})
    return max(1, _NUMBERS // sum(kept))
