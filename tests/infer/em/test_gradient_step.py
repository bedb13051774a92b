"""Generalized EM: closed-form sites by their M-step, other sites by gradient steps."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch.nn.functional import softplus

from pyro_mixtures.distributions import Categoricals, DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import ClosedFormError, OptionError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.poutine import data_plate

C, D, N = 3, 2, 80
F64 = torch.float64


pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture
def data():
    """Rows x (N, D), and numbers y (N,) with heavy tails, of three components."""
    z = torch.arange(N) % C
    x = 2.0 * z.unsqueeze(-1) + torch.randn(N, D, dtype=F64)
    y = 3.0 * z + dist.StudentT(torch.tensor(3.0, dtype=F64)).sample((N,))
    return x, y


def closed_form(x):
    """Weights and a normal site, which have a closed form."""
    weights = pyro.param(
        "weights", torch.full((C,), 1 / C, dtype=F64), constraint=dist.constraints.simplex
    )
    loc = pyro.param("loc", lambda: torch.arange(C, dtype=F64).unsqueeze(-1).repeat(1, D))
    scale = pyro.param("scale", torch.ones(C, D, dtype=F64), constraint=dist.constraints.positive)
    return MixtureWeights(weights), DiagonalNormals(loc, scale)


def student(z):
    place = pyro.param("place", lambda: torch.arange(C, dtype=F64))
    width = pyro.param("width", torch.ones(C, dtype=F64), constraint=dist.constraints.positive)
    return dist.StudentT(torch.tensor(3.0, dtype=F64), place[z], width[z])


def transformed(z):
    place = pyro.param("place", lambda: torch.arange(C, dtype=F64))
    return dist.Normal(place[z], softplus(pyro.param("raw", torch.zeros(C, dtype=F64)))[z])


def lazy_transformed(z):
    place = pyro.param("place", lambda: torch.arange(C, dtype=F64).unsqueeze(-1))
    width = softplus(pyro.param("raw", torch.zeros(C, 1, dtype=F64)))
    return DiagonalNormals(place, width)[z]


HEADS = {"student": student, "transformed": transformed, "lazy": lazy_transformed}


@pytest.fixture(params=HEADS)
def head(request):
    return HEADS[request.param]


def program(head):
    def model(x, y, index=None, size=None):
        weights, components = closed_form(x)
        with data_plate(x, index, size):
            z = pyro.sample("z", weights)
            pyro.sample("x", components[z], obs=x)
            fn = head(z)
            pyro.sample("y", fn, obs=y.unsqueeze(-1) if fn.event_shape else y)

    return model


def adam(lr=0.02):
    return pyro.optim.Adam({"lr": lr})


def values():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def gradient_names():
    return values().keys() - {"weights", "loc", "scale"}


@pytest.mark.parametrize("guided", ["full", "truncated"])
def test_closed_form_params_are_those_of_the_m_step_on_the_same_posterior(data, head, guided):
    x, y = data
    model = program(head)
    guide = FullPartition(model, components=C)
    if guided == "truncated":
        guide = TruncatedPartition(model, components=C, candidates=C, neighbors=C)
    em = EM(model, guide, variance_floor=0.0, gradient=adam())
    for _ in range(3):
        q = FullPartition(model, components=C).posterior(x, y).probs  # (C, N)
        before = values()
        em.step(x, y)
        after = values()
        count = q.sum(1, keepdim=True)
        loc = (q @ x) / count
        variance = torch.einsum("cn,cnd->cd", q, (x - loc.unsqueeze(1)).square()) / count
        for name, expected in (("weights", q.mean(1)), ("loc", loc), ("scale", variance.sqrt())):
            torch.testing.assert_close(after[name], expected, rtol=1e-9, atol=1e-10)
        for name in gradient_names():
            assert (after[name] != before[name]).all()


def test_closed_form_params_equal_those_of_pure_em_where_the_other_site_says_nothing(data):
    """A site that all components share leaves q alone: both fits see the same statistics."""
    x, y = data

    def pure(x):
        weights, components = closed_form(x)
        with data_plate(x):
            pyro.sample("x", components[pyro.sample("z", weights)], obs=x)

    def mixed(x, y):
        weights, components = closed_form(x)
        place = pyro.param("place", torch.zeros(1, dtype=F64))
        with data_plate(x):
            z = pyro.sample("z", weights)
            pyro.sample("x", components[z], obs=x)
            pyro.sample(
                "y", dist.StudentT(torch.tensor(3.0, dtype=F64), place.expand(C)[z], 1.0), obs=y
            )

    em = EM(pure, FullPartition(pure, components=C))
    for _ in range(4):
        em.step(x)
    expected = values()
    pyro.clear_param_store()
    em = EM(mixed, FullPartition(mixed, components=C), gradient=adam())
    for _ in range(4):
        em.step(x, y)
    found = values()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10)
    assert float(found["place"]) > 0


@pytest.mark.parametrize("batch_size", [None, 30])
def test_elbo_rises(data, head, batch_size):
    model = program(head)
    em = EM(model, FullPartition(model, components=C), gradient=adam())
    found = fit(
        em, *data, batch_size=batch_size, epochs=25, tolerance=0.0, patience=99, progress=False
    )
    elbo = found.history["elbo"]
    assert (elbo[1:] > elbo[:-1]).all()
    assert elbo[-1] > elbo[0] + 0.1


def test_minibatches_accumulate_to_the_gradient_of_all_rows(data, head):
    found = []
    for batch_size in (None, 30):
        pyro.clear_param_store()
        model = program(head)
        em = EM(model, FullPartition(model, components=C), gradient=pyro.optim.SGD({"lr": 1e-3}))
        fit(em, *data, batch_size=batch_size, epochs=3, tolerance=0.0, patience=99, progress=False)
        found.append(values())
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name], whole, rtol=1e-8, atol=1e-10)


def test_gradient_step_is_that_of_the_expected_log_density(data, head):
    x, y = data
    model = program(head)
    guide = FullPartition(model, components=C)
    q = guide.posterior(x, y).probs
    start = {
        name: leaf.detach().clone() for name, leaf in pyro.get_param_store().named_parameters()
    }
    trace = pyro.poutine.trace(
        pyro.poutine.condition(model, {"z": torch.arange(C).unsqueeze(-1).expand(C, N)})
    ).get_trace(x, y)
    fn = trace.nodes["y"]["fn"]
    rows = y.unsqueeze(-1) if fn.event_shape else y
    leaves = {
        name: leaf
        for name, leaf in pyro.get_param_store().named_parameters()
        if name in gradient_names()
    }
    expected = torch.autograd.grad((q * fn.log_prob(rows)).sum(), [*leaves.values()])
    EM(model, guide, gradient=pyro.optim.SGD({"lr": 1e-3})).step(x, y)
    for (name, leaf), gradient in zip(leaves.items(), expected, strict=True):
        torch.testing.assert_close(leaf.detach(), start[name] + 1e-3 * gradient)


def test_gradients_do_not_accumulate(data, head):
    """Each step begins without gradients, on the params of both kinds."""
    model = program(head)
    em = EM(model, FullPartition(model, components=C), gradient=adam())
    for _ in range(2):
        em.step(*data)
        for _, leaf in pyro.get_param_store().named_parameters():
            assert leaf.grad is None or not leaf.grad.any()


def test_frozen_params_stay(data, head):
    model = program(head)
    em = EM(model, FullPartition(model, components=C), gradient=adam(), freeze=["place", "loc"])
    em.step(*data)
    before = values()
    em.step(*data)
    moved = {name for name, value in values().items() if not torch.equal(value, before[name])}
    assert moved == before.keys() - {"place", "loc"}


def test_without_gradient_an_error_names_the_site(data, head):
    model = program(head)
    with pytest.raises(ClosedFormError, match=r"site 'y'.*gradient="):
        EM(model, FullPartition(model, components=C)).step(*data)


def test_interrupted_fit_drops_the_calls_of_the_abandoned_pass(data):
    model = program(student)
    em = EM(model, FullPartition(model, components=C), gradient=adam())
    x, y = data
    em.accumulate(x[:30], y[:30], index=torch.arange(30), size=N)
    assert em._calls
    em.forget()
    assert not em._calls
    fit(em, x, y, batch_size=30, epochs=1, progress=False)
    assert not em._calls


def test_a_model_without_any_closed_form_but_the_weights(data):
    _, y = data

    def model(y):
        weights = pyro.param(
            "weights", torch.full((C,), 1 / C, dtype=F64), constraint=dist.constraints.simplex
        )
        with data_plate(y):
            pyro.sample("y", student(pyro.sample("z", dist.Categorical(weights))), obs=y)

    em = EM(model, FullPartition(model, components=C), gradient=adam(0.05))
    losses = [em.step(y) for _ in range(15)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 5


def test_a_third_site_keeps_its_closed_form(data):
    x, y = data
    label = (torch.arange(N) // 2) % 4

    def model(x, y, label):
        weights, components = closed_form(x)
        table = pyro.param(
            "table", torch.full((C, 4), 0.25, dtype=F64), constraint=dist.constraints.simplex
        )
        with data_plate(x):
            z = pyro.sample("z", weights)
            pyro.sample("x", components[z], obs=x)
            pyro.sample("y", student(z), obs=y)
            pyro.sample("label", Categoricals(table)[z], obs=label)

    guide = FullPartition(model, components=C)
    q = guide.posterior(x, y, label).probs
    EM(model, guide, gradient=adam()).step(x, y, label)
    expected = torch.stack([q[:, label == k].sum(1) for k in range(4)], -1) / q.sum(1, keepdim=True)
    torch.testing.assert_close(values()["table"], expected)


def test_nested_plates_sum_their_features(data):
    """The site's log density has the shape of both plates: (C, N, D), responsibilities (C, N)."""
    x, _ = data
    start = torch.arange(C, dtype=F64).unsqueeze(-1).repeat(1, D)

    def model(x):
        weights = pyro.param(
            "weights", torch.full((C,), 1 / C, dtype=F64), constraint=dist.constraints.simplex
        )
        place = pyro.param("place", start.clone())
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", MixtureWeights(weights))
            with pyro.plate("features", D, dim=-2) as d:
                pyro.sample(
                    "x",
                    dist.StudentT(torch.tensor(3.0, dtype=F64), place[z, d.unsqueeze(-1)], 1.0),
                    obs=x.T,
                )

    place = start.clone().requires_grad_()
    log_prob = (
        dist.StudentT(torch.tensor(3.0, dtype=F64), place, 1.0).log_prob(x.unsqueeze(1)).sum(-1)
    )  # (N, C)
    q = log_prob.softmax(-1).detach()
    gradient = torch.autograd.grad((q * log_prob).sum(), place)[0]
    EM(model, FullPartition(model, components=C), gradient=pyro.optim.SGD({"lr": 1e-3})).step(x)
    torch.testing.assert_close(values()["place"], start + 1e-3 * gradient)


def test_masked_observations_give_no_gradient(data):
    x, y = data
    seen = torch.arange(N) % 4 != 0
    found = []
    for value in (100.0, 1e3):

        def model(x, y):
            weights, components = closed_form(x)
            with data_plate(x):
                z = pyro.sample("z", weights)
                pyro.sample("x", components[z], obs=x)
                with pyro.poutine.mask(mask=seen):
                    pyro.sample("y", student(z), obs=y)

        pyro.clear_param_store()
        em = EM(model, FullPartition(model, components=C), gradient=pyro.optim.SGD({"lr": 1e-3}))
        em.step(x, torch.where(seen, y, value))
        found.append(values())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])


def test_a_param_of_both_kinds_of_sites_is_refused_or_left_to_the_gradient(data):
    """The closed form of one site alone does not maximize both: the ELBO must not fall."""
    x, _ = data
    y = torch.full((N,), 50.0, dtype=F64)

    def model(x, y):
        weights = torch.full((C,), 1 / C, dtype=F64)
        loc = pyro.param("loc", 50 + torch.arange(C, dtype=F64).unsqueeze(-1).repeat(1, D))
        width = pyro.param(
            "width", torch.full((C,), 0.1, dtype=F64), constraint=dist.constraints.positive
        )
        components = DiagonalNormals(loc, torch.full((C, D), 100.0, dtype=F64))
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", components[z], obs=x)
            pyro.sample("y", dist.Cauchy(loc[z][..., 0], width[z]), obs=y)

    em = EM(model, FullPartition(model, components=C), empty="keep", gradient=adam(1e-4))
    try:
        losses = [em.step(x, y) for _ in range(3)]
    except ClosedFormError as error:
        assert "loc" in str(error)  # noqa: PT017
    else:
        assert losses == sorted(losses, reverse=True)


def test_gradient_steps_are_taken_one_after_the_other_with_q_held(data, head):
    """Against plain gradient ascent on the expected log density, by stock Pyro."""
    x, y = data
    model = program(head)
    guide = FullPartition(model, components=C)
    q = guide.posterior(x, y).probs
    leaves = {
        name: leaf
        for name, leaf in pyro.get_param_store().named_parameters()
        if name in gradient_names()
    }
    start = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    given = pyro.poutine.condition(model, {"z": torch.arange(C).unsqueeze(-1).expand(C, N)})
    for _ in range(4):
        fn = pyro.poutine.trace(given).get_trace(x, y).nodes["y"]["fn"]
        slopes = torch.autograd.grad(
            (q * fn.log_prob(y.unsqueeze(-1) if fn.event_shape else y)).sum(), [*leaves.values()]
        )
        with torch.no_grad():
            for leaf, slope in zip(leaves.values(), slopes, strict=True):
                leaf += 1e-3 * slope
    expected = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(start[name])
    EM(model, guide, gradient=pyro.optim.SGD({"lr": 1e-3}), gradient_steps=4).step(x, y)
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.detach(), expected[name])


def test_closed_form_params_do_not_depend_on_the_number_of_gradient_steps(data, head):
    found = []
    for steps in (1, 5):
        pyro.clear_param_store()
        model = program(head)
        EM(model, FullPartition(model, components=C), gradient=adam(), gradient_steps=steps).step(
            *data
        )
        found.append(values())
    one, five = found
    for name in ("weights", "loc", "scale"):
        assert torch.equal(one[name], five[name])
    for name in one.keys() - {"weights", "loc", "scale"}:
        assert (one[name] != five[name]).all()


def test_more_gradient_steps_gain_more_in_an_epoch_and_the_elbo_rises(data, head):
    elbos = {}
    for steps in (1, 10):
        pyro.clear_param_store()
        model = program(head)
        em = EM(
            model, FullPartition(model, components=C), gradient=adam(0.005), gradient_steps=steps
        )
        found = fit(em, *data, batch_size=30, epochs=5, tolerance=0.0, patience=99, progress=False)
        elbos[steps] = found.history["elbo"]
    assert (elbos[10][1:] > elbos[10][:-1]).all()
    assert elbos[10][-1] > elbos[1][-1] + 0.05


def test_frozen_params_stay_and_gradients_do_not_accumulate_over_several_steps(data, head):
    model = program(head)
    em = EM(
        model,
        FullPartition(model, components=C),
        gradient=adam(),
        gradient_steps=3,
        freeze=["place"],
    )
    em.step(*data)
    before = values()
    em.step(*data)
    assert torch.equal(values()["place"], before["place"])
    for name, leaf in pyro.get_param_store().named_parameters():
        if name != "place":
            assert leaf.grad is None or not leaf.grad.any()


@pytest.mark.parametrize(
    ("options", "said"), [({"gradient_steps": 0}, "positive"), ({"gradient_steps": 2}, "gradient=")]
)
def test_impossible_gradient_steps_are_refused(data, options, said):
    model = program(student)
    given = {"gradient": adam()} if options["gradient_steps"] < 1 else {}
    with pytest.raises(OptionError, match=f"gradient_steps.*{said}"):
        EM(model, FullPartition(model, components=C), **options, **given)
