"""Multinomial logistic regression with soft labels: starts far from the scale of the data."""

import pytest
import torch

from pyro_mixtures.ops.optimize.softmax_regression import SoftmaxRows, minimize

F64 = torch.float64


@pytest.mark.parametrize("fixed", [0, 1])
@pytest.mark.parametrize("size", [50.0, 1e3, 1e6])
def test_saturated_starts_lead_to_the_optimum(size, fixed):
    x = torch.randn(200, 2, dtype=F64)
    y = (x @ torch.tensor([1.0, -2.0], dtype=F64) + 0.5).sigmoid().bernoulli()
    design = torch.cat([x, torch.ones(len(x), 1, dtype=F64)], -1)
    sums = torch.stack([(1 - y) @ design, y @ design])
    rows = SoftmaxRows(design, torch.ones(len(x), dtype=F64), sums)
    zero = torch.zeros(2, 3, dtype=F64)
    far = zero.clone()
    far[1] = size
    penalty = torch.zeros(3, dtype=F64)
    found, expected = (minimize(rows, start, penalty, fixed=fixed) for start in (far, zero))
    torch.testing.assert_close(
        (design @ found.T).softmax(-1), (design @ expected.T).softmax(-1), atol=1e-6, rtol=0
    )
