"""Multinomial logistic regression with soft labels: starts far from the scale of the data."""

import pytest
import torch

from pyro_mixtures.distributions.gated_weights import GatedWeights
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


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize(
    ("offset", "spread", "dtype"),
    [(1.7e9, 60.0, F64), (1e6, 1.0, F64), (5e4, 2e4, F64), (5e4, 2e4, torch.float32)],
)
def test_gates_on_covariates_far_from_zero(offset, spread, dtype, reference, ridge):
    """The gate is that of standardized covariates, by plain Newton steps with the same penalty."""
    draw = torch.Generator().manual_seed(0)
    v = torch.randn(400, 2, generator=draw, dtype=F64)
    u = torch.stack([offset + spread * v[:, 0], v[:, 1]], -1).to(dtype)
    logits = torch.tensor([[0.0, 0.0], [1.0, -0.5], [-0.7, 0.4]], dtype=F64) @ v.T
    q = (logits + torch.randn(3, 400, generator=draw, dtype=F64)).softmax(0).to(dtype)
    weight = torch.zeros(3 - reference, 2, dtype=dtype)
    gate = GatedWeights(u, weight, weight[:, 0].clone(), ridge=ridge, reference=reference)
    z = torch.arange(3).unsqueeze(-1).expand(-1, 400)
    best = gate.maximizers(gate.statistics_of(z, q), frozenset({"weight", "bias"}), None)
    fitted = GatedWeights(u, **best, reference=reference)

    wide = u.double()
    center, size = wide.mean(0), wide.std(0)
    design = torch.cat([(wide - center) / size, torch.ones(400, 1, dtype=F64)], -1)

    def loss(flat):
        theta = flat.reshape(-1, 3)
        penalty = (theta[:, :2] / size).square().sum()
        if reference:
            theta = torch.cat([torch.zeros(1, 3, dtype=F64), theta])
        return 400 * ridge * penalty - (q.double().T * (design @ theta.T).log_softmax(-1)).sum()

    theta = torch.zeros(3 * (3 - reference), dtype=F64)
    for _ in range(30):
        curvature = torch.autograd.functional.hessian(loss, theta)
        slope = torch.autograd.functional.jacobian(loss, theta)
        theta = theta - torch.linalg.pinv(curvature, hermitian=True) @ slope
    theta = theta.reshape(-1, 3)
    if reference:
        theta = torch.cat([torch.zeros(1, 3, dtype=F64), theta])
    expected = (design @ theta.T).softmax(-1)
    tolerance = 1e-6 + 100 * torch.finfo(dtype).eps * offset / spread
    torch.testing.assert_close(fitted.table().exp().double(), expected, rtol=0, atol=tolerance)
