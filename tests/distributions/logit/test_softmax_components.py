"""Softmax components: conformance, invariances, boundary cases, splits and errors."""

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions import Categoricals, MixtureWeights
from pyro_mixtures.distributions.logit import softmax_components as module
from pyro_mixtures.distributions.logit.softmax_components import SoftmaxComponents
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, OptionError
from pyro_mixtures.models.base import MixtureProgram
from pyro_mixtures.models.softmax import SoftmaxMixture
from pyro_mixtures.poutine import data_plate
from pyro_mixtures.testing import DiscreteConformance
from pyro_mixtures.testing.discrete import ITEMS, outcomes

F64 = torch.float64
RIDGE = 0.02


def features(items: int = ITEMS, width: int = 3, dtype: torch.dtype = F64) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(5)
    x = torch.randn(items, width, generator=generator, dtype=F64, device="cpu")
    return (x - x.mean(0)).to(dtype)


def brute(theta: Tensor, x: Tensor, ridge: float = 0.0) -> Tensor:
    return torch.einsum("...cl,pl->...cp", theta, x).log_softmax(-1) - ridge * theta.square().sum(
        -1, keepdim=True
    )


def best_theta(counts: Tensor, x: Tensor, ridge: float) -> Tensor:
    """The maximizer of the expected log density, by L-BFGS over all items."""
    theta = torch.zeros(len(counts), x.shape[1], dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = -(counts * brute(theta, x, ridge)).sum() / counts.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return theta.detach()


class _Softmax(DiscreteConformance):
    argument = "theta"
    solver = "newton"

    def values(self, components, lead=()):
        return torch.randn(*lead, components, 3, dtype=F64)

    def build_from(self, value, validate_args=None):
        x = features(dtype=value.dtype).to(value.device)
        return SoftmaxComponents(value, x, ridge=RIDGE, validate_args=validate_args)

    def table(self, value):
        return brute(value, features(), RIDGE)

    def model(self, components):
        return SoftmaxMixture(
            components=components, features=features(), ridge=RIDGE, solver=self.solver, steps=None
        )

    def best(self, counts):
        return best_theta(counts, features(), RIDGE)

    # With a ridge, the log density is that of a pseudo-likelihood.

    def test_probabilities_sum_to_one(self, dtype):
        family = self.build(dtype=dtype)
        every = family.log_prob(torch.arange(ITEMS).unsqueeze(-1)).logsumexp(0)
        torch.testing.assert_close(every, -RIDGE * family.theta.square().sum(-1))

    def test_draws_have_the_moments_of_the_oracle(self):
        for dtype in (torch.float32, F64):
            family = SoftmaxComponents(self.build(3, dtype).theta, features(dtype=dtype))
            probs = brute(family.theta.detach().double(), features()).exp()
            draws = family[torch.tensor([2, 0])].sample((20_000,))
            self.check_frequencies(draws[:, 0], probs[2])
            self.check_frequencies(draws[:, 1], probs[0])

    def test_draws_of_the_program_have_the_mixtures_frequencies(self):
        model = SoftmaxMixture(components=3, features=features())
        model.start_at(torch.randn(3, 3, dtype=F64), torch.tensor([0.2, 0.3, 0.5]))
        with torch.no_grad():
            draws, probs = model(size=20_000), model.weights @ brute(model.theta, features()).exp()
        self.check_frequencies(draws, probs)


class TestSoftmaxByNewton(_Softmax):
    pass


class TestSoftmaxByGradientWithoutTable(_Softmax):
    """Too many items and components to keep all log probabilities."""

    solver = "gradient"

    @pytest.fixture(autouse=True)
    def _no_table(self, monkeypatch):
        monkeypatch.setattr(module, "_TABLE", 0)


class CategoricalMixture(MixtureProgram):
    def __init__(self, components: int):
        super().__init__(components=components, features=ITEMS)
        self.probs = PyroParam(
            torch.full((components, ITEMS), 1 / ITEMS), constraint=constraints.simplex
        )

    def forward(self, x=None, index=None, size=None):
        weights, components = MixtureWeights(self.weights), Categoricals(self.probs)
        with data_plate(x, index, size):
            return pyro.sample("x", components[pyro.sample("z", weights)], obs=x)


class TestCategoricals(DiscreteConformance):
    argument = "probs"

    def values(self, components, lead=()):
        return torch.randn(*lead, components, ITEMS, dtype=F64).softmax(-1)

    def build_from(self, value, validate_args=None):
        return Categoricals(value, validate_args=validate_args)

    def table(self, value):
        return value.log()

    def model(self, components):
        return CategoricalMixture(components)

    def best(self, counts):
        return counts / counts.sum(-1, keepdim=True)


# Identification of theta.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("table", [0, 1 << 24])
def test_features_enter_by_their_differences(dtype, table, monkeypatch):
    monkeypatch.setattr(module, "_TABLE", table)
    theta, x = torch.randn(4, 3, dtype=dtype), features(dtype=dtype)
    z, items = torch.tensor([0, 3, 1]), torch.tensor([5, 0, 11])
    found = [SoftmaxComponents(theta, x + shift)[z].log_prob(items) for shift in (0.0, 8.0)]
    torch.testing.assert_close(*found, rtol=0, atol=2e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("solver", ["newton", "gradient"])
def test_theta_does_not_move_where_items_do_not_differ(solver):
    x = torch.cat(
        [features(), torch.ones(ITEMS, 1, dtype=F64), features()[:, :1]], -1
    )  # constant, collinear
    theta, items = torch.randn(2, 5, dtype=F64), outcomes(200)
    family = SoftmaxComponents(theta, x, solver=solver, steps=None)
    index = torch.randint(2, (200,))
    statistics = family[index].statistics(items, torch.ones(200, dtype=F64))
    new = family.maximize(statistics, frozenset(["theta"]), floor=None)["theta"]
    torch.testing.assert_close(new[:, 3], theta[:, 3], rtol=0, atol=1e-6)
    torch.testing.assert_close(new[:, 0] - new[:, 4], theta[:, 0] - theta[:, 4], rtol=0, atol=1e-4)
    counts = torch.zeros(2, ITEMS, dtype=F64).index_put(
        (index, items), torch.ones(200, dtype=F64), accumulate=True
    )
    best = brute(best_theta(counts, features(), 0.0), features())
    torch.testing.assert_close(brute(new, x), best, rtol=0, atol=1e-4)


# Data without a finite maximum.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["newton", "gradient"])
@pytest.mark.parametrize("steps", [1, None])
def test_a_single_item_leaves_theta_finite(dtype, solver, steps):
    x = features(dtype=dtype)
    corner = int(x[:, 0].argmax())
    theta = torch.zeros(2, 3, dtype=dtype)
    value = -torch.inf
    for _ in range(25 if steps == 1 else 3):
        family = SoftmaxComponents(theta, x, solver=solver, steps=steps)
        items = torch.tensor([corner, corner, 0, 1, 2, 3])
        chosen = family[torch.tensor([0, 0, 1, 1, 1, 1])]
        now = float(chosen.log_prob(items)[:2].sum())
        assert now >= value - (2e-5 if dtype == torch.float32 else 0)  # rounding of logits of 50
        value = now
        statistics = chosen.statistics(items, torch.ones(6, dtype=dtype))
        theta = family.maximize(statistics, frozenset(["theta"]), floor=None)["theta"]
        assert theta.isfinite().all()
    assert value > -0.1 if solver == "newton" else value > -2.0


def test_empty_components_stay():
    theta = torch.randn(3, 3, dtype=F64)
    family = SoftmaxComponents(theta, features(), steps=None)
    statistics = family[torch.tensor([0, 2, 0, 2, 2])].statistics(
        outcomes(5), torch.ones(5, dtype=F64)
    )
    new = family.maximize(statistics, frozenset(["theta"]), floor=None)["theta"]
    assert torch.equal(new[1], theta[1])
    assert not torch.equal(new[0], theta[0])
    assert family.maximize(statistics, frozenset(), floor=None) == {}


@settings(max_examples=20, deadline=None)
@given(
    st.integers(2, 40),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(["newton", "gradient"]),
    st.data(),
)
def test_no_step_lowers_the_objective(items, width, components, solver, data):
    seed = data.draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(items, width, generator=generator, dtype=F64) * 10 ** torch.linspace(
        -1, 1, width, dtype=F64
    )
    theta = 3 * torch.randn(components, width, generator=generator, dtype=F64)
    counts = torch.rand(components, items, generator=generator, dtype=F64) ** 3
    ridge = data.draw(st.sampled_from([0.0, 1e-2]))
    family = SoftmaxComponents(
        theta, x, ridge=ridge, solver=solver, steps=data.draw(st.sampled_from([1, 3]))
    )
    index = torch.arange(components).unsqueeze(-1).expand(components, items)
    statistics = family[index].statistics(torch.arange(items), counts)
    new = family.maximize(statistics, frozenset(["theta"]), floor=None)["theta"]
    before, after = ((counts * brute(t, x, ridge)).sum(-1) for t in (theta, new))
    assert (after >= before - 1e-9 * before.abs()).all()


# Splits and summaries of components.


def test_a_split_makes_the_item_likelier():
    family = SoftmaxComponents(torch.randn(3, 3, dtype=F64), features())
    for item in range(ITEMS):
        new = family.split_loc(1, torch.tensor(float(item)))
        assert (
            brute(new.unsqueeze(0), features())[0, item]
            > brute(family.theta[1:2], features())[0, item]
        )


def test_feature_means_are_those_of_the_draws():
    theta = torch.randn(3, 3, dtype=F64)
    family = SoftmaxComponents(theta, features())
    torch.testing.assert_close(family.feature_means(), brute(theta, features()).exp() @ features())
    with pytest.raises(ModelError, match="feature_means"):
        _ = family.mean


def test_a_changed_theta_is_seen():
    theta, item = torch.zeros(2, 3, dtype=F64), torch.tensor([1])
    family = SoftmaxComponents(theta, features())
    before = family[torch.tensor([0])].log_prob(item)
    theta += torch.randn(2, 3, dtype=F64)
    after = family[torch.tensor([0])].log_prob(item)
    torch.testing.assert_close(after, brute(theta, features())[0, item])
    assert not torch.equal(before, after)


def test_arguments_that_do_not_fit_are_refused():
    theta, x = torch.zeros(2, 3), features(dtype=torch.float32)
    with pytest.raises(OptionError, match=r"theta \(2, 3\) and features \(12, 2\)"):
        SoftmaxComponents(theta, x[:, :2])
    with pytest.raises(OptionError, match="p >= 2"):
        SoftmaxComponents(theta, x[:1])
    with pytest.raises(OptionError, match=r"theta is torch.float64 but features are torch.float32"):
        SoftmaxComponents(theta.double(), x)
    with pytest.raises(OptionError, match="floating-point"):
        SoftmaxComponents(theta, x.long())
    with pytest.raises(ClosedFormError, match="features must be constants"):
        SoftmaxComponents(theta, x.requires_grad_())
    with pytest.raises(ValueError, match="theta"):
        SoftmaxComponents(torch.full((2, 3), torch.nan), x.detach(), validate_args=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ridge": -1.0}, "ridge=-1.0"),
        ({"solver": "adam"}, "unknown solver 'adam'"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_options_are_checked(options, said):
    with pytest.raises(OptionError, match=said):
        SoftmaxComponents(torch.zeros(2, 3), features(dtype=torch.float32), **options)


@pytest.mark.parametrize("draws", [torch.tensor([0.0]), torch.tensor([True])])
def test_outcomes_are_integers(draws):
    with pytest.raises(DataError, match="items must be integers"):
        SoftmaxComponents(torch.zeros(2, 3), features(dtype=torch.float32))[
            torch.tensor([0])
        ].log_prob(draws)
