"""The approximation report against brute force, and its bound against the best partition."""

import itertools
import math

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import distributions as dist
from torch import nn

from pyro_mixtures.distributions import MixtureWeights
from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, OptionError, PartitionError
from pyro_mixtures.guides import HardPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models import GaussianMixture, MixtureOfExperts, MixtureOfRegressions
from pyro_mixtures.poutine import data_plate
from tests.benchmarks.approximation import (
    approximation_report,
    best_objective,
    guarantee,
    planted,
)
from tests.benchmarks.approximation import two_cluster_objective as objective

F64 = torch.float64
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("on_one_thread")


def with_labels(labels, components):
    """A guide of a partition that was not fitted."""
    guide = HardPartition(lambda: None, components=components)
    guide.labels = None if labels is None else torch.as_tensor(labels, device="cpu")
    return guide


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(
        *shape, dtype=dtype, device=CPU, generator=torch.Generator("cpu").manual_seed(seed)
    )


def regressions(weight, bias, scale, ridge=0.0, mask=None):
    def model(x, y=None):
        experts = LinearRegressions(x, weight, bias, scale, ridge=ridge)
        with data_plate(x), pyro.poutine.mask(mask=True if mask is None else mask):
            z = pyro.sample(
                "z",
                MixtureWeights(
                    torch.full_like(scale.reshape(len(scale), -1)[:, 0], 1 / len(scale))
                ),
            )
            return pyro.sample("y", experts[z], obs=y)

    return model


def losses(x, y, weight, bias, scale, ridge):
    """Squared errors and penalties over 2 sigma^2, (N, C), row by row."""
    table = torch.zeros(len(x), len(weight), dtype=weight.dtype, device=CPU)
    for n, c in itertools.product(range(len(x)), range(len(weight))):
        error = (y[n] - weight[c] @ x[n] - bias[c]) ** 2 + ridge * (weight[c] ** 2).sum(-1)
        table[n, c] = (error / (2 * scale[c] ** 2)).sum()
    return table


def fitted(x, y, seed, ridge=0.2):
    """A partition into two clusters where Lloyd's algorithm has ended."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model = MixtureOfRegressions(
        components=2, features=1, ridge=ridge, scale=1.0, equal_weights=True
    ).double()
    guide = HardPartition(model, components=2)
    guide.set_labels(torch.randint(2, (len(x),)))
    em = EM(model, guide, empty="keep")
    for _ in range(15):
        em.step(x, y)
    return model, guide


# Numbers.


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("outputs", [(), (2,)])
@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_numbers_agree_with_brute_force(outputs, dtype, chunk):
    x, y = randn(9, 2, dtype=dtype), 2 * randn(9, *outputs, seed=1, dtype=dtype)
    weight, bias = (
        randn(3, *outputs, 2, seed=2, dtype=dtype),
        randn(3, *outputs, seed=3, dtype=dtype),
    )
    scale = 0.1 + randn(3, *outputs, seed=4, dtype=dtype).square()  # constants of either sign
    labels = torch.arange(9, device=CPU) % 3
    report = approximation_report(
        regressions(weight, bias, scale, 0.3), with_labels(labels, 3), x, y, chunk=chunk
    )
    table = losses(x, y, weight, bias, scale, 0.3).double()
    tolerance = {"rel": 1e-3 if dtype == torch.float32 else 1e-10}
    assert (report.rows, report.clusters) == (9, 3)
    assert report.loss_min == pytest.approx(float(table.min()), **tolerance)
    assert report.loss_max == pytest.approx(float(table.max()), **tolerance)
    assert report.objective == pytest.approx(
        float(table.gather(1, labels.unsqueeze(-1)).sum()), **tolerance
    )
    ratio = float(table.min() / table.max())
    assert report.alpha == pytest.approx(ratio, **tolerance)
    assert report.curvature == pytest.approx(1 - ratio, **tolerance)
    assert report.guarantee == pytest.approx(9 / (ratio * (1 + 8 * ratio * ratio)), **tolerance)


def test_objective_is_that_of_the_fitted_partition():
    x, y = randn(8, 1), randn(8, seed=1)
    model, guide = fitted(x, y, 0)
    report = approximation_report(model, guide, x, y)
    assert report.objective == pytest.approx(objective(x, y, guide.labels, 0.2), rel=1e-9)


def test_empty_clusters_are_ignored():
    x, y = randn(6, 2), randn(6, seed=1)
    weight, bias, scale = randn(3, 2, seed=2), randn(3, seed=3), torch.ones(3, dtype=F64)
    weight[1] = 1e6
    whole = approximation_report(
        regressions(weight, bias, scale, 0.1), with_labels([0, 2] * 3, 3), x, y
    )
    some = [0, 2]
    alone = approximation_report(
        regressions(weight[some], bias[some], scale[some], 0.1), with_labels([0, 1] * 3, 2), x, y
    )
    assert whole == pytest.approx(alone)
    assert whole.clusters == 2


def test_masked_rows_are_ignored():
    x, y = randn(6, 2), randn(6, seed=1)
    arguments = randn(2, 2, seed=2), randn(2, seed=3), torch.ones(2, dtype=F64), 0.1
    mask = torch.tensor([True, True, False, True, True, False])
    masked = approximation_report(
        regressions(*arguments, mask=mask), with_labels([0, 1] * 3, 2), x, y
    )
    labels = torch.tensor([0, 1] * 3)[mask]
    assert masked == pytest.approx(
        approximation_report(regressions(*arguments), with_labels(labels, 2), x[mask], y[mask])
    )
    with pytest.raises(DataError, match="masked"):
        approximation_report(
            regressions(*arguments, mask=mask & False), with_labels([0, 1] * 3, 2), x, y
        )


# The bound.


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_holds_against_all_partitions(seed):
    x = randn(8, 1, seed=seed)
    y = torch.where(torch.arange(8) % 2 == 0, 2.0, -2.0) * x[:, 0] + 0.3 * randn(8, seed=seed + 9)
    model, guide = fitted(x, y, seed)
    report = approximation_report(model, guide, x, y)
    best = best_objective(x, y, 0.2)
    assert 0 < best <= report.objective + 1e-9
    assert report.objective <= report.guarantee * best
    assert 1 <= report.guarantee < math.inf


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 5), st.floats(0.05, 1.0), st.integers(0, 1000))
def test_the_guarantee_holds_where_all_losses_are_bounded(rows, choices, ratio, seed):
    """For finitely many parameters the bounds of the losses are known."""
    table = ratio + (1 - ratio) * torch.rand(
        rows, choices, dtype=F64, generator=torch.Generator().manual_seed(seed)
    )
    alpha = float(table.min() / table.max())

    def total(labels):
        return sum(float(table[labels == k].sum(0).min()) for k in (0, 1))

    totals = [total(torch.tensor(labels)) for labels in itertools.product((0, 1), repeat=rows)]
    assert max(totals) <= guarantee(rows, alpha, 1 - alpha) * min(totals) * (1 + 1e-9)


def test_guarantee():
    assert guarantee(1, 0.5, 0.5) == 2.0
    assert guarantee(10, 0.5, 0.25) == pytest.approx(10 / (0.5 * (1 + 9 * 0.75 * 0.5)))
    assert guarantee(10, 0.0, 1.0) == math.inf


# Edges.


def test_one_row():
    x, y = randn(1, 2), randn(1)
    arguments = randn(1, 2, seed=2), randn(1, seed=3), torch.ones(1, dtype=F64)
    report = approximation_report(regressions(*arguments, 0.1), with_labels([0], 1), x, y)
    assert (report.alpha, report.curvature, report.guarantee) == (1.0, 0.0, 1.0)


def test_a_row_without_loss_leaves_no_guarantee():
    x, weight, bias = randn(4, 1), torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=F64)
    y = x[:, 0] + torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=F64)
    report = approximation_report(
        regressions(weight, bias, bias + 1e-3), with_labels([0] * 4, 1), x, y
    )
    assert (report.loss_min, report.alpha, report.guarantee) == (0.0, 0.0, math.inf)
    assert "no information" in str(report)
    perfect = approximation_report(
        regressions(weight, bias, bias + 1), with_labels([0] * 4, 1), x, x[:, 0]
    )
    assert (perfect.objective, perfect.guarantee) == (0.0, 1.0)


def test_report_can_be_read():
    x, y = randn(8, 1), randn(8, seed=1)
    model, guide = fitted(x, y, 0)
    report = approximation_report(model, guide, x, y)
    text = str(report)
    assert f"8 rows into {report.clusters} clusters, F = {report.objective:.6g}" in text
    assert f"[{report.loss_min:.4g}, {report.loss_max:.4g}]" in text
    assert f"alpha >= {report.alpha:.4g}" in text
    assert f"F <= {report.guarantee:.4g} F*" in text
    assert "if the losses of all other fits lie in this interval too" in text


def test_discrete_outcomes_and_factors_have_no_constants():
    logits, x = randn(2, 3), randn(5, 1)
    y, labels = torch.arange(5) % 3, torch.arange(5) % 2

    def classes(x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", MixtureWeights(torch.full((2,), 0.5, dtype=F64)))
            pyro.sample("y", dist.Categorical(logits=logits[z]), obs=y)

    def factors(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", MixtureWeights(torch.full((2,), 0.5, dtype=F64)))
            pyro.factor("loss", logits.log_softmax(-1)[z, y])

    table = -logits.log_softmax(-1)[:, y].T
    for model in (classes, factors):
        report = approximation_report(model, with_labels(labels, 2), x, y)
        assert report.loss_min == pytest.approx(float(table.min()))
        assert report.loss_max == pytest.approx(float(table.max()))
        assert report.objective == pytest.approx(float(table[torch.arange(5), labels].sum()))


def test_a_given_offset():
    x, y = randn(7, 2), randn(7, seed=1)
    arguments = randn(2, 2, seed=2), randn(2, seed=3), torch.ones(2, dtype=F64), 0.1
    labels = with_labels([0, 1, 0, 1, 0, 1, 0], 2)
    own = approximation_report(
        regressions(*arguments), labels, x, y, offset=0.5 * math.log(2 * math.pi)
    )
    assert own == pytest.approx(approximation_report(regressions(*arguments), labels, x, y))
    raised = approximation_report(regressions(*arguments), labels, x, y, offset=0.0)
    assert raised.loss_min == pytest.approx(own.loss_min + 0.5 * math.log(2 * math.pi))
    assert raised.guarantee < own.guarantee  # which shows that the constant matters


def test_report_refuses_invalid_input():
    x, y = randn(6, 2), randn(6, seed=1)
    model = regressions(randn(2, 2, seed=2), randn(2, seed=3), torch.full((2,), 1e-3, dtype=F64))
    with pytest.raises(PartitionError, match="labels of 5 rows"):
        approximation_report(model, with_labels([0] * 5, 2), x, y)
    unseen = HardPartition(model, components=2)
    with pytest.raises(PartitionError, match="no labels"):
        approximation_report(model, unseen, x, y)
    with pytest.raises(PartitionError, match="no label yet"):
        approximation_report(model, with_labels([0, 1, -1, 0, 0, 0], 2), x, y)
    with pytest.raises(OptionError, match="chunk=0"):
        approximation_report(model, with_labels([0] * 6, 2), x, y, chunk=0)
    with pytest.raises(DataError, match="different numbers of rows"):
        approximation_report(model, with_labels([0] * 6, 2), x, y[1:])
    with pytest.raises(ModelError, match="lower offset"):
        approximation_report(model, with_labels([0] * 6, 2), x, y, offset=1e9)

    def normals(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", MixtureWeights(torch.full((2,), 0.5, dtype=F64)))
            pyro.sample("y", dist.Normal(z.double(), 1.0), obs=y)

    with pytest.raises(ClosedFormError, match="offset="):
        approximation_report(normals, with_labels([0] * 6, 2), x, y)


def test_families_that_do_not_state_their_constants_are_refused():
    x, y = randn(6, 2), randn(6, 1, seed=1)
    model = MixtureOfExperts(
        lambda: nn.Linear(2, 1), components=2, features=2, loss="squared", event_shape=(1,)
    )
    with pytest.raises(
        ClosedFormError, match=r"PseudoLikelihoods.*pass them as offset=, which is 0\.0"
    ):
        approximation_report(model.double(), with_labels([0, 1] * 3, 2), x, y)
    assert approximation_report(model, with_labels([0, 1] * 3, 2), x, y, offset=0.0).loss_min > 0


# Input densities.


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_input_density_is_a_loss_of_its_own(dtype):
    """The loss of the input density adds to that of the regression."""
    x, y, labels = (
        randn(9, 3, dtype=dtype),
        randn(9, seed=1, dtype=dtype),
        torch.arange(9, device=CPU) % 2,
    )
    with torch.device("cpu"):
        model = MixtureOfRegressions(
            components=2, features=3, ridge=0.2, scale=0.7, input_density=0.4
        ).to(dtype)
    report = approximation_report(model, with_labels(labels, 2), x, y)
    scale = torch.full((2,), 0.7, dtype=F64, device=CPU)
    weight, bias, loc = (param.detach().double() for param in (model.weight, model.bias, model.loc))
    table = losses(x.double(), y.double(), weight, bias, scale, 0.2)
    table += 0.4 * (x.double().unsqueeze(1) - loc).square().mean(-1)
    assert report.loss_min == pytest.approx(float(table.min()), rel=1e-4)
    assert report.loss_max == pytest.approx(float(table.max()), rel=1e-4)
    assert report.objective == pytest.approx(
        float(table.gather(1, labels.unsqueeze(-1)).sum()), rel=1e-4
    )


def test_the_input_density_is_included_in_the_objective():
    x, y = randn(12, 2), randn(12, seed=1)
    model = MixtureOfRegressions(
        components=2, features=2, ridge=0.2, scale=1.0, equal_weights=True, input_density=0.5
    )
    guide = HardPartition(model.double(), components=2)
    guide.set_labels(torch.arange(12) % 2)
    em = EM(model, guide, empty="keep")
    em.step(x, y)
    guide.reset_counts()
    em.step(x, y)
    guide.set_labels(guide.labels.long())
    em.step(x, y)  # params that fit the labels
    places = torch.stack([x[guide.labels == k].mean(0) for k in (0, 1)])
    away = 0.25 * (x - places[guide.labels.long()]).square().sum()
    expected = objective(x, y, guide.labels, 0.2) + float(away)
    assert approximation_report(model, guide, x, y).objective == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_losses_of_normals_are_distances_from_their_means(covariance):
    x, labels = randn(8, 2), torch.arange(8) % 3
    mixture = GaussianMixture(components=3, features=2, covariance=covariance).double()
    mixture.set_variance(torch.tensor([0.5, 2.0], dtype=F64))

    def model(x, y):
        family = mixture.component_distributions()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", MixtureWeights(torch.full((3,), 1 / 3, dtype=F64)))
            pyro.sample("x", family[z], obs=x)

    family = mixture.component_distributions()
    with torch.no_grad():
        table = family.log_prob(family.mean).unsqueeze(0) - family.log_prob(x.unsqueeze(1))
    report = approximation_report(model, with_labels(labels, 3), x, x)
    assert report.loss_min == pytest.approx(float(table.min()))
    assert report.loss_max == pytest.approx(float(table.max()))
    assert report.objective == pytest.approx(float(table[torch.arange(8), labels].sum()))


@pytest.mark.parametrize("offset", [math.nan, math.inf, "0", True])
def test_offsets_are_finite_numbers(offset):
    x, y = randn(6, 2), randn(6, seed=1)
    model = regressions(randn(2, 2, seed=2), randn(2, seed=3), torch.ones(2, dtype=F64))
    with pytest.raises(OptionError, match="offset="):
        approximation_report(model, with_labels([0] * 6, 2), x, y, offset=offset)


def test_planted_regressions_keep_the_guarantee():
    figures = planted(10, 0.1)
    assert 1 - 1e-9 <= figures["true ratio"] <= figures["guarantee"]
