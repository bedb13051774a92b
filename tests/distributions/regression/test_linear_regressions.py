"""Linear regressions: densities, statistics, M-steps, and leave-one-out gains against refits."""

import math

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import distributions as dist
from pyro.infer import TraceEnum_ELBO
from sklearn.linear_model import Ridge
from torch import Tensor

from pyro_mixtures.distributions.regression.linear_regressions import (
    LinearRegressions,
    RegressionStatistics,
)
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions
from pyro_mixtures.testing import TOLERANCE, assert_near, exact_loss

pytestmark = pytest.mark.usefixtures("on_one_thread")

ROWS, FEATURES, COMPONENTS = 60, 3, 4
OUTPUTS = [None, 2]
few = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request) -> torch.dtype:
    return request.param


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        *shape,
        generator=torch.Generator("cpu").manual_seed(seed),
        dtype=torch.float64,
        device="cpu",
    )


def rows_of(outputs: int | None, rows: int = ROWS, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Covariates and outcomes."""
    y = normal(rows, outputs or 1, seed=2)
    return normal(rows, FEATURES, seed=1).to(dtype), (y if outputs else y[:, 0]).to(dtype)


def build(
    x: Tensor, outputs: int | None = None, ridge: float = 0.0, components: int = COMPONENTS
) -> LinearRegressions:
    """Components whose arguments are leaves of the covariates' dtype."""
    own = () if outputs is None else (outputs,)
    weight, bias, scale = (
        normal(components, *own, x.shape[1], seed=3),
        normal(components, *own),
        normal(components, *own),
    )
    given = [t.to(x).requires_grad_() for t in (weight, bias, 0.5 + scale.abs())]
    return LinearRegressions(x, *given, ridge=ridge)


def mixture(
    outputs: int | None = None, dtype=torch.float64, components: int = COMPONENTS, **options
):
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = MixtureOfRegressions(
            components=components, features=FEATURES, outputs=outputs, **options
        )
        with torch.no_grad():
            model.weight, model.bias = torch.randn_like(model.weight), torch.randn_like(model.bias)
    return model.to(dtype)


def brute_table(family: LinearRegressions, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Log densities (B, C) with ridge shares by stock Normals in float64, and their leaves."""
    leaves = [t.detach().double().requires_grad_() for t in family.arguments.values()]
    weight, bias, scale = leaves
    wide = weight.reshape(len(weight), -1, weight.shape[-1])
    mean = torch.einsum("np,cmp->ncm", x.double(), wide) + bias.reshape(len(bias), -1)
    sd = scale.reshape(len(scale), -1)
    table = dist.Normal(mean, sd).log_prob(y.double().reshape(len(y), 1, -1)).sum(-1)
    return table - 0.5 * family.ridge * (wide.square().sum(-1) / sd.square()).sum(-1), leaves


# Densities.


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


# Errors.


def test_arguments_that_do_not_fit_are_refused():
    x, y = rows_of(None)
    weight, bias, scale = (t.detach() for t in build(x).arguments.values())
    with pytest.raises(OptionError, match="for M outputs"):
        LinearRegressions(x, weight, bias[:2], scale)
    with pytest.raises(OptionError, match="3 covariates"):
        LinearRegressions(x, weight[:, :2], bias, scale)
    with pytest.raises(OptionError, match="ridge=-1"):
        LinearRegressions(x, weight, bias, scale, ridge=-1.0)
    with pytest.raises(DataError, match=r"\(B, P\)"):
        LinearRegressions(x[0], weight, bias, scale)
    with pytest.raises(ValueError, match="scale"):
        LinearRegressions(x, weight, bias, -scale, validate_args=True)
    with pytest.raises(DataError, match="59 outcomes for 60 rows"):
        build(x)[torch.zeros(59, dtype=torch.int64)].log_prob(y[:59])
    with pytest.raises(DataError, match="float32"):
        LinearRegressions(x, weight.float(), bias.float(), scale.float())[
            torch.zeros(60).long()
        ].log_prob(y)


@pytest.mark.parametrize("call", ["log_prob", "sample", "rsample", "mean"])
def test_components_that_no_rows_were_selected_of_are_refused(call):
    """As many rows as components would otherwise be matched one to one."""
    x, y = rows_of(None, rows=COMPONENTS)
    family = build(x)
    with pytest.raises(DataError, match=r"family\[z\]"):
        family.log_prob(y) if call == "log_prob" else family.mean if call == "mean" else getattr(
            family, call
        )()


def test_impossible_options_of_the_model_are_refused():
    for options in ({"outputs": 0}, {"ridge": -0.1}, {"scale": 0.0}):
        with pytest.raises(OptionError, match=next(iter(options))):
            MixtureOfRegressions(components=2, features=1, **options)
    model = mixture()
    with pytest.raises(DataError, match="59 outcomes"):
        model(rows_of(None)[0], rows_of(None)[1][:59])


def test_weight_without_bias_has_no_closed_form():
    model, (x, y) = mixture(), rows_of(None)
    with pytest.raises(ClosedFormError, match="together"):
        EM(model, FullPartition(model, components=COMPONENTS), freeze=["bias"], empty="keep").step(
            x, y
        )


# The M-step.


def ridge_of(
    x: Tensor, y: Tensor, q: Tensor, ridge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted ridge regression by scikit-learn, and the scale of its penalized residuals."""
    x, y, q = (t.detach().double().numpy() for t in (x, y, q))
    known = Ridge(alpha=ridge * q.sum() + 1e-12, solver="cholesky", tol=1e-12).fit(
        x, y, sample_weight=q
    )
    left = (q[:, None] * (y - known.predict(x)).reshape(len(y), -1) ** 2).sum(0)
    weight = known.coef_.reshape(-1, x.shape[1])
    return (
        known.coef_,
        known.intercept_,
        np.sqrt((left + ridge * q.sum() * (weight**2).sum(-1)) / q.sum()),
    )


@pytest.mark.meta
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_one_em_step_is_weighted_ridge_regression(outputs, ridge, dtype):
    model, (x, y) = mixture(outputs, dtype, ridge=ridge), rows_of(outputs, 200, dtype)
    guide = FullPartition(model, components=COMPONENTS)
    q = guide.posterior(x, y).probs.detach().clone()
    EM(model, guide, variance_floor=0.0, empty="keep").step(x, y)
    assert_near(model.weights, q.mean(1), 20 * TOLERANCE[dtype])
    for c in range(COMPONENTS):
        known = ridge_of(x, y, q[c], ridge)
        found = (model.weight[c], model.bias[c], model.scale[c].reshape(-1))
        for mine, theirs in zip(found, known, strict=True):
            assert_near(
                mine,
                torch.as_tensor(theirs, device="cpu").reshape(mine.shape),
                50 * TOLERANCE[dtype],
            )


def test_scale_alone_is_that_of_the_residuals_under_frozen_coefficients():
    model, (x, y) = mixture(components=1), rows_of(None)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    EM(
        model,
        FullPartition(model, components=1),
        freeze=["weight", "bias"],
        variance_floor=0.0,
        empty="keep",
    ).step(x, y)
    expected = (y - x @ weight[0] - bias[0]).square().mean().sqrt()
    torch.testing.assert_close(model.scale[0].detach(), expected)
    assert torch.equal(model.weight.detach(), weight)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_empty_components_are_split_off_live_ones(outputs):
    """The default of EM, for outcomes (N,) and (N, M)."""
    x, y = rows_of(outputs)
    model = mixture(outputs)
    with torch.no_grad():
        model.bias[0] = 1e3
    em = EM(model, FullPartition(model, components=COMPONENTS))
    em.step(x, y)
    assert em.last_update is not None
    assert em.last_update.reseeded == 1
    assert bool((model.bias[0].abs() < 100).all())


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_free_energy_never_falls(truncated, ridge, dtype):
    model, (x, y) = mixture(dtype=dtype, ridge=ridge), rows_of(None, 150, dtype)
    guide = FullPartition(model, components=COMPONENTS)
    if truncated:
        guide = TruncatedPartition(
            model, components=COMPONENTS, candidates=2, neighbors=3, explore=1, seed=0
        )
    em = EM(model, guide, empty="keep")
    losses = torch.tensor([em.step(x, y) for _ in range(15)], dtype=torch.float64)
    assert losses[-1] < losses[0]
    assert (losses.diff() / losses[0].abs()).max() <= TOLERANCE[dtype], losses.tolist()


def test_em_recovers_the_regressions_that_the_data_were_drawn_from():
    torch.manual_seed(3)
    truth = mixture(components=2)
    with torch.no_grad():
        truth.weight, truth.bias = (
            3 * torch.randn_like(truth.weight),
            3 * torch.randn_like(truth.bias),
        )
        truth.scale = torch.tensor([0.3, 0.6], dtype=torch.float64)
    x = normal(2000, FEATURES, seed=5)
    y = truth(x).detach()
    known = [t.detach().clone() for t in (truth.weight, truth.bias, truth.scale)]
    pyro.clear_param_store()
    best = None
    for seed in range(4):
        pyro.clear_param_store()
        model = mixture(components=2)
        with torch.no_grad():
            model.weight = normal(2, FEATURES, seed=seed + 10)
        done = fit(
            EM(model, FullPartition(model, components=2), empty="keep"), x, y, progress=False
        )
        best = max(
            best or (-math.inf,),
            (done.elbo, *(t.detach().clone() for t in (model.weight, model.bias, model.scale))),
        )
    _, weight, bias, scale = best
    order = [int((weight - w).norm(dim=-1).argmin()) for w in known[0]]
    for mine, theirs, error in zip((weight, bias, scale), known, (0.1, 0.1, 0.05), strict=True):
        torch.testing.assert_close(mine[order], theirs, rtol=0, atol=error)


@pytest.mark.meta
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_untruncated_loss_is_minus_the_log_evidence_by_stock_enumeration(outputs, dtype):
    model, (x, y) = mixture(outputs, dtype, ridge=0.2), rows_of(outputs, dtype=dtype)
    table, _ = brute_table(model.component_distributions(x), x, y)
    expected = -(table + model.weights.double().log()).logsumexp(-1).sum().item()
    guide = FullPartition(model, components=COMPONENTS)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    for loss in (
        exact_loss(model, x, y),
        elbo.loss(model, guide, x, y),
        EM(model, guide).evaluate_loss(x, y),
    ):
        assert loss == pytest.approx(expected, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_minibatches_add_up_to_the_full_batch(outputs, dtype):
    x, y = rows_of(outputs, 90, dtype)
    found = []
    for size in (90, 16):
        pyro.clear_param_store()
        model = mixture(outputs, dtype, ridge=0.1)
        em, losses = EM(model, FullPartition(model, components=COMPONENTS), empty="keep"), []
        for _ in range(3):
            parts = torch.arange(90).split(size)
            losses.append(
                sum(em.accumulate(x[part], y[part], index=part, size=90) for part in parts)
            )
            em.maximize()
        found.append((torch.tensor(losses, dtype=dtype), *model.state_dict().values()))
    for whole, in_parts in zip(*found, strict=True):
        assert_near(in_parts, whole, 100 * TOLERANCE[dtype])


def test_saved_and_loaded_model_gives_the_same_loss(tmp_path):
    x, y = rows_of(None)
    model = mixture(scale=2.0, equal_weights=True)
    EM(model, FullPartition(model, components=COMPONENTS), empty="keep").step(x, y)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    before = exact_loss(model, x, y)
    pyro.clear_param_store()
    other = mixture(scale=1.0, equal_weights=True)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert exact_loss(other, x, y) == before


# Precision.


@pytest.mark.parametrize("offset", [1e3, 1e4])
def test_float32_keeps_its_digits_far_from_zero(offset):
    """The fit in float32 is that in float64 of the same rounded rows."""
    x = (offset + normal(2000, FEATURES, seed=1)).float()
    q = torch.rand(2, 2000, generator=torch.Generator().manual_seed(0))
    y = (
        offset + (x.double() - offset) @ normal(FEATURES, seed=7) + 0.1 * normal(2000, seed=8)
    ).float()
    found = []
    for dtype in (torch.float32, torch.float64):
        family = build(x.to(dtype), components=2)
        z = torch.arange(2).unsqueeze(-1)
        sums = family[z].statistics(y.to(dtype), q.to(dtype))
        found.append(family.maximize(sums, frozenset(["weight", "bias", "scale"]), floor=None))
    for name in ("weight", "scale"):
        torch.testing.assert_close(found[0][name].double(), found[1][name], rtol=1e-5, atol=1e-6)
    known = Ridge(alpha=1e-9).fit(
        x.double() - offset, y.double() - offset, sample_weight=q[0].double()
    )
    torch.testing.assert_close(
        found[1]["weight"][0], torch.from_numpy(known.coef_), rtol=0, atol=1e-6
    )
    left = (known.predict(x.double() - offset) - y.double().numpy() + offset) ** 2
    assert float(found[1]["scale"][0]) == pytest.approx(
        np.sqrt(np.average(left, weights=q[0])), rel=1e-5
    )


@pytest.mark.parametrize("units", [1e-9, 1e9])
def test_units_of_covariates_do_not_matter(units):
    x, y = rows_of(None)
    scales = torch.tensor([units, 1.0, 1.0], dtype=torch.float64)
    free, weights = frozenset(["weight", "bias"]), torch.ones(1, ROWS, dtype=torch.float64)
    found = []
    for rows in (x, x * scales):
        family = build(rows, components=1)
        found.append(
            family.maximize(
                family[torch.zeros(1, ROWS).long()].statistics(y, weights), free, floor=None
            )
        )
    torch.testing.assert_close(found[1]["weight"] * scales, found[0]["weight"])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_constant_and_repeated_covariates_leave_the_fit_alone(offset):
    x, y = rows_of(None)
    x = offset + x
    wide = torch.cat([x, x[:, :1], torch.full((ROWS, 1), 1e4, dtype=torch.float64)], -1)
    family = build(wide, components=1)
    sums = family[torch.zeros(1, ROWS).long()].statistics(
        y, torch.ones(1, ROWS, dtype=torch.float64)
    )
    found = family.maximize(sums, frozenset(["weight", "bias"]), floor=None)
    known = Ridge(alpha=1e-9).fit(x - offset, y)
    fitted = wide @ found["weight"][0] + found["bias"][0]
    torch.testing.assert_close(
        fitted, torch.from_numpy(known.predict(x - offset)), rtol=1e-6, atol=1e-6
    )
    assert float(found["weight"].abs().max()) < 10


# Leave-one-out gains.


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
