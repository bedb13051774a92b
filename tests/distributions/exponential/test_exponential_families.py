"""Families given by their means: densities, draws, statistics and maximizers against oracles."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from torch import distributions as stock

from pyro_mixtures.distributions import (
    DirectionalNormals,
    KnownPrecisionNormals,
    Multinomials,
    UnitNormals,
)
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError
from pyro_mixtures.ops import use_backend
from pyro_mixtures.testing import TOLERANCE, assert_near
from tests.distributions.mean_families import (
    BILINEAR,
    CASES,
    FEATURES,
    PRECISION,
    ROWS,
    Case,
    generator,
    normal,
    proportions,
    uniform,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=list(CASES))
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request) -> torch.dtype:
    return request.param


# Densities.


@pytest.mark.meta
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("shape", ["rows", "candidates", "all components", "padded"])
def test_log_prob_and_gradients_equal_the_oracle(case, dtype, backend, shape):
    family, x = case.build(dtype=dtype), case.draw().to(dtype).requires_grad_()
    z = torch.randint(5, (4, ROWS), generator=generator(2), device="cpu")
    if shape == "padded":
        z[1, ::3], z[3] = -1, -1
    z = {"rows": z[0], "all components": torch.arange(5, device="cpu").unsqueeze(-1)}.get(shape, z)

    mean, wide = (t.detach().double().requires_grad_() for t in (family.mean, x))
    full = z.expand(*z.shape[:-1], ROWS)
    expected = (
        case.oracle(wide, mean)
        .gather(-1, full.clamp_min(0).reshape(-1, ROWS).T)
        .T.reshape(full.shape)
    )
    expected = torch.where(full < 0, -torch.inf, expected)
    with use_backend(backend):
        actual = family[z].log_prob(x)
        assert actual.dtype == dtype
        assert_near(actual, expected, TOLERANCE[dtype])
        weight = normal(generator(3), full.shape)
        (weight * expected)[full >= 0].sum().backward()
        (weight.to(dtype) * actual)[full >= 0].sum().backward()
    for mine, theirs in ((x, wide), (family.mean, mean)):
        assert_near(mine.grad, theirs.grad, 2 * TOLERANCE[dtype])


@pytest.mark.meta
def test_log_prob_with_batches_of_parameters_equals_the_oracle(case, dtype):
    """Vectorized particles: means (P, 1, C, D), z (S, 1, B), rows (B, D)."""
    family, x = case.build(3, dtype, lead=(2, 1)), case.draw(7)
    z = torch.randint(3, (4, 1, 7), device="cpu")
    expected = torch.stack(
        [case.oracle(x, mean[0].detach().double()) for mean in family.mean]
    )  # (P, B, C)
    expected = expected.expand(4, 2, 7, 3).gather(-1, z.expand(4, 2, 7).unsqueeze(-1)).squeeze(-1)
    assert_near(family[z].log_prob(x.to(dtype)), expected, TOLERANCE[dtype])


def test_unselected_log_prob_has_every_component(case):
    family, x = case.build(), case.draw(7)
    assert_near(family.log_prob(x.unsqueeze(-2)), case.oracle(x, family.mean), 1e-10)


def test_draws_have_the_means_of_their_components(case):
    family, n = case.build(3), 20_000
    draws = family[torch.arange(3)].sample((n,))
    assert draws.shape == (n, 3, FEATURES)
    expected = family.mean.detach()
    if isinstance(family, DirectionalNormals):
        # At concentration one, the mean resultant length is a ratio of Bessel functions.
        expected = expected * float(mp.besseli(2, 1) / mp.besseli(1, 1))
    z_score = (draws.mean(0) - expected) / (draws.var(0) / n).sqrt()
    assert z_score.abs().max() < 5


def test_multinomials_are_the_stock_ones():
    family, x = CASES["multinomial"].build(), CASES["multinomial"].draw()
    for row in x:
        expected = stock.Multinomial(int(row.sum()), family.mean).log_prob(row)
        torch.testing.assert_close(
            family[torch.arange(5)].log_prob(row.expand(5, FEATURES)), expected
        )


def test_mahalanobis_draws_have_the_inverse_of_the_precision_as_covariance():
    draws = CASES["mahalanobis"].build(2)[torch.ones(40_000, dtype=torch.int64)].sample()
    expected = PRECISION.inverse()
    assert (torch.cov(draws.T) - expected).abs().max() < 0.05 * expected.abs().max()


def test_multinomial_draws_have_their_total():
    family = Multinomials(proportions(generator(0), (3, FEATURES)), total=9)
    assert (family[torch.arange(3)].sample((5,)).sum(-1) == 9).all()
    assert family.subset(slice(1, 3)).total == 9


@pytest.mark.parametrize("name", ["kl", "logistic", "multinomial"])
def test_integer_rows_are_widened(name):
    case = CASES[name]
    family, x = case.build(dtype=torch.float32), case.draw()
    z = torch.arange(5).unsqueeze(-1)
    for kind in (torch.uint8, torch.int64):
        torch.testing.assert_close(family[z].log_prob(x.to(kind)), family[z].log_prob(x.float()))


@pytest.mark.parametrize("name", BILINEAR)
def test_rows_outside_the_support_are_refused(name):
    case = CASES[name]
    x = case.draw()
    x[3, 1] = -0.5
    with pytest.raises(DataError, match=case.family.__name__):
        case.build()[torch.arange(5).unsqueeze(-1)].log_prob(x)
    if name == "logistic":
        with pytest.raises(DataError, match="Bernoullis"):
            case.build()[torch.tensor([0])].log_prob(torch.full((1, FEATURES), 1.5).double())


def test_a_mean_needs_a_row_for_each_component(case):
    with pytest.raises(OptionError, match="mean"):
        case.at(torch.ones(FEATURES))


def test_a_precision_has_to_fit_and_to_stay():
    with pytest.raises(OptionError, match="precision"):
        KnownPrecisionNormals(torch.zeros(2, 3), torch.eye(2))
    family = KnownPrecisionNormals(torch.zeros(2, 3), torch.eye(3))
    sums = family[torch.tensor([0, 1])].statistics(torch.zeros(2, 3), torch.ones(2))
    with pytest.raises(ClosedFormError, match="precision"):
        family.maximize(sums, frozenset({"mean", "precision"}), floor=None)


def test_distances_keep_their_digits_far_from_zero():
    """Rows at 10^6 whose differences float32 holds exactly."""
    x = 1e6 + torch.arange(12.0).reshape(3, 4)
    mean = x[[0, 2]].clone()
    expected = -0.5 * (x.double().unsqueeze(-2) - mean.double()).square().sum(-1)
    z = torch.arange(2).unsqueeze(-1)
    plain, whitened = UnitNormals(mean), KnownPrecisionNormals(mean, torch.eye(4))
    constant = 2 * math.log(2 * math.pi)
    for family in (plain, whitened):
        torch.testing.assert_close(
            (family[z].log_prob(x) + constant).double().T, expected, rtol=1e-5, atol=1e-4
        )


# Statistics and their maximizers.


@pytest.mark.meta
@pytest.mark.parametrize("path", ["all components", "pairs", "two batches"])
def test_maximize_gives_the_weighted_means(case, dtype, path):
    family, x = case.build(dtype=dtype), case.draw()
    q = uniform(generator(4), (5, ROWS)).softmax(0)
    z = torch.arange(5, device="cpu").unsqueeze(-1)
    z = z if path == "all components" else z.expand(5, ROWS).clone()
    if path == "two batches":
        half = ROWS // 2
        sums = family[z[:, :half]].statistics(x[:half].to(dtype), q[:, :half].to(dtype))
        sums = family[z[:, half:]].statistics(x[half:].to(dtype), q[:, half:].to(dtype), sums)
    else:
        sums = family[z].statistics(x.to(dtype), q.to(dtype))
    floor = family.floor(sums, 1e-9)
    new = family.maximize(sums, frozenset({"mean"}), floor=floor)["mean"]
    total = q @ x
    size = {Multinomials: total.sum(-1), DirectionalNormals: total.norm(dim=-1)}.get(
        type(family), q.sum(-1)
    )
    assert new.dtype == dtype
    assert_near(new, total / size.unsqueeze(-1), 4 * TOLERANCE[dtype])
    assert family.maximize(sums, frozenset(), floor=floor) == {}


def test_padding_adds_nothing_and_empty_components_stay(case):
    family, x = case.build(3), case.draw()
    z = torch.zeros(2, ROWS, dtype=torch.int64)
    z[1], x[7], z[0, 7] = -1, torch.nan, -1  # a masked row may hold anything
    sums = family[z].statistics(x, torch.ones(2, ROWS, dtype=torch.float64))
    new = family.maximize(sums, frozenset({"mean"}), floor=family.floor(sums, 1e-9))["mean"]
    total = x[x.isfinite().all(-1)].sum(0)
    expected = total / {Multinomials: total.sum(), DirectionalNormals: total.norm()}.get(
        type(family), ROWS - 1
    )
    torch.testing.assert_close(new[0], expected)
    torch.testing.assert_close(new[1:], family.mean.detach()[1:], rtol=1e-12, atol=0)
    assert sums.count.tolist() == [ROWS - 1, 0, 0]


@pytest.mark.parametrize("name", BILINEAR)
@pytest.mark.parametrize("fraction", [0.0, 1e-6])
def test_means_stay_inside_their_domain(name, fraction, dtype):
    """Features that are constant at the boundary leave every density finite."""
    case = CASES[name]
    x = case.draw().to(dtype)
    x[:, 0], x[: ROWS // 2, 1] = 0.0, 0.0
    if name == "logistic":
        x[:, 2] = 1.0
    family = case.build(2, dtype)
    z = torch.arange(ROWS) // (ROWS // 2)
    sums = family[z].statistics(x, torch.ones(ROWS, dtype=dtype))
    floor = family.floor(sums, fraction)
    new = family.maximize(sums, frozenset({"mean"}), floor=floor)["mean"]
    fitted = case.family(new, validate_args=True)
    assert fitted[torch.arange(2).unsqueeze(-1)].log_prob(x).isfinite().all()
    assert (new.double() >= floor * (1 - 1e-5)).all()
    assert float(new[0, 1].detach()) <= max(2 * float(floor[1]), 1e-15)


@given(st.integers(2, 6), st.integers(0, 1000), st.floats(1e-6, 0.1))
@settings(max_examples=30, deadline=None)
def test_proportions_with_a_floor_are_the_constrained_maximizer(bins, seed, scale):
    """By the KKT conditions: equal ratios above the floor, smaller ones at the floor."""
    weights = uniform(generator(seed), (1, bins)) ** 8
    weights = weights / weights.sum()
    floor = scale * 2 * uniform(generator(seed + 1), (bins,))
    best = Multinomials.inside(weights, floor)
    assert float(best.sum()) == pytest.approx(1)
    assert (best >= floor * (1 - 1e-12)).all()
    slope = weights / best
    free = best > floor * (1 + 1e-9)
    torch.testing.assert_close(
        slope[free], slope[free].max().expand(int(free.sum())), rtol=1e-9, atol=0
    )
    assert (slope[~free] <= slope[free].max() * (1 + 1e-9)).all()


def test_starts_lie_inside_the_domain(case):
    rows = case.draw(5)
    if case.family is not DirectionalNormals:
        rows[:, 0], rows[2] = 0.0, 0.0
    mean = case.family.start(rows)
    family = case.family(mean, **case.constants, validate_args=True)
    assert family[torch.arange(5).unsqueeze(-1)].log_prob(case.draw()).isfinite().all()
