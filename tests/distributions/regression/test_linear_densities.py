"""Linear regressions: densities, draws and statistics, against stock Pyro."""

import math

import pyro
import pytest
import torch

from pyro_mixtures.testing import TOLERANCE, assert_near
from tests.distributions.regression.linear_rows import (
    COMPONENTS,
    OUTPUTS,
    ROWS,
    brute_table,
    build,
    mixture,
    rows_of,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request) -> torch.dtype:
    return request.param


@pytest.mark.meta
@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("shape", ["rows", "candidates", "all components", "padded"])
def test_log_prob_and_gradients_are_those_of_stock_normals(outputs, ridge, shape, dtype):
    x, y = rows_of(outputs, dtype=dtype)
    family = build(x, outputs, ridge)
    draw = torch.Generator("cpu").manual_seed(4)
    z = torch.randint(COMPONENTS, (3, ROWS), generator=draw, device="cpu")
    if shape == "padded":
        z[1, ::3], z[2] = -1, -1
    all_components = torch.arange(COMPONENTS, device="cpu").unsqueeze(-1)
    z = {"rows": z[0], "all components": all_components}.get(shape, z)
    full = z.expand(*z.shape[:-1], ROWS)
    table, leaves = brute_table(family, x, y)
    expected = table.gather(-1, full.clamp_min(0).reshape(-1, ROWS).T).T.reshape(full.shape)
    actual = family[z].log_prob(y)
    assert actual.dtype == dtype
    assert_near(actual, torch.where(full < 0, -torch.inf, expected), TOLERANCE[dtype])
    out = torch.randn(full.shape, generator=draw, dtype=torch.float64, device="cpu")
    (out * expected)[full >= 0].sum().backward()
    (out.to(dtype) * actual)[full >= 0].sum().backward()
    for mine, theirs in zip(family.arguments.values(), leaves, strict=True):
        assert_near(mine.grad, theirs.grad, 5 * TOLERANCE[dtype])


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_draws_have_the_mean_and_scale_of_their_component(outputs):
    x = rows_of(outputs, rows=2)[0]
    family, z = build(x, outputs), torch.tensor([1, 3])
    draws = family[z].sample((20000,))
    assert draws.shape == (20000, *family[z].mean.shape)
    error = family.scale[z].detach() / math.sqrt(20000)
    assert bool(((draws.mean(0) - family[z].mean.detach()).abs() < 5 * error).all())
    torch.testing.assert_close(draws.std(0), family.scale[z].detach(), rtol=0.03, atol=0)
    assert not draws.requires_grad
    assert family[z].rsample().requires_grad


@pytest.mark.meta
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_shapes_in_plates(outputs):
    x, y = rows_of(outputs)
    family, z = build(x, outputs), torch.zeros(ROWS, dtype=torch.int64, device="cpu")
    own = () if outputs is None else (outputs,)
    assert (family.batch_shape, family.event_shape) == ((COMPONENTS,), own)
    many = torch.arange(COMPONENTS, device="cpu").unsqueeze(-1)
    for index, batch in ((z, (ROWS,)), (many.expand(-1, ROWS), (COMPONENTS, ROWS))):
        expanded = family[index].expand(batch)
        assert expanded.batch_shape == batch
        assert expanded.log_prob(y).shape == batch
        assert expanded.sample().shape == (*batch, *own)
    with pyro.poutine.trace() as tracer, pyro.plate("rows", ROWS, device="cpu"):
        assert pyro.sample("y", family[z]).shape == (ROWS, *own)
    tracer.trace.compute_log_prob()
    assert tracer.trace.nodes["y"]["log_prob"].shape == (ROWS,)


def test_the_program_draws_outcomes():
    model = mixture(2)
    assert model(rows_of(2)[0]).shape == (ROWS, 2)
