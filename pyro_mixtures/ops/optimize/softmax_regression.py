r"""Multinomial logistic regression with soft labels, by Newton's method over chunks of rows.

With responsibilities q of rows x and :math:`w_n = \sum_c q_{nc}`, the problem is to minimize over
:math:`\theta`

.. math:: -\sum_{nc} q_{nc} \log \mathrm{softmax}(\theta x_n)_c + n \sum_{cp} d_p \theta_{cp}^2 =
    \sum_n w_n \log \sum_c e^{\theta_c x_n} - \sum_c \theta_c \sum_n q_{nc} x_n + n \sum_{cp} d_p
    \theta_{cp}^2,

where n is the sum of all w. Only the sums :math:`\sum_n q_{nc} x_n` of q are needed.

Steps are taken for standardized covariates, so neither their units nor their distance from zero
spoil them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops.optimize.line_search import SHORTEST, backtrack

_STEPS = 100
# The last step is one that promises less than this, in nats per row.
_TOLERANCE = 1e-12
# Up to this number of coefficients the Hessian is a dense matrix. Above, it is only multiplied by.
_DENSE = 512
# Conjugate gradients stop when the residual has fallen to this fraction, or after this number of
# products.
_RESIDUAL = 1e-2
_PRODUCTS = 100
# A covariate that deviates from one of its values by fewer roundings than this is constant.
_CONSTANT = 2
# Largest number of float64 elements of a chunk.
_NUMBERS = 1 << 21


class Standard(NamedTuple):
    """Standardized covariates; those that are constant up to rounding become zero."""

    center: Tensor  # (Q,) zero for the bias
    size: Tensor  # (Q,) one for the bias and constant covariates
    unit: Tensor  # (Q,) 1 / size, zero for constant covariates

    def coefficients(self, theta: Tensor) -> Tensor:
        """Return the coefficients (C, Q) of standardized rows for those of the given rows."""
        bias = theta[:, -1:] + (theta @ self.center).unsqueeze(-1)
        return torch.cat([(theta * self.size)[:, :-1], bias], -1)

    def given(self, theta: Tensor) -> Tensor:
        """Return the coefficients (C, Q) of the given rows for those of standardized rows."""
        weight = theta / self.size
        return torch.cat([weight[:, :-1], theta[:, -1:] - (weight @ self.center).unsqueeze(-1)], -1)


class SoftmaxRows(NamedTuple):
    """Rows and sums of their soft labels."""

    design: Tensor  # (N, Q), ones in the last column
    weight: Tensor  # (N,)  w, positive
    sums: Tensor  # (C, Q) float64  sum q x
    standard: Standard | None = None  # by which chunks, and the sums, are standardized

    def chunks(self, width: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over rows and weights in float64, in chunks for ``width`` elements per row."""
        size = max(1, _NUMBERS // width)
        for x, weight in zip(self.design.split(size), self.weight.split(size), strict=True):
            chunk = x.double()
            if self.standard is not None:
                chunk = (chunk - self.standard.center) * self.standard.unit
            yield chunk, weight.double()

    def standardized(self) -> "SoftmaxRows":
        """Return the same rows, whose chunks and sums are those of standardized covariates."""
        total, square = self.sums.new_zeros(2, self.sums.shape[1])
        reference = self.design[:1].double()
        for x, weight in self.chunks(2 * len(total)):
            total += weight @ (x - reference)
            square += weight @ (x - reference).square()
        count = self.weight.sum(dtype=torch.float64)
        center, deviation = reference[0] + total / count, (square / count).sqrt()
        rounding = torch.finfo(self.design.dtype).eps * center.abs()
        varies = deviation > _CONSTANT * rounding
        size = torch.where(varies, deviation, 1.0)
        unit = torch.where(varies, 1 / size, 0.0)
        center[-1], size[-1], unit[-1] = 0.0, 1.0, 1.0
        sums = (self.sums - self.sums[:, -1:] * center) * unit
        return self._replace(sums=sums, standard=Standard(center, size, unit))


def minimize(rows: SoftmaxRows, start: Tensor, penalty: Tensor, *, fixed: int = 0) -> Tensor:
    r"""Find the coefficients of the minimum; the loss never rises.

    Begins at zero where zero is better than the start. Above 512 coefficients the Newton steps are
    found by conjugate gradients, preconditioned by a bound of the Hessian that is the same in all
    steps,
    :math:`\frac12 (I - 1 1^T / C) \otimes \sum_n w_n x_n x_n^T` (Böhning, "Multinomial logistic
    regression algorithm", AISM 44, 1992). A problem without a minimum (separable classes) ends
    where its loss has all but stopped falling.

    :param start: (C, Q) in float64.
    :param penalty: (Q,) d, not negative; zero for the bias.
    :param fixed: the coefficients of this number of components, the first ones, are not changed.
    :returns: (C, Q) in float64.

    >>> sums = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    >>> rows = SoftmaxRows(torch.ones(4, 1), torch.ones(4), sums)
    >>> zero = torch.zeros(2, 1, dtype=torch.float64)
    >>> minimize(rows, zero, penalty=zero[0], fixed=1).softmax(0)
    tensor([[0.2500],
            [0.7500]], dtype=torch.float64)
    """
    if not len(rows.design):
        return start
    rows = rows.standardized()
    standard = rows.standard
    assert standard is not None
    standard_start = standard.coefficients(start)
    theta = _Problem(rows, penalty / standard.size.square(), fixed).minimize(standard_start)
    moved = (theta != standard_start).any(-1, keepdim=True)
    return torch.where(moved, standard.given(theta), start)


class _Problem:
    """The loss, its derivatives, and Newton's method for them."""

    def __init__(self, rows: SoftmaxRows, penalty: Tensor, fixed: int):
        self.rows, self.fixed = rows, fixed
        self.penalty = rows.weight.sum(dtype=torch.float64) * penalty  # (Q,)
        self.tolerance = _TOLERANCE * float(rows.weight.sum())

    def minimize(self, start: Tensor) -> Tensor:
        free_coefficients = (len(start) - self.fixed) * start.shape[1]
        bound = None if free_coefficients <= _DENSE else self.hessian_bound()
        theta, loss = self.better_start(start)
        for _ in range(_STEPS):
            gradient = self.gradient(theta)[self.fixed :]
            if bound is None:
                step = self.newton_step(theta, gradient)
            else:
                step = self.truncated_newton_step(theta, gradient, bound)
            slope = (step * gradient).sum()
            promise = -0.5 * float(slope)
            if not promise > 0:
                break
            last = promise <= self.tolerance
            theta, loss, moved = self.search(theta, loss, step, slope, only_full_step=last)
            if last or not moved:
                break
        return theta

    def better_start(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Choose between ``start`` and zero, and compute the loss there.

        Far from the scale of the data there is no curvature left for Newton's method.
        """
        zero = start.clone()
        zero[self.fixed :] = 0.0
        start_loss, zero_loss = self.loss(start), self.loss(zero)
        return (start, start_loss) if bool(start_loss <= zero_loss) else (zero, zero_loss)

    def search(
        self, theta: Tensor, loss: Tensor, step: Tensor, slope: Tensor, *, only_full_step: bool
    ) -> tuple[Tensor, Tensor, bool]:
        """Search along the step; returns the coefficients, their loss, and whether they moved."""
        fixed, trial_loss = theta[: self.fixed], loss

        def losses(trial: Tensor, _: Tensor) -> Tensor:
            nonlocal trial_loss
            trial_loss = self.loss(torch.cat([fixed, trial[0]]))
            return trial_loss.unsqueeze(0)

        point, moved = backtrack(
            losses,
            theta[self.fixed :].unsqueeze(0),
            step.unsqueeze(0),
            slope.unsqueeze(0),
            loss.unsqueeze(0),
            shortest=0.5 if only_full_step else SHORTEST,
        )
        if not bool(moved[0]):
            return theta, loss, False
        return torch.cat([fixed, point[0]]), trial_loss, True

    def loss(self, theta: Tensor) -> Tensor:
        total = (self.penalty * theta.square()).sum() - (self.rows.sums * theta).sum()
        for x, weight in self.rows.chunks(len(theta)):
            total = total + weight @ (x @ theta.T).logsumexp(-1)
        return total

    def gradient(self, theta: Tensor) -> Tensor:
        total = 2 * self.penalty * theta - self.rows.sums
        for x, weight in self.rows.chunks(len(theta)):
            total += ((x @ theta.T).softmax(-1) * weight.unsqueeze(-1)).T @ x
        return total

    def newton_step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """Compute the Newton step of the free components, the shortest if it is not unique."""
        step = -(_pseudo_inverse(self.hessian(theta)) @ gradient.reshape(-1))
        return step.reshape(gradient.shape)

    def hessian(self, theta: Tensor) -> Tensor:
        """Compute the Hessian of the free coefficients."""
        free, width = len(theta) - self.fixed, theta.shape[1]
        size = free * width
        total = (2 * self.penalty).repeat(free).diag()
        # The blocks of each component with itself, (Q, Q, free): a view.
        diagonal_blocks = total.view(free, width, free, width).diagonal(dim1=0, dim2=2)
        for x, weight in self.rows.chunks(size + len(theta)):
            probs = (x @ theta.T).softmax(-1)[:, self.fixed :]
            products = (probs.unsqueeze(-1) * x.unsqueeze(1)).reshape(len(x), size)
            weighted = products * weight.unsqueeze(-1)
            total -= weighted.T @ products
            weighted = weighted.reshape(len(x), free, width)
            diagonal_blocks += torch.einsum("nfq,nr->qrf", weighted, x)
        return total

    def hessian_bound(self) -> "_HessianBound":
        gram = torch.zeros_like(self.penalty.diag())
        for x, weight in self.rows.chunks(len(gram)):
            gram += (x * weight.unsqueeze(-1)).T @ x
        penalty = (2 * self.penalty).diag()
        components = len(self.rows.sums)
        free = components - self.fixed
        # Eigenvalues of (I - 1 1^T / C) / 2 among the free components.
        difference_eigenvalue, mean_eigenvalue = 0.5, 0.5 * (1 - free / components)
        return _HessianBound(
            _pseudo_inverse(difference_eigenvalue * gram + penalty),
            _pseudo_inverse(mean_eigenvalue * gram + penalty),
        )

    def truncated_newton_step(
        self, theta: Tensor, gradient: Tensor, bound: "_HessianBound"
    ) -> Tensor:
        """Compute the Newton step to a few digits, by preconditioned conjugate gradients."""
        step, residual = torch.zeros_like(gradient), -gradient
        preconditioned = bound.solve(residual)
        direction = preconditioned
        squared_norm = float((residual * preconditioned).sum())
        target = _RESIDUAL**2 * squared_norm
        for _ in range(_PRODUCTS):
            product = self.hessian_product(theta, direction)
            curvature = float((direction * product).sum())
            if squared_norm <= target or curvature <= 0:
                break
            length = squared_norm / curvature
            step = step + length * direction
            residual = residual - length * product
            preconditioned = bound.solve(residual)
            previous, squared_norm = squared_norm, float((residual * preconditioned).sum())
            direction = preconditioned + squared_norm / previous * direction
        return step

    def hessian_product(self, theta: Tensor, direction: Tensor) -> Tensor:
        """Multiply the Hessian by ``direction`` (C - fixed, Q)."""
        total = 2 * self.penalty * direction
        for x, weight in self.rows.chunks(2 * len(theta)):
            probs = (x @ theta.T).softmax(-1)[:, self.fixed :]
            slope = x @ direction.T
            change = probs * (slope - (probs * slope).sum(-1, keepdim=True))
            total += (change * weight.unsqueeze(-1)).T @ x
        return total


class _HessianBound(NamedTuple):
    """Inverse of the bound of the Hessian, which acts on the components' mean and differences."""

    differences: Tensor  # (Q, Q)
    mean: Tensor  # (Q, Q)

    def solve(self, gradient: Tensor) -> Tensor:
        """Multiply the inverse by ``gradient`` (C - fixed, Q)."""
        mean = gradient.mean(0, keepdim=True)
        return (gradient - mean) @ self.differences + mean @ self.mean


def _pseudo_inverse(hessian: Tensor) -> Tensor:
    """Invert after scaling the coefficients, so that the rank does not depend on their units."""
    size = hessian.diagonal().clamp_min(0).sqrt()
    unit = torch.where(size > 0, 1 / size, 0.0)
    scale = unit.unsqueeze(-1) * unit
    rounding = 8 * len(hessian) * torch.finfo(hessian.dtype).eps
    return scale * torch.linalg.pinv(scale * hessian, rtol=rounding, hermitian=True)
