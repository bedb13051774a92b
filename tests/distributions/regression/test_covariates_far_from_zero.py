"""Linear regressions on covariates far from zero: the fit is that of standardized covariates.

Covariates are offset + spread * u, with u of about unit size. Fits are compared with least squares
by numpy on the standardized values of the same covariates.
"""

import math

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.guides import FullPartition, HardPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models import MixtureOfRegressions

pytestmark = pytest.mark.usefixtures("on_one_thread")

ROWS, COMPONENTS = 600, 2
ALL = frozenset({"weight", "bias", "scale"})
# Offset and spread of the first covariate, and the dtypes that can hold it.
SECONDS, INCOMES, NEAR = (1.7e9, 60.0), (5e4, 2e4), (1e6, 1.0)
UNITS = [
    (SECONDS, torch.float64),
    (NEAR, torch.float64),
    (INCOMES, torch.float64),
    (INCOMES, torch.float32),
    ((1e4, 1.0), torch.float32),
]


def rows(units: tuple[float, float], dtype: torch.dtype, outputs: int = 1) -> tuple[Tensor, Tensor]:
    """Covariates, of which the last two are nearly collinear, and outcomes (N, outputs)."""
    draw = torch.Generator().manual_seed(0)
    u, a, noise = torch.randn(3, ROWS, generator=draw, dtype=torch.float64)
    b = a + 0.06 * noise
    x = torch.stack([units[0] + units[1] * u, a, b], -1).to(dtype)
    y = (3 * a - 2 * b + 0.5 * u).unsqueeze(-1) * torch.arange(1.0, outputs + 1)
    return x, (y + 0.05 * torch.randn(y.shape, generator=draw, dtype=torch.float64)).to(dtype)


def least_squares(x: Tensor, y: Tensor, q: Tensor, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and scales at the ridge regression, from standardized covariates in float64."""
    x, y, q = (tensor.double().numpy() for tensor in (x, y, q))
    mean, level = np.average(x, 0, q), np.average(y, 0, q)
    spread = np.sqrt(np.average((x - mean) ** 2, 0, q))
    z, root = (x - mean) / spread, np.sqrt(q)[:, None]
    penalty = math.sqrt(ridge * q.sum()) * np.diag(1 / spread)
    design = np.concatenate([root * z, penalty])
    target = np.concatenate([root * (y - level), np.zeros((x.shape[1], y.shape[1]))])
    slope = np.linalg.lstsq(design, target, rcond=None)[0]
    prediction = z @ slope + level
    squares = (q[:, None] * (y - prediction) ** 2).sum(0) + (np.square(penalty @ slope)).sum(0)
    return prediction, np.sqrt(squares / q.sum())


def build(x: Tensor, outputs: int = 1, ridge: float = 0.0) -> LinearRegressions:
    weight = torch.zeros(COMPONENTS, outputs, x.shape[1], dtype=x.dtype)
    bias = torch.zeros(COMPONENTS, outputs, dtype=x.dtype)
    return LinearRegressions(x, weight, bias, torch.ones_like(bias), ridge=ridge)


def sums_over(batches: int, x: Tensor, y: Tensor, z: Tensor, q: Tensor, ridge: float = 0.0):
    """Statistics of the rows in several batches; families have the covariates of their batch."""
    sums = None
    for block in torch.arange(len(x)).chunk(batches):
        family = build(x[block], y.shape[1], ridge)
        sums = family[z[:, block]].statistics(y[block], q[:, block], sums)
    return sums


def tolerance(units: tuple[float, float], dtype: torch.dtype) -> float:
    """Rounding of coefficients times covariates, in units of the outcomes."""
    return 50 * torch.finfo(dtype).eps * (100 + units[0] / units[1])


@pytest.mark.parametrize("batches", [1, 7])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize(("units", "dtype"), UNITS)
def test_fits_are_those_of_standardized_covariates(units, dtype, ridge, batches):
    x, y = rows(units, dtype, outputs=2)
    z = torch.arange(COMPONENTS).unsqueeze(-1).expand(-1, ROWS)
    q = torch.rand(COMPONENTS, ROWS, generator=torch.Generator().manual_seed(1)).to(dtype)
    sums = sums_over(batches, x, y, z, q, ridge)
    family = build(x, 2, ridge)
    fitted = family.with_arguments(family.maximize(sums, ALL))
    for c in range(COMPONENTS):
        prediction, scale = least_squares(x, y, q[c], ridge)
        found = fitted.mean_at(torch.full((ROWS,), c)).numpy()
        np.testing.assert_allclose(found, prediction, rtol=0, atol=tolerance(units, dtype))
        np.testing.assert_allclose(fitted.scale[c], scale, rtol=1e-5)


@pytest.mark.parametrize("batches", [1, 5])
@pytest.mark.parametrize("order", ["sorted", "mixed"])
def test_components_far_apart_do_not_share_a_center(order, batches):
    """Components are a year apart, and each varies by a minute; batches may hold only one."""
    x, y = rows(SECONDS, torch.float64)
    z = torch.arange(ROWS) * COMPONENTS // ROWS
    x[:, 0] += 3.15e7 * z
    if order == "mixed":
        shuffled = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
        x, y, z = x[shuffled], y[shuffled], z[shuffled]
    # Almost no responsibility for the rows of the other component.
    q = torch.full((COMPONENTS, ROWS), 1e-30, dtype=torch.float64)
    q[z, torch.arange(ROWS)] = 1.0
    everywhere = torch.arange(COMPONENTS).unsqueeze(-1).expand(-1, ROWS)
    family = build(x)
    fitted = family.with_arguments(family.maximize(sums_over(batches, x, y, everywhere, q), ALL))
    for c in range(COMPONENTS):
        prediction, scale = least_squares(x[z == c], y[z == c], torch.ones(int((z == c).sum())), 0)
        found = fitted.mean_at(torch.full((ROWS,), c))[z == c].numpy()
        np.testing.assert_allclose(found, prediction, rtol=0, atol=tolerance(SECONDS, x.dtype))
        np.testing.assert_allclose(fitted.scale[c], scale, rtol=1e-5)


@pytest.mark.parametrize("frozen", ["scale", "weight and bias"])
@pytest.mark.parametrize(("units", "dtype"), UNITS)
def test_frozen_arguments_keep_their_values(units, dtype, frozen):
    x, y = rows(units, dtype)
    z, q = torch.zeros(1, ROWS, dtype=torch.int64), torch.ones(1, ROWS, dtype=dtype)
    sums, family = sums_over(3, x, y, z, q), build(x)
    free = ALL - set(frozen.split(" and "))
    fitted = family.with_arguments({**family.arguments, **family.maximize(sums, free)})
    prediction = least_squares(x, y, q[0], 0.0)[0]
    if frozen == "scale":
        found = fitted.mean_at(torch.zeros(ROWS, dtype=torch.int64)).numpy()
        np.testing.assert_allclose(found, prediction, rtol=0, atol=tolerance(units, dtype))
    else:
        expected = y.double().square().mean().sqrt()
        torch.testing.assert_close(fitted.scale[0].double(), expected[None], rtol=1e-5, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize(("units", "dtype"), UNITS)
def test_leave_one_out_gains_are_those_of_standardized_covariates(units, dtype, ridge, weighted):
    """The loss of a cluster is that of its penalized least squares, at scales of one."""
    x, y = rows(units, dtype)
    draw = torch.Generator().manual_seed(2)
    labels = torch.randint(COMPONENTS, (ROWS,), generator=draw)
    q = torch.randint(1, 3, (ROWS,), generator=draw).to(dtype) if weighted else torch.ones(ROWS)
    q = q.to(dtype)
    family = build(x, ridge=ridge)
    sums = sums_over(4, x, y, labels.unsqueeze(0), q.unsqueeze(0), ridge)
    gains = family.leave_one_out_at(sums, labels, y, q).double()

    def loss(chosen: Tensor) -> float:
        scale = least_squares(x[chosen], y[chosen], q[chosen], ridge)[1]
        total = float(q[chosen].double().sum())
        return total * (0.5 * float(scale[0]) ** 2 + 0.5 * math.log(2 * math.pi))

    for row in range(0, ROWS, 60):
        cluster = labels == labels[row]
        others = cluster.clone()
        others[row] = False
        expected = loss(cluster) - loss(others)
        assert float(gains[row]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("units", "dtype"), UNITS)
def test_changes_of_split_components_have_one_deviation(units, dtype):
    x, y = rows(units, dtype)
    z, q = torch.zeros(1, ROWS, dtype=torch.int64), torch.ones(1, ROWS, dtype=dtype)
    family = build(x)
    torch.manual_seed(0)
    before = family.mean_at(torch.zeros(ROWS, dtype=torch.int64))
    changes = []
    for _ in range(200):
        split = family.split(0, None, sums_over(1, x, y, z, q))
        halves = {name: value.unsqueeze(0) for name, value in split.items()}
        new = LinearRegressions(x, **halves, scale=torch.ones(1, 1, dtype=dtype))
        changes.append(new.mean_at(torch.zeros(ROWS, dtype=torch.int64)) - before)
        assert float(changes[-1].square().mean().sqrt()) == pytest.approx(1.0, rel=0.02)
    # The first covariate takes part, not the level alone.
    standardized = (x[:, 0].double() - x[:, 0].double().mean()) / x[:, 0].double().std()
    slopes = torch.stack([(standardized @ change.double())[0] / ROWS for change in changes])
    assert float(slopes.square().mean()) == pytest.approx(0.25, rel=0.3)


@pytest.mark.parametrize("batch_size", [None, 100])
@pytest.mark.parametrize("row_weights", [False, True])
@pytest.mark.parametrize("kind", ["soft", "hard", "leave_one_out"])
@pytest.mark.parametrize(("units", "dtype"), UNITS)
def test_a_whole_fit_ends_at_least_squares(units, dtype, kind, row_weights, batch_size):
    pyro.clear_param_store()
    torch.manual_seed(0)
    x, y = rows(units, dtype)
    y = y[:, 0]
    model = MixtureOfRegressions(components=1, features=3).to(dtype)
    if kind == "soft":
        guide = FullPartition(model, components=1)
    else:
        score = {"score": kind} if kind == "leave_one_out" else {}
        guide = HardPartition(model, components=1, **score)
    q = 0.5 + torch.rand(ROWS, generator=torch.Generator().manual_seed(3)).to(dtype)
    arguments = (x, y, q) if row_weights else (x, y)
    done = fit(EM(model, guide), *arguments, batch_size=batch_size, progress=False)
    assert done.converged
    prediction, scale = least_squares(
        x, y.unsqueeze(-1), q if row_weights else torch.ones(ROWS), 0.0
    )
    with torch.no_grad():
        found = model.component_distributions(x)[torch.zeros(ROWS, dtype=torch.int64)].mean
    np.testing.assert_allclose(found, prediction[:, 0], rtol=0, atol=tolerance(units, dtype))
    assert float(model.scale.item()) == pytest.approx(scale[0], rel=2e-3)


def test_stepwise_em_blends_statistics_about_different_centers():
    """Batches are sorted by time; with steps 1, 1/2, 1/3, ... the blend is that of all rows."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    x, y = rows(SECONDS, torch.float64)
    order = x[:, 0].argsort()
    x, y = x[order], y[order, 0]
    model = MixtureOfRegressions(components=1, features=3).double()
    em = EM(
        model,
        FullPartition(model, components=1),
        step_size=lambda step: 1.0 / step,
    )
    for block in torch.arange(ROWS).chunk(6):
        em.step(x[block], y[block], index=block, size=ROWS)
    prediction, scale = least_squares(x, y.unsqueeze(-1), torch.ones(ROWS), 0.0)
    with torch.no_grad():
        found = model.component_distributions(x)[torch.zeros(ROWS, dtype=torch.int64)].mean
    np.testing.assert_allclose(
        found, prediction[:, 0], rtol=0, atol=10 * tolerance(SECONDS, x.dtype)
    )
    assert float(model.scale.item()) == pytest.approx(scale[0], rel=1e-6)
