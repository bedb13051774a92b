"""Reuse of constrained values and families by runs with unchanged params, and only by those."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch.distributions import constraints

from pyro_mixtures.distributions import DiagonalNormals, LinearRegressions, LogisticRegressions
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.models import GaussianMixture, MixtureOfFactorAnalyzers, MixtureOfRegressions
from pyro_mixtures.poutine import ReuseMessenger, exact_posterior

pytestmark = pytest.mark.usefixtures("on_one_thread")

C, D, N = 4, 3, 20
MODELS = {
    "isotropic": lambda: GaussianMixture(components=C, features=D, covariance="isotropic"),
    "diagonal": lambda: GaussianMixture(components=C, features=D),
    "full": lambda: GaussianMixture(components=C, features=D, covariance="full"),
    "tied": lambda: GaussianMixture(components=C, features=D, covariance="full", tied=True),
    "factors": lambda: MixtureOfFactorAnalyzers(components=C, features=D, factors=2),
}


@pytest.fixture
def x():
    return torch.randn(N, D, device="cpu")


def program(x, loc=None):
    """Weights and scales are params, and so is ``loc`` unless it is passed."""
    weights = pyro.param(
        "weights", torch.full((C,), 1 / C, device="cpu"), constraint=constraints.simplex
    )
    if loc is None:
        loc = pyro.param("loc", torch.arange(C * D, device="cpu").reshape(C, D).float())
    scale = pyro.param("scale", torch.ones(C, D, device="cpu"), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), obs=torch.arange(len(x), device="cpu") % C)
        pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)


def run(reuse, *args, grad=False):
    """The constrained values and the family of one run."""
    with torch.set_grad_enabled(grad):
        nodes = pyro.poutine.trace(reuse(program)).get_trace(*args).nodes
    values = {name: nodes[name]["value"] for name in ("weights", "loc", "scale") if name in nodes}
    return values, nodes["x"]["fn"].family


def unconstrained(name):
    return pyro.get_param_store().get_state()["params"][name]


@pytest.mark.meta
def test_values_and_family_are_handed_on_while_params_stay(x):
    reuse = ReuseMessenger()
    values, family = run(reuse, x)
    for rows in (x, x[:7]):
        again, same = run(reuse, rows)
        assert same is family
        assert all(again[name] is value for name, value in values.items())


def test_handlers_of_their_own_share_nothing(x):
    values, family = run(ReuseMessenger(), x)
    again, other = run(ReuseMessenger(), x)
    assert other is not family
    assert again["scale"] is not values["scale"]


@pytest.mark.meta
@pytest.mark.parametrize("name", ["weights", "loc", "scale"])
def test_a_change_in_place_is_seen(x, name):
    reuse = ReuseMessenger()
    values, family = run(reuse, x)
    with torch.no_grad():
        unconstrained(name)[0] += 1.0
    again, other = run(reuse, x)
    torch.testing.assert_close(again[name], pyro.param(name).detach())
    assert (other is family) == (name == "weights")
    for same in values.keys() - {name}:
        assert again[same] is values[same]
    if name != "weights":
        assert torch.equal(getattr(other, name), again[name])
    # The new family is reused as well.
    assert run(reuse, x)[1] is other


@pytest.mark.parametrize("name", ["weights", "loc", "scale"])
def test_a_param_that_was_replaced_is_seen(x, name):
    reuse = ReuseMessenger()
    _, family = run(reuse, x)
    value = torch.rand_like(pyro.param(name).detach()) + 0.5
    value = value / value.sum() if name == "weights" else value
    pyro.get_param_store()[name] = value
    again, other = run(reuse, x)
    torch.testing.assert_close(again[name].detach(), value)
    assert (other is family) == (name == "weights")


def test_a_cleared_store_is_seen(x):
    reuse = ReuseMessenger()
    with torch.no_grad():
        program(x)
        unconstrained("scale").add_(1.0)
    run(reuse, x)
    pyro.clear_param_store()
    values, family = run(reuse, x)
    assert torch.equal(values["scale"], torch.ones(C, D))
    assert torch.equal(family.scale, torch.ones(C, D))


def test_nothing_is_handed_on_while_gradients_are_recorded(x):
    reuse = ReuseMessenger()
    values, family = run(reuse, x)
    with_grad, other = run(reuse, x, grad=True)
    assert other is not family
    assert with_grad["scale"] is not values["scale"]
    assert with_grad["scale"].requires_grad
    other.scale.sum().backward()
    assert unconstrained("scale").grad.abs().min() > 0
    # Nothing of that run is stored: its graph must not reach later runs.
    again, last = run(reuse, x)
    assert last is family
    assert not any(value.requires_grad for name, value in again.items() if name != "loc")


def test_values_of_arguments_that_are_no_params_are_looked_at(x):
    reuse = ReuseMessenger()
    first, second = torch.zeros(C, D), torch.ones(C, D)
    _, family = run(reuse, x, first)
    _, other = run(reuse, x, second)
    assert other is not family
    assert torch.equal(other.loc, second)
    _, back = run(reuse, x, first)
    assert torch.equal(back.loc, first)
    first.add_(5.0)
    _, moved = run(reuse, x, first)
    assert moved is not back
    assert torch.equal(moved.loc, first)


def test_another_kind_of_family_of_the_same_arguments_is_not_mixed_up(x):
    class Others(DiagonalNormals):
        pass

    def observe(family, loc, scale):
        z = torch.zeros(len(x), dtype=torch.int64)
        with pyro.plate("data", len(x)):
            pyro.sample("x", family(loc, scale)[z], obs=x)

    reuse, loc, scale = ReuseMessenger(), torch.zeros(C, D), torch.ones(C, D)
    for family in (DiagonalNormals, Others, DiagonalNormals):
        with torch.no_grad():
            trace = pyro.poutine.trace(reuse(observe)).get_trace(family, loc, scale)
        assert type(trace.nodes["x"]["fn"].family) is family


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_families_of_the_library_are_reused(x, build):
    """All families of the library are reused."""
    model, reuse = build(), ReuseMessenger()
    assert run_family(reuse, model, x) is run_family(reuse, model, x[:7])


def run_family(reuse, program, *args):
    """The family at the site of the outcome, of one run without gradients."""
    with torch.no_grad():
        nodes = pyro.poutine.trace(reuse(program)).get_trace(*args).nodes
    return nodes["y" if "y" in nodes else "x"]["fn"].family


def regression(u, y, weight, bias, ridge=0.0, family=LogisticRegressions):
    with pyro.plate("data", len(u)):
        z = torch.arange(len(u), device="cpu") % C
        pyro.sample("y", family(u, weight, bias, ridge=ridge)[z], obs=y)


@pytest.mark.meta
def test_covariates_identify_a_family(x):
    """Other rows of the same number, and rows changed in place, make another family."""
    y, weight, bias = (
        torch.ones(N, device="cpu"),
        torch.randn(C, D, device="cpu"),
        torch.zeros(C, device="cpu"),
    )
    reuse = ReuseMessenger()
    first = run_family(reuse, regression, x, y, weight, bias)
    assert run_family(reuse, regression, x, y, weight, bias) is first
    other = run_family(reuse, regression, x + 1, y, weight, bias)
    assert torch.equal(other.covariates, x + 1)
    again = run_family(reuse, regression, x, y, weight, bias)
    assert again.covariates is x
    x.add_(1.0)
    assert run_family(reuse, regression, x, y, weight, bias) is not again


def test_options_are_a_part_of_what_a_family_is(x):
    y, weight, bias = torch.ones(N), torch.randn(C, D), torch.zeros(C)
    reuse = ReuseMessenger()
    for ridge in (0.0, 0.5, 0.0):
        assert run_family(reuse, regression, x, y, weight, bias, ridge).ridge == ridge


def test_families_that_hold_what_may_change_are_built_again(x):
    """A list may have changed in place, so its identity proves nothing."""

    class Shifted(DiagonalNormals):
        def __init__(self, loc, scale, shifts=(), *, validate_args=None):
            self.shifts = shifts
            super().__init__(loc, scale, validate_args=validate_args)

    def observe(shifts):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "x", Shifted(loc, scale, shifts)[torch.zeros(len(x), dtype=torch.int64)], obs=x
            )

    loc, scale, shifts, reuse = torch.zeros(C, D), torch.ones(C, D), [1.0], ReuseMessenger()
    first = run_family(reuse, observe, shifts)
    assert run_family(reuse, observe, shifts) is not first
    assert run_family(reuse, observe, 1.0) is run_family(reuse, observe, 1.0)


def test_conditional_families_keep_what_they_computed(x):
    """Within a batch, the E-step and the statistics see the same rows."""
    model = MixtureOfRegressions(components=C, features=D)
    reuse, y = ReuseMessenger(), torch.randn(N)
    first = run_family(reuse, model, x, y)
    assert isinstance(first, LinearRegressions)
    assert run_family(reuse, model, x, y) is first
    assert run_family(reuse, model, x[:7], y[:7]).covariates.shape == (7, D)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_log_joints_are_those_without_it(x, build):
    """Over runs, batches and updates."""
    model = build()
    guide, reuse = FullPartition(model, components=C), ReuseMessenger()
    structure = guide.read(x)
    handled = reuse(model)
    for update in range(3):
        with torch.no_grad():
            for rows in (x, x, x[:5]):
                expected = exact_posterior(model, structure, (rows,), {}, {})
                actual = exact_posterior(handled, structure, (rows,), {}, {})
                assert torch.equal(actual.log_prob, expected.log_prob)
                assert torch.equal(actual.free_energy(), expected.free_energy())
            before = expected.log_prob
            for number, leaf in enumerate(model.parameters()):
                if number <= update:  # first one of them, then others as well
                    leaf += 0.3 * torch.randn_like(leaf)
            assert not torch.equal(
                exact_posterior(handled, structure, (x[:5],), {}, {}).log_prob, before
            )
