"""Softmax distributions over shared features against dense torch, in chunks and at once."""

import pytest
import torch
from torch import Tensor

from pyro_mixtures.ops import logits
from pyro_mixtures.ops.logits import (
    item_covariance,
    log_table,
    log_totals,
    running_log_totals,
)

F64 = torch.float64
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(params=["chunked", "whole"])
def chunks(request, monkeypatch) -> None:
    """Several chunks of items and groups of components, or one of each."""
    if request.param == "chunked":
        monkeypatch.setattr(logits, "_COMPONENTS", 3)
        monkeypatch.setattr(logits, "_NUMBERS", 1)  # the least chunk, 64 items
        monkeypatch.setattr(logits, "_COLUMNS", 8)
        monkeypatch.setattr(logits, "_SCALED", 1)


def problem(
    dtype: torch.dtype, components: int = 7, items: int = 300, size: float = 1.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    theta, x = (
        torch.randn(n, 4, generator=generator, dtype=F64, device="cpu").to(dtype)
        for n in (components, items)
    )
    return size * theta, x


def moments(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and covariances by definition, in float64."""
    prob = (theta.double() @ x.double().T).softmax(-1)
    mean = prob @ x.double()
    away = x.double() - mean.unsqueeze(1)
    return mean, torch.einsum("cp,cpl,cpm->clm", prob, away, away)


@pytest.mark.meta
def test_log_totals_and_gradients_equal_dense_torch(dtype, chunks):
    theta, x = problem(dtype)
    mine, theirs = theta.clone().requires_grad_(), theta.double().requires_grad_()
    expected = (theirs @ x.double().T).logsumexp(-1)
    found = log_totals(mine, x)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )
    weight = torch.arange(7.0, dtype=F64, device="cpu")
    (weight.to(dtype) * found).sum().backward()
    (weight * expected).sum().backward()
    torch.testing.assert_close(
        mine.grad.double(), theirs.grad, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype]
    )


def test_log_totals_pass_gradcheck():
    theta, x = problem(F64)
    torch.autograd.gradcheck(lambda t: log_totals(t, x), theta.requires_grad_())


@pytest.mark.meta
def test_table_and_moments_equal_dense_torch(dtype, chunks):
    theta, x = problem(dtype)
    table, mean = log_table(theta, x), moments(theta, x)
    expected = (theta.double() @ x.double().T).log_softmax(-1)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}
    torch.testing.assert_close(table.log_prob.double(), expected, **tolerance)
    torch.testing.assert_close(table.log_total, running_log_totals(theta, x), **tolerance)
    for known in (None, table.log_prob):
        torch.testing.assert_close(
            logits.tilted_means(theta, x, table.log_total, known), mean[0], **tolerance
        )
    step = theta.flip(0)
    along = logits.variances_along(step, theta, x, table.log_total, mean[0], table.log_prob)
    expected = torch.einsum("cl,clm,cm->c", step.double(), mean[1], step.double())
    torch.testing.assert_close(along, expected, **tolerance)
    covariance = logits.tilted_covariances(theta, x, table.log_total, mean[0]).covariance
    torch.testing.assert_close(covariance, mean[1], **tolerance)
    expected = torch.cov(x.double().T, correction=0).unsqueeze(0)
    torch.testing.assert_close(item_covariance(x).covariance, expected, **tolerance)


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_large_logits_do_not_overflow(dtype, chunks, size):
    theta, x = problem(dtype, size=size)
    expected = (theta.double() @ x.double().T).logsumexp(-1)
    torch.testing.assert_close(running_log_totals(theta, x), expected, rtol=3e-6, atol=0)
    mean = logits.tilted_means(theta, x, running_log_totals(theta, x))
    assert mean.isfinite().all()


def test_many_items_lose_no_digits():
    """A naive float32 sum of 10^6 terms would lose the second half of its digits."""
    theta = torch.randn(2, 3)
    x = torch.randn(1_000_000, 3)
    expected = (theta.double() @ x.double().T).logsumexp(-1)
    torch.testing.assert_close(running_log_totals(theta, x), expected, rtol=0, atol=3e-7)


def test_inverses_leave_out_constant_directions():
    x = problem(F64)[1]
    x = torch.cat([x, torch.full((300, 1), 7.0, dtype=F64), x[:, :1] + x[:, 1:2]], -1)
    found = item_covariance(x)
    expected = torch.linalg.pinv(torch.cov(x.T, correction=0), hermitian=True, rtol=1e-10)
    gradient = torch.cov(x.T, correction=0) @ torch.randn(6, dtype=F64)
    # In the span of the features; the inverse is zero along constant ones.
    assert (found.inverse()[0] @ gradient)[4].abs() < 1e-12
    torch.testing.assert_close(x @ found.inverse()[0] @ gradient, x @ expected @ gradient)
