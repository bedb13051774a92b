"""Mixtures of torch modules: densities by loops over rows, training, and Pyro's params."""

import copy

import pyro
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import SGD, Adam
from torch.nn.functional import huber_loss

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.distributions.regression.pseudo_likelihoods import (
    LOSSES,
    PseudoLikelihoods,
    loss_named,
)
from pyro_mixtures.errors import (
    ClosedFormError,
    DataError,
    ModelError,
    OptionError,
    SharedParamsWarning,
)
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models.experts import MixtureOfExperts
from pyro_mixtures.poutine import truncate
from pyro_mixtures.testing import TOLERANCE, assert_near, exact_loss

C, P, N, LABELS = 4, 3, 23, 5


pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def huber(output, y):
    return huber_loss(output.squeeze(-1), y, reduction="none")


KINDS = {
    "squared": "squared",
    "cross_entropy": "cross_entropy",
    "huber": huber,
    "vector": "squared",
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def network(outputs=1, hidden=6, features=P):
    return torch.nn.Sequential(
        torch.nn.Linear(features, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, outputs)
    )


def outputs_of(kind):
    return {"cross_entropy": LABELS, "vector": 2}.get(kind, 1)


def mixture(kind="squared", dtype=torch.float32, components=C, seed=0, **options):
    torch.manual_seed(seed)
    shape = (2,) if kind == "vector" else ()
    with torch.device("cpu"):
        model = MixtureOfExperts(
            lambda: network(outputs_of(kind)),
            components=components,
            features=P,
            loss=KINDS[kind],
            event_shape=shape,
            **options,
        )
        if not options:
            weights = torch.arange(2.0, components + 2)
            model.weights = weights / weights.sum()
    return model.to(dtype)


def rows(kind="squared", dtype=torch.float32, size=N):
    generator = torch.Generator("cpu").manual_seed(1)
    x = torch.randn(size, P, generator=generator, device="cpu", dtype=torch.float64).to(dtype)
    if kind == "cross_entropy":
        return x, torch.randint(LABELS, (size,), generator=generator, device="cpu")
    shape = (size, 2) if kind == "vector" else (size,)
    return x, torch.randn(shape, generator=generator, device="cpu", dtype=torch.float64).to(dtype)


def row_loss(kind, output, y):
    """The loss of one row with output (L,), by its formula."""
    if kind == "cross_entropy":
        return output.logsumexp(0) - output[y]
    away = (output.reshape(y.shape) - y).abs()
    if kind == "huber":
        return torch.where(away < 1, 0.5 * away.square(), away - 0.5)
    return away.square().sum()


def brute(model, kind, x, y):
    """Log densities (C, B) in float64 by loops over rows, and copies of the experts."""
    experts = [copy.deepcopy(expert).double() for expert in model.experts]
    y = y.double() if y.is_floating_point() else y
    table = [
        [-row_loss(kind, e(x[i : i + 1].double())[0], y[i]) for i in range(len(x))] for e in experts
    ]
    return torch.stack([torch.stack(line) for line in table]), experts


def brute_evidence(model, kind, x, y):
    return (
        brute(model, kind, x, y)[0].detach() + model.weights.detach().double().log().unsqueeze(-1)
    ).logsumexp(0)


def adam(lr=0.02):
    return Adam({"lr": lr})


# Densities.


@pytest.mark.meta
@pytest.mark.parametrize(
    "shape", ["rows", "candidates", "all components", "padded", "all padded row"]
)
def test_log_prob_and_gradients_equal_loops(dtype, kind, shape):
    model, (x, y) = mixture(kind, dtype), rows(kind, dtype)
    generator = torch.Generator("cpu").manual_seed(2)
    z = torch.randint(C, (3, N), generator=generator, device="cpu")
    if shape.endswith("padded") or shape.startswith("all"):
        z[1, ::3], z[2] = -1, -1
    if shape.startswith("all"):
        z[:, 4] = -1
    z = {"rows": z[0], "all components": torch.arange(C, device="cpu").unsqueeze(-1)}.get(shape, z)
    full = z.expand(*z.shape[:-1], N)

    table, experts = brute(model, kind, x, y)
    expected = table.gather(0, full.clamp_min(0).reshape(-1, N)).reshape(full.shape)
    expected = torch.where(full < 0, -torch.inf, expected)
    actual = model.component_distributions(x)[z].log_prob(y)
    assert actual.dtype == dtype
    assert_near(actual, expected, TOLERANCE[dtype])

    weight = torch.randn(full.shape, generator=generator, dtype=torch.float64, device="cpu")
    (weight * expected)[full >= 0].sum().backward()
    (weight.to(dtype) * actual)[full >= 0].sum().backward()
    for mine, theirs in zip(
        model.experts.parameters(), (p for e in experts for p in e.parameters()), strict=True
    ):
        assert_near(mine.grad, theirs.grad, 10 * TOLERANCE[dtype])


@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_selection_equals_the_table(components, size, slots, seed):
    model, (x, y) = (
        mixture(dtype=torch.float64, components=components),
        rows(dtype=torch.float64, size=size),
    )
    z = torch.randint(-1, components, (slots, size), generator=torch.Generator().manual_seed(seed))
    family = model.component_distributions(x)
    table = -(family.outputs().squeeze(-1) - y).square()
    expected = torch.where(z < 0, -torch.inf, table.gather(0, z.clamp_min(0)))
    torch.testing.assert_close(family[z].log_prob(y), expected)


def test_padding_alone_is_minus_infinity(dtype):
    model, (x, y) = mixture(dtype=dtype), rows(dtype=dtype)
    found = model.component_distributions(x)[torch.full((2, N), -1)].log_prob(y)
    assert found.dtype == dtype
    assert found.eq(-torch.inf).all()


@pytest.mark.meta
def test_means_and_outputs_are_those_of_the_experts(dtype):
    model, (x, _) = mixture("cross_entropy", dtype), rows(dtype=dtype)
    family = model.component_distributions(x)
    expected = torch.stack([expert(x) for expert in model.experts])
    torch.testing.assert_close(family.outputs(), expected)
    z = torch.arange(N, device="cpu") % C
    torch.testing.assert_close(family[z].mean, expected[z, torch.arange(N, device="cpu")])
    all_components = torch.arange(C, device="cpu").unsqueeze(-1).expand(C, N)
    torch.testing.assert_close(family.mean_at(all_components), expected)


def test_means_of_one_number_have_the_shape_of_the_outcomes():
    model, (x, y) = mixture(), rows()
    z = torch.arange(N) % C
    mean = model.component_distributions(x)[z].mean
    assert mean.shape == y.shape
    with torch.no_grad():
        torch.testing.assert_close(
            mean, model.component_distributions(x).outputs()[z, torch.arange(N), 0]
        )


class Counting(torch.nn.Module):
    """A linear expert that records the numbers of rows of its calls."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = torch.nn.Linear(P, 1), []

    def forward(self, x):
        self.seen.append(len(x))
        return self.inner(x)


def test_experts_see_the_rows_that_select_them_and_all_rows_once_for_all_components():
    x, y = rows()
    model = MixtureOfExperts(Counting, components=C, features=P, loss="squared", equal_weights=True)
    guide = HardPartition(model, components=C)
    labels = torch.arange(N) % (C - 1)  # one cluster is empty
    guide.set_labels(labels)
    em = EM(model, guide, gradient=adam(), gradient_steps=2)
    em._collect((x, y), {})
    for expert in model.experts:
        expert.seen.clear()
    em.maximize()
    assert [expert.seen for expert in model.experts] == [
        [int(n)] * 2 for n in labels.bincount()
    ] + [[]]
    for expert in model.experts:
        expert.seen.clear()
    FullPartition(model, components=C).posterior(x, y)
    assert [expert.seen for expert in model.experts] == [[N]] * C


def test_integer_covariates_reach_embeddings_as_they_are():
    x, y = torch.arange(N).unsqueeze(-1) % 7, torch.randn(N)

    def make():
        return torch.nn.Sequential(
            torch.nn.Embedding(7, 2), torch.nn.Flatten(), torch.nn.Linear(2, 1)
        )

    model = MixtureOfExperts(make, components=2, features=1, loss="squared")
    em = EM(model, FullPartition(model, components=2), gradient=adam(0.05))
    losses = [em.step(x, y) for _ in range(20)]
    assert losses[-1] < losses[0] - 1


def test_recurrent_experts_are_trained():
    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = torch.nn.LSTM(1, 4, batch_first=True), torch.nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.lstm(x.unsqueeze(-1))[0][:, -1])

    x, y = rows()
    model = MixtureOfExperts(Last, components=2, features=P, loss="squared")
    em = EM(model, HardPartition(model, components=2), gradient=adam(0.05))
    losses = [em.step(x, y) for _ in range(10)]
    assert losses[-1] < losses[0] - 1


# Errors of the losses and of the family.


def test_unknown_loss_is_refused():
    with pytest.raises(OptionError, match=r"'hinge'.*cross_entropy.*squared"):
        loss_named("hinge")
    assert loss_named(huber) is huber
    assert loss_named("squared") is LOSSES["squared"]


def test_squared_error_refuses_to_broadcast():
    with pytest.raises(DataError, match=r"\(4, 2\).*\(4,\)"):
        loss_named("squared")(torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (torch.tensor([0, -100]), r"\[-100, 0\], not in \[0, 3\)"),
        (torch.tensor([0, 3]), r"\[0, 3\], not in \[0, 3\)"),
        (torch.tensor([0.0, 1.0]), "integer classes"),
        (torch.zeros(2, 1, dtype=torch.int64), "integer classes"),
    ],
)
def test_cross_entropy_refuses_what_are_no_classes(y, said):
    with pytest.raises(DataError, match=said):
        loss_named("cross_entropy")(torch.zeros(2, 3), y)


def test_a_loss_that_sums_over_rows_is_refused():
    x, y = rows()
    model = MixtureOfExperts(
        lambda: network(), components=2, features=P, loss=lambda output, y: output.sum()
    )
    with pytest.raises(DataError, match=r"shape \(\).*reduction='none'"):
        FullPartition(model, components=2).posterior(x, y)


def test_outcomes_of_another_shape_are_refused():
    model, (x, _) = mixture(), rows()
    family = model.component_distributions(x)
    with pytest.raises(DataError, match=r"\(23, 2\).*\(23,\)"):
        family.log_prob_at(torch.zeros(N, dtype=torch.int64), torch.zeros(N, 2))
    with pytest.raises(DataError, match="3 outcomes for 23 rows"):
        model(x, torch.zeros(3))


def test_rows_wider_than_the_params_are_refused():
    model, (x, y) = mixture(), rows(dtype=torch.float64)
    with pytest.raises(DataError, match=r"float64.*float32"):
        FullPartition(model, components=C).posterior(x, y)


def test_outcomes_cannot_be_drawn():
    model, (x, _) = mixture(), rows()
    with pytest.raises(ModelError, match="not a distribution"):
        model(x)
    with pytest.raises(NotImplementedError):
        model.component_distributions(x)[torch.zeros(N, dtype=torch.int64)].rsample()


def test_closed_forms_are_refused():
    model, (x, y) = mixture(), rows()
    with pytest.raises(ClosedFormError, match="gradient="):
        EM(model, FullPartition(model, components=C)).step(x, y)


def test_hard_partitions_score_rows_by_what_they_add(kind):
    model, (x, y) = mixture(kind, torch.float64), rows(kind, torch.float64)
    guide = HardPartition(model, components=C, score="leave_one_out")
    labels = torch.arange(N) % C
    guide.set_labels(labels)
    em = EM(model, guide, gradient=adam())
    em.step(x, y)
    family, one = model.component_distributions(x), torch.ones(N).double()
    statistics = family.partition_statistics_at(labels, y, one)
    # The cost of a row is its gain in its own cluster, and its loss in the others.
    cost = -family[torch.arange(C).unsqueeze(-1)].log_prob(y).detach()
    own = family.leave_one_out_at(statistics, labels, y, one)
    cost = cost.scatter(0, labels.unsqueeze(0), own.unsqueeze(0)) - model.weights.log().unsqueeze(
        -1
    )
    em.step(x, y)
    assert torch.equal(guide.labels.long(), cost.argmin(0))
    assert (guide.labels != labels).any()


def test_leave_one_out_scores_of_minibatches_are_refused():
    model, (x, y) = mixture(), rows()
    em = EM(model, HardPartition(model, components=C, score="leave_one_out"), gradient=adam())
    with pytest.raises(OptionError, match=r"all 23 rows in one call, not 12.*batch_size="):
        fit(em, x, y, batch_size=12, epochs=3, progress=False)


def test_leave_one_out_options_reach_the_family():
    family = mixture(leave_one_out_steps=3, leave_one_out_rate=0.2).component_distributions(
        rows()[0]
    )
    assert family.descent == (3, 0.2)


@pytest.mark.parametrize("bad", ["same", "function", "pyro"])
def test_make_has_to_make_plain_modules(bad):
    one = torch.nn.Linear(P, 1)
    make = {
        "same": lambda: one,
        "function": lambda: torch.sin,
        "pyro": lambda: pyro.nn.PyroModule[torch.nn.Linear](P, 1),
    }
    with pytest.raises(OptionError, match="make"):
        MixtureOfExperts(make[bad], components=2, features=P, loss="squared")


# Strategies.


@pytest.mark.meta
def test_full_loss_is_minus_the_log_evidence_by_stock_enumeration(dtype, kind):
    model, (x, y) = mixture(kind, dtype), rows(kind, dtype)
    expected = -float(brute_evidence(model, kind, x, y).sum())
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    all_components = TruncatedPartition(
        model, components=C, candidates=C, neighbors=C, explore=0, seed=0
    )
    for loss in (
        exact_loss(model, x, y),
        elbo.loss(model, FullPartition(model, components=C), x, y),
        elbo.loss(model, all_components, x, y),
        EM(model, FullPartition(model, components=C)).evaluate_loss(x, y),
    ):
        assert loss == pytest.approx(expected, rel=TOLERANCE[dtype])


@pytest.mark.meta
def test_candidates_truncate_the_log_evidence_and_padding_adds_nothing(dtype):
    model, (x, y) = mixture(dtype=dtype), rows(dtype=dtype)
    candidates = torch.tensor([[0, 2], [3, -1]], device="cpu")[torch.arange(N, device="cpu") % 2]
    joint = (
        brute(model, "squared", x, y)[0].detach()
        + model.weights.detach().double().log().unsqueeze(-1)
    ).T
    expected = torch.where(
        candidates < 0, -torch.inf, joint.gather(1, candidates.clamp_min(0))
    ).logsumexp(1)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(
        truncate(model, "z", candidates), lambda *_: None, x, y
    )
    assert loss == pytest.approx(-float(expected.sum()), rel=TOLERANCE[dtype])


@pytest.mark.parametrize("guided", ["full", "truncated", "hard"])
def test_svi_trains_every_param(guided, kind):
    model, (x, y) = mixture(kind), rows(kind)
    guide = {
        "full": FullPartition(model, components=C),
        "truncated": TruncatedPartition(model, components=C, candidates=2, neighbors=3, seed=0),
        "hard": HardPartition(model, components=C),
    }[guided]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    svi = SVI(model, guide, adam(0.03), TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(x, y) for _ in range(9)]
    assert losses[-1] < losses[0] - 2
    moved = {name for name, value in model.named_parameters() if (value != before[name]).any()}
    used = range(C) if guided != "hard" else guide.sizes.nonzero()[:, 0].tolist()
    assert moved >= {
        name for name in before if name.startswith(tuple(f"experts.{c}." for c in used))
    }
    assert "weights_unconstrained" in moved


@pytest.mark.parametrize("guided", ["full", "truncated", "hard"])
def test_em_sets_weights_in_closed_form_and_trains_experts_by_gradients(guided):
    model, (x, y) = mixture(dtype=torch.float64), rows(dtype=torch.float64, size=60)
    guide = {
        "full": FullPartition(model, components=C),
        "truncated": TruncatedPartition(model, components=C, candidates=C, neighbors=C, seed=0),
        "hard": HardPartition(model, components=C),
    }[guided]
    joint = brute(model, "squared", x, y)[0].detach() + model.weights.detach().log().unsqueeze(-1)
    q = joint.softmax(0)
    if guided == "hard":
        q = torch.nn.functional.one_hot(joint.argmax(0), C).T.double()
    start = [value.detach().clone() for value in model.experts.parameters()]
    table, experts = brute(model, "squared", x, y)
    (q * table).sum().backward()
    EM(model, guide, gradient=SGD({"lr": 1e-3})).step(x, y)
    torch.testing.assert_close(model.weights.detach(), q.mean(1))
    slopes = [value.grad for expert in experts for value in expert.parameters()]
    for value, before, slope in zip(model.experts.parameters(), start, slopes, strict=True):
        torch.testing.assert_close(value.detach(), before + 1e-3 * slope)


def test_equal_weights_stay_and_leave_the_loss_alone():
    model, (x, y) = mixture(dtype=torch.float64, equal_weights=True), rows(dtype=torch.float64)
    guide = HardPartition(model, components=C)
    em = EM(model, guide, gradient=adam())
    best = -brute(model, "squared", x, y)[0].detach().amax(0).sum()
    loss = em.step(x, y)
    assert loss == pytest.approx(float(best) + N * torch.tensor(float(C)).log().item(), rel=1e-6)
    torch.testing.assert_close(model.weights, torch.full((C,), 1 / C, dtype=torch.float64))


@pytest.mark.parametrize("guided", ["full", "hard"])
def test_minibatches_add_up_to_all_rows(guided):
    found = []
    for batch_size in (None, 12):
        pyro.clear_param_store()
        model, (x, y) = mixture(dtype=torch.float64), rows(dtype=torch.float64, size=36)
        guide = {"full": FullPartition, "hard": HardPartition}[guided](model, components=C)
        em = EM(model, guide, gradient=SGD({"lr": 1e-3}), gradient_steps=3)
        result = fit(
            em, x, y, batch_size=batch_size, epochs=3, tolerance=0.0, patience=99, progress=False
        )
        found.append(
            (torch.tensor(result.history["elbo"]), *(p.detach() for p in model.parameters()))
        )
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-8, atol=1e-10)


class Wave(torch.nn.Module):
    """``height * sin(x + phase)``, so simple that two waves have only one good fit."""

    def __init__(self):
        super().__init__()
        self.height, self.phase = (
            torch.nn.Parameter(torch.randn(())),
            torch.nn.Parameter(torch.randn(())),
        )

    def forward(self, x):
        return self.height * (x[:, 0] + self.phase).sin()


def test_hard_training_recovers_the_split_between_a_sine_and_its_mirror_image():
    x = 6 * torch.rand(120, 1) - 3
    truth = torch.arange(120) % 2
    y = (1 - 2 * truth) * x[:, 0].sin() + 0.02 * torch.randn(120)

    model = MixtureOfExperts(Wave, components=2, features=1, loss="squared", equal_weights=True)
    guide = HardPartition(model, components=2)
    em = EM(model, guide, gradient=adam(0.1), gradient_steps=5)
    losses = [em.step(x, y) / 120 - torch.tensor(2.0).log().item() for _ in range(20)]
    assert losses[-1] < 2e-3 < 0.1 < losses[0]
    apart = x[:, 0].sin().abs() > 0.15  # rows where the waves meet may belong to either
    agree = (guide.labels == truth)[apart].float().mean()
    assert max(agree, 1 - agree) == 1


def test_more_gradient_steps_go_lower_in_as_many_epochs():
    found = {}
    for steps in (1, 10):
        pyro.clear_param_store()
        model, (x, y) = mixture(), rows()
        em = EM(
            model, FullPartition(model, components=C), gradient=adam(0.01), gradient_steps=steps
        )
        for _ in range(8):
            em.step(x, y)
        found[steps] = em.evaluate_loss(x, y)
    assert found[10] < found[1] - 2


@pytest.mark.parametrize("by", ["freeze", "requires_grad"])
def test_frozen_params_stay(by):
    model, (x, y) = mixture(), rows()
    frozen = "experts.1.0.weight"
    options = {"freeze": [frozen]} if by == "freeze" else {}
    if by == "requires_grad":
        model.experts[1][0].weight.requires_grad_(False)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    em = EM(model, FullPartition(model, components=C), gradient=adam(), gradient_steps=3, **options)
    em.step(x, y)
    moved = {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
    assert moved == before.keys() - {frozen}
    assert by == "freeze" or frozen not in pyro.get_param_store()


# Params and state.


def test_params_have_the_names_of_the_parameters_and_are_registered_in_every_run():
    model, (x, y) = mixture(), rows()
    expected = {name.removesuffix("_unconstrained") for name, _ in model.named_parameters()}
    assert "experts.3.2.bias" in expected
    for _ in range(2):
        trace = pyro.poutine.trace(model).get_trace(x, y)
        assert {name for name, node in trace.nodes.items() if node["type"] == "param"} == expected
    stored = dict(pyro.get_param_store().named_parameters())
    assert all(stored[f"experts.{name}"] is leaf for name, leaf in model.experts.named_parameters())


def test_a_second_model_warns_and_goes_on_with_the_first_ones_params():
    (x, y), first, second = rows(), mixture(equal_weights=True), mixture(seed=1, equal_weights=True)
    first(x, y)
    with pytest.warns(SharedParamsWarning, match=r"experts\.0\.0\.bias"):
        second(x, y)
    assert all(
        a is b for a, b in zip(first.experts.parameters(), second.experts.parameters(), strict=True)
    )
    before = first.experts[0][0].weight.detach().clone()
    EM(second, FullPartition(second, components=C), gradient=adam()).step(x, y)
    assert (first.experts[0][0].weight != before).any()


def test_local_params_keep_two_models_apart():
    with pyro.settings.context(module_local_params=True):
        (x, y), first, second = rows(), mixture(), mixture(seed=1)
        first(x, y)
        before = [value.detach().clone() for value in first.parameters()]
        em = EM(second, FullPartition(second, components=C), gradient=adam())
        losses = [em.step(x, y) for _ in range(5)]
        assert losses[-1] < losses[0]
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), before, strict=True))


def test_experts_take_the_values_of_a_loaded_store(tmp_path):
    (x, y), first = rows(), mixture()
    expected = exact_loss(first, x, y)
    pyro.get_param_store().save(tmp_path / "store.pt")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store.pt")
    second = mixture(seed=1)
    with pytest.warns(SharedParamsWarning):
        assert exact_loss(second, x, y) == expected
    start = second.experts[2][2].bias.detach().clone()
    EM(second, FullPartition(second, components=C), gradient=adam()).step(x, y)
    assert (second.experts[2][2].bias != start).any()
    assert pyro.param("experts.2.2.bias") is second.experts[2][2].bias


def test_tied_weights_stay_tied_when_the_store_has_them():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(P, P), torch.nn.Linear(P, P)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x)).sum(-1)

    (x, y), made = rows(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(
            MixtureOfExperts(Tied, components=2, features=P, loss="squared", equal_weights=True)
        )
    made[0](x, y)
    with pytest.warns(SharedParamsWarning):
        made[1](x, y)
    assert all(expert.second.weight is expert.first.weight for expert in made[1].experts)
    assert made[1].experts[0].first.weight is made[0].experts[0].first.weight


def test_a_handler_that_replaces_a_param_is_refused():
    model, (x, y) = mixture(), rows()
    replaced = pyro.poutine.substitute(model, data={"experts.0.0.bias": torch.zeros(6)})
    with pytest.raises(ModelError, match=r"experts\.0\.0\.bias"):
        replaced(x, y)


def test_saved_and_loaded_state_gives_the_same_loss(tmp_path):
    x, y = rows(size=60)
    model = mixture(equal_weights=True)
    guide = HardPartition(model, components=C)
    em = EM(model, guide, gradient=adam())
    for _ in range(3):
        em.step(x, y)
    before = em.evaluate_loss(x, y)
    torch.save({"model": model.state_dict(), "guide": guide.state_dict()}, tmp_path / "state.pt")
    pyro.clear_param_store()
    model = mixture(seed=5, equal_weights=True)
    guide = HardPartition(model, components=C)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    guide.load_state_dict(state["guide"])
    assert EM(model, guide).evaluate_loss(x, y) == before
    network().load_state_dict(  # names are those of the expert's parameters
        {
            name.removeprefix("experts.0."): v
            for name, v in model.state_dict().items()
            if name.startswith("experts.0.")
        }
    )


def test_double_widens_model_and_loss():
    model, (x, y) = mixture(), rows()
    single = exact_loss(model, x, y)
    model.double()
    pyro.clear_param_store()
    assert exact_loss(model, x.double(), y.double()) == pytest.approx(single, rel=1e-5)
    assert exact_loss(model, x, y) == pytest.approx(
        single, rel=1e-5
    )  # rows are widened to the parameters


def test_family_needs_no_params():
    family = PseudoLikelihoods(
        torch.ones(4, 2), [torch.nn.Identity(), torch.nn.Identity()], loss=lambda o, y: o.sum(-1)
    )
    found = family[torch.tensor([[0, 1, -1, 0]])].log_prob(torch.zeros(4))
    assert found.tolist() == [[-2.0, -2.0, -torch.inf, -2.0]]


@pytest.mark.cuda
def test_cuda_gives_the_losses_of_the_cpu(kind):
    (x, y), found = rows(kind, torch.float64), []
    for device in ("cpu", "cuda"):
        pyro.clear_param_store()
        model = mixture(kind, torch.float64).to(device)
        em = EM(model, HardPartition(model, components=C), gradient=adam(), gradient_steps=2)
        found.append(torch.tensor([em.step(x.to(device), y.to(device)) for _ in range(4)]))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_fits_are_converted_to_arviz_with_any_names_of_params():
    model, (x, y) = mixture(), rows()
    em = EM(model, FullPartition(model, components=C), gradient=adam())
    found = to_arviz(fit(em, x, y, epochs=2, progress=False), x, y)
    names = {name for name, _ in model.named_parameters() if name.startswith("experts")}
    assert names <= set(found["posterior"].data_vars)
