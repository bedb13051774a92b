"""Linear regressions: leave-one-out gains, against refits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyro_mixtures.distributions.regression.linear_regressions import (
    LinearRegressions,
    RegressionStatistics,
)
from pyro_mixtures.testing import assert_near
from tests.distributions.regression.linear_rows import (
    COMPONENTS,
    FEATURES,
    OUTPUTS,
    ROWS,
    build,
    few,
    normal,
    rows_of,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


def least(family: LinearRegressions, x: Tensor, y: Tensor, c: int) -> float:
    """Minimal loss of a cluster at fixed scales, by scikit-learn."""
    if not len(y):
        return 0.0
    y = y.reshape(len(y), -1)
    sd = family.scale.detach().reshape(len(family.scale), -1)[c]
    own = len(y) * (sd.log().sum() + 0.5 * len(sd) * math.log(2 * math.pi)).item()
    mean_x, mean_y = x.mean(0), y.mean(0)
    a = torch.cat(
        [x - mean_x, math.sqrt(len(y) * family.ridge) * torch.eye(x.shape[1], dtype=x.dtype)]
    )
    b = torch.cat([y - mean_y, torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype)])
    weight = torch.from_numpy(np.linalg.lstsq(a.numpy(), b.numpy(), rcond=1e-11)[0])
    return own + 0.5 * ((b - a @ weight).square().sum(0) / sd.square()).sum().item()


def gains_by_refits(family: LinearRegressions, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    gains = []
    for i, c in enumerate(labels.tolist()):
        own = labels == c
        rest = own.clone()
        rest[i] = False
        gains.append(least(family, x[own], y[own], c) - least(family, x[rest], y[rest], c))
    return torch.tensor(gains, dtype=torch.float64)


def partition_statistics(
    family: LinearRegressions, y: Tensor, labels: Tensor
) -> RegressionStatistics:
    return family[labels.unsqueeze(0)].statistics(y, torch.ones(1, len(y), dtype=y.dtype))


def check_gains(
    x: Tensor, y: Tensor, labels: Tensor, ridge: float, outputs: int | None, tolerance=1e-8
) -> None:
    family = build(x, outputs, ridge)
    found = family.leave_one_out_at(partition_statistics(family, y, labels), labels, y).detach()
    torch.testing.assert_close(
        found, gains_by_refits(family, x, y, labels), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("ridge", [0.0, 0.05, 3.0])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_leave_one_out_gains_are_those_of_refits(outputs, ridge):
    x, y = rows_of(outputs)
    labels = torch.randint(COMPONENTS, (ROWS,), generator=torch.Generator().manual_seed(3))
    check_gains(x, y, labels, ridge, outputs)
    check_gains(100 + x, 100 + y, labels, ridge, outputs)


@few
@given(rows=st.integers(1, 14), ridge=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 99))
def test_gains_of_clusters_with_few_rows(rows, ridge, seed):
    """Fewer rows than coefficients, clusters of one row, clusters without rows."""
    x, y = normal(rows, FEATURES, seed=seed), normal(rows, seed=seed + 1)
    labels = torch.randint(COMPONENTS, (rows,), generator=torch.Generator().manual_seed(seed))
    check_gains(x, y, labels, ridge, None, 1e-6)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_gains_of_rows_of_leverage_one(ridge):
    """A row of leverage one has no residual, and does not change those of the others."""
    x = torch.zeros(12, FEATURES, dtype=torch.float64)
    x[:, 0], x[3, 1] = normal(12, seed=3), 1.0
    check_gains(x, normal(12, seed=4), torch.zeros(12, dtype=torch.int64), ridge, None)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_gains_of_identical_rows(ridge):
    x, y = normal(1, FEATURES).expand(9, -1).clone(), normal(9, seed=1)
    check_gains(x, y, torch.tensor([0] * 6 + [1] * 2 + [2]), ridge, None)


def test_gains_do_not_leave_float32():
    x, y = rows_of(None, dtype=torch.float32)
    labels = torch.zeros(ROWS, dtype=torch.int64)
    family, wide = build(x), build(x.double())
    found = family.leave_one_out_at(partition_statistics(family, y, labels), labels, y)
    assert found.dtype == torch.float32
    expected = wide.leave_one_out_at(
        partition_statistics(wide, y.double(), labels), labels, y.double()
    )
    assert_near(found, expected, 1e-5)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_a_row_by_itself_costs_its_constants_alone(outputs):
    x, y = rows_of(outputs, rows=3)
    family = build(x, outputs, 0.4)
    all_components = torch.arange(COMPONENTS).unsqueeze(-1).expand(-1, 3)
    expected = torch.tensor(
        [
            [least(family, x[i : i + 1], y[i : i + 1], c) for i in range(3)]
            for c in range(COMPONENTS)
        ]
    )
    torch.testing.assert_close(
        family.alone_at(all_components, y).detach(), expected.double(), rtol=1e-6, atol=1e-6
    )
