r"""Multinomial logistic regression with soft labels: Newton's method, some rows at a time.

With responsibilities q of rows x and :math:`w_n = \sum_c q_{nc}`, the problem is to minimise over
:math:`\theta`

.. math:: -\sum_{nc} q_{nc} \log \mathrm{softmax}(\theta x_n)_c + n \sum_{cp} d_p \theta_{cp}^2 =
    \sum_n w_n \log \sum_c e^{\theta_c x_n} - \sum_c \theta_c \sum_n q_{nc} x_n + n \sum_{cp} d_p
    \theta_{cp}^2,

n the sum of all w: of q no more is needed than the sums :math:`\sum_n q_{nc} x_n`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_STEPS = 100
# A step that promises less than this a row is the last; nats.
_TOLERANCE = 1e-12
_SUFFICIENT = 1e-4  # Armijo's condition
_SHORTEST = 1e-10  # of a step: what is left is rounding
# Coefficients of which a dense Hessian is made; with more, it is only multiplied by.
_DENSE = 512
# Conjugate gradients stop at this part of the residual they began with, or after so many steps.
_RESIDUAL = 1e-2
_PRODUCTS = 100
# Numbers in float64 alive at once.
_NUMBERS = 1 << 21


class SoftmaxRows(NamedTuple):
    """Rows, and what the problem has to know of their soft labels."""

    design: Tensor  # (N, Q)
    weight: Tensor  # (N,)  w, positive
    sums: Tensor  # (C, Q) float64  sum q x

    def chunks(self, width: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and weights in float64, so many that ``width`` numbers for each stay within bounds."""
        size = max(1, _NUMBERS // width)
        for x, weight in zip(self.design.split(size), self.weight.split(size), strict=True):
            yield x.double(), weight.double()


def minimize(rows: SoftmaxRows, start: Tensor, penalty: Tensor, *, held: int = 0) -> Tensor:
    r"""Coefficients (C, Q) of the minimum in float64, from ``start`` (C, Q); the loss never rises.

    Where zero is better than the start it begins at zero.

    Newton steps, halved until they bring what Armijo's condition asks for. Above 512 coefficients
    they are solved for by conjugate gradients, preconditioned by a bound of the Hessian that is the
    same in all steps,
    :math:`\frac12 (I - 1 1^T / C) \otimes \sum_n w_n x_n x_n^T` (Böhning, "Multinomial logistic
    regression algorithm", AISM 44, 1992). A problem without a minimum (separable classes) is left
    where its loss has all but stopped falling.

    :param penalty: d (Q,), not negative.
    :param held: the first so many components stay as they are.

    >>> rows = SoftmaxRows(torch.ones(4, 1), torch.ones(4), torch.tensor([[1.0], [3.0]], dtype=torch.float64))
    >>> minimize(rows, torch.zeros(2, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), held=1).softmax(0)
    tensor([[0.2500],
            [0.7500]], dtype=torch.float64)
    """
    pull = rows.weight.sum(dtype=torch.float64) * penalty
    dense = (len(start) - held) * start.shape[1] <= _DENSE
    bound = None if dense else _bound(rows, pull, held)
    at, here = _better(rows, start, pull, held)
    for _ in range(_STEPS):
        gradient = _gradient(rows, at, pull)[held:]
        step = (
            _newton(rows, at, gradient, pull, held)
            if bound is None
            else _iterated(rows, at, gradient, pull, bound)
        )
        promise = -0.5 * float((step * gradient).sum())
        found = _search(rows, at, here, step, promise, pull, held)
        if found is None:
            break
        at, here = found
        if promise <= _TOLERANCE * float(rows.weight.sum()):
            break
    return at


def _better(rows: SoftmaxRows, start: Tensor, pull: Tensor, held: int) -> tuple[Tensor, float]:
    """Where to begin, and the loss there: far from the data's scale there is no curvature left to go by."""
    zero = start.clone()
    zero[held:] = 0.0
    here, there = _value(rows, start, pull), _value(rows, zero, pull)
    return (start, here) if here <= there else (zero, there)


def _search(
    rows: SoftmaxRows,
    at: Tensor,
    here: float,
    step: Tensor,
    promise: float,
    pull: Tensor,
    held: int,
) -> tuple[Tensor, float] | None:
    """The longest of the halved steps that brings enough, and its loss."""
    if not promise > 0:
        return None
    length, last = 1.0, promise <= _TOLERANCE * float(rows.weight.sum())
    while length > (0.5 if last else _SHORTEST):
        trial = at.clone()
        trial[held:] += length * step
        there = _value(rows, trial, pull)
        if there <= here - 2 * _SUFFICIENT * length * promise:
            return trial, there
        length /= 2
    return None


def _value(rows: SoftmaxRows, at: Tensor, pull: Tensor) -> float:
    total = (pull * at.square()).sum() - (rows.sums * at).sum()
    for x, weight in rows.chunks(len(at)):
        total = total + weight @ (x @ at.T).logsumexp(-1)
    return float(total)


def _gradient(rows: SoftmaxRows, at: Tensor, pull: Tensor) -> Tensor:
    out = 2 * pull * at - rows.sums
    for x, weight in rows.chunks(len(at)):
        out += ((x @ at.T).softmax(-1) * weight.unsqueeze(-1)).T @ x
    return out


def _newton(rows: SoftmaxRows, at: Tensor, gradient: Tensor, pull: Tensor, held: int) -> Tensor:
    """The Newton step of the components from ``held`` on; the shortest, where several are as good."""
    return -(_inverse(_hessian(rows, at, pull, held)) @ gradient.reshape(-1)).reshape(
        gradient.shape
    )


def _hessian(rows: SoftmaxRows, at: Tensor, pull: Tensor, held: int) -> Tensor:
    free, wide = len(at) - held, at.shape[1]
    size = free * wide
    out = (2 * pull).repeat(free).diag()
    own = out.view(free, wide, free, wide).diagonal(dim1=0, dim2=2)  # (Q, Q, free), a view
    for x, weight in rows.chunks(size + len(at)):
        probs = (x @ at.T).softmax(-1)[:, held:]
        each = (probs.unsqueeze(-1) * x.unsqueeze(1)).reshape(len(x), size)
        weighted = each * weight.unsqueeze(-1)
        out -= weighted.T @ each
        own += torch.einsum("nfq,nr->qrf", weighted.reshape(len(x), free, wide), x)
    return out


class _Bound(NamedTuple):
    """Inverse of the Hessian's bound: apart for the components' mean and for their differences from it."""

    apart: Tensor  # (Q, Q)
    common: Tensor  # (Q, Q)
    held: int

    def solve(self, gradient: Tensor) -> Tensor:
        """The bound's step (C - held, Q) to where ``gradient`` comes from."""
        mean = gradient.mean(0, keepdim=True)
        return (gradient - mean) @ self.apart + mean @ self.common


def _bound(rows: SoftmaxRows, pull: Tensor, held: int) -> _Bound:
    gram, free = torch.zeros_like(pull.diag()), len(rows.sums) - held
    for x, weight in rows.chunks(len(gram)):
        gram += (x * weight.unsqueeze(-1)).T @ x
    # Eigenvalues of (I - 1 1^T / C) / 2 among the components that move.
    apart, common = (
        _inverse(half * gram + (2 * pull).diag())
        for half in (0.5, 0.5 * (1 - free / (free + held)))
    )
    return _Bound(apart, common, held)


def _iterated(
    rows: SoftmaxRows, at: Tensor, gradient: Tensor, pull: Tensor, bound: _Bound
) -> Tensor:
    """The Newton step by preconditioned conjugate gradients, to a few digits."""
    step, residual = torch.zeros_like(gradient), -gradient
    turned = bound.solve(residual)
    direction, size = turned, float((residual * turned).sum())
    enough = _RESIDUAL**2 * size
    for _ in range(_PRODUCTS):
        bent = _product(rows, at, direction, pull, bound.held)
        curvature = float((direction * bent).sum())
        if size <= enough or curvature <= 0:
            break
        step = step + size / curvature * direction
        residual = residual - size / curvature * bent
        turned = bound.solve(residual)
        size, before = float((residual * turned).sum()), size
        direction = turned + size / before * direction
    return step


def _product(rows: SoftmaxRows, at: Tensor, direction: Tensor, pull: Tensor, held: int) -> Tensor:
    """The Hessian times ``direction`` (C - held, Q)."""
    out = 2 * pull * direction
    for x, weight in rows.chunks(2 * len(at)):
        probs = (x @ at.T).softmax(-1)[:, held:]
        slope = x @ direction.T
        bent = probs * (slope - (probs * slope).sum(-1, keepdim=True))
        out += (bent * weight.unsqueeze(-1)).T @ x
    return out


def _inverse(hessian: Tensor) -> Tensor:
    """Pseudo-inverse, of coefficients scaled so that their units do not decide what is taken for rounding."""
    size = hessian.diagonal().clamp_min(0).sqrt()
    unit = torch.where(size > 0, 1 / size, 0.0)
    scale = unit.unsqueeze(-1) * unit
    rounding = 8 * len(hessian) * torch.finfo(hessian.dtype).eps
    return scale * torch.linalg.pinv(scale * hessian, rtol=rounding, hermitian=True)
