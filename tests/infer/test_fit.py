"""The fit loop: what it runs, when it stops, what it records, and how it is interrupted."""

import json
import math
import re

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, TraceEnum_ELBO
from torch.distributions import constraints

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import OptionError
from pyro_mixtures.guides import FullPartition, SearchingGuide, TruncatedPartition
from pyro_mixtures.infer import EM, Epoch, History, fit, log_evidence
from pyro_mixtures.init import Seeds
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.poutine import data_plate

C, D, N = 4, 3, 90
F64 = torch.float64


pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture
def x():
    """Overlapping clusters, so that EM takes its time."""
    return 1.5 * torch.arange(N, dtype=F64).remainder(C).unsqueeze(-1) + torch.randn(
        N, D, dtype=F64
    )


def mixture(x, components=C):
    """Means at rows, the data's variance: the same start at every call, in a fresh store."""
    pyro.clear_param_store()
    model = GaussianMixture(components=components, features=x.shape[1]).double()
    index = torch.arange(components)
    model.start_at(Seeds(index, x[index], x.var(0, correction=0)))
    return model


def exact(x, **options):
    model = mixture(x)
    return EM(model, FullPartition(model, components=C), **options)


def truncated(x, **options):
    model = mixture(x)
    return EM(
        model, TruncatedPartition(model, components=C, candidates=2, neighbors=3, seed=0), **options
    )


def svi(x, guide=FullPartition, lr=0.05):
    model = mixture(x)
    options = {} if guide is FullPartition else {"candidates": 2, "neighbors": 3, "seed": 0}
    return SVI(
        model,
        guide(model, components=C, **options),
        pyro.optim.Adam({"lr": lr}),
        TraceEnum_ELBO(max_plate_nesting=1),
    )


STRATEGIES = {
    "exact": exact,
    "truncated": truncated,
    "stepwise": lambda x: exact(x, step_size=lambda t: (t + 1) ** -0.6),
    "SVI": svi,
    "truncated SVI": lambda x: svi(x, TruncatedPartition),
}


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return STRATEGIES[request.param]


def quiet(inference, *rows, **options):
    """A fit that no tolerance ends, without a progress bar."""
    return fit(
        inference, *rows, **{"tolerance": -math.inf, "progress": False, "warmup": 2, **options}
    )


def params(model):
    return {
        name: value.detach().clone()
        for name, value in model.state_dict().items()
        if torch.is_tensor(value)
    }


def assert_same(mine, theirs, **tolerance):
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], **tolerance)


# What an epoch is.


@pytest.mark.parametrize("batch_size", [None, 40])
def test_every_strategy_gains(x, strategy, batch_size):
    found = quiet(strategy(x), x, batch_size=batch_size, epochs=6)
    assert found.history["elbo"][-1] > found.history["elbo"][0]
    assert not found.converged
    assert not found.interrupted


def test_epochs_of_exact_em_are_em_steps(x):
    em = exact(x)
    losses = [em.step(x) for _ in range(5)]
    expected = params(em.model)
    found = quiet(exact(x), x, epochs=5)
    np.testing.assert_allclose(found.history["elbo"], -np.array(losses) / N, rtol=1e-12)
    assert_same(params(found.model), expected)


@pytest.mark.parametrize("batch_size", [5, 17, N - 1, N, N + 5])
def test_minibatches_of_exact_em_give_the_full_batch_fit(x, batch_size):
    whole = quiet(exact(x), x, epochs=4)
    expected = params(whole.model)
    parts = quiet(exact(x), x, epochs=4, batch_size=batch_size)
    np.testing.assert_allclose(parts.history["elbo"], whole.history["elbo"], rtol=1e-11)
    assert_same(params(parts.model), expected, rtol=1e-9, atol=1e-10)


def test_stepwise_em_updates_after_every_minibatch(x):
    rates = []

    def step_size(t):
        rates.append(t)
        return (t + 1) ** -0.6

    em = exact(x, step_size=step_size)
    quiet(em, x, epochs=3, batch_size=40)
    assert rates == list(range(1, 10))  # three minibatches an epoch
    assert em.steps == 9


def test_stepwise_em_of_rate_one_on_all_rows_is_exact_em(x):
    expected = params(quiet(exact(x), x, epochs=4).model)
    assert_same(params(quiet(exact(x, step_size=lambda t: 1.0), x, epochs=4).model), expected)


def test_epochs_of_svi_are_stock_steps(x):
    stock = svi(x)
    losses = [stock.step(x) for _ in range(4)]
    expected = params(stock.model)
    found = quiet(svi(x), x, epochs=4)
    np.testing.assert_allclose(found.history["elbo"], -np.array(losses) / N, rtol=1e-12)
    assert_same(params(found.model), expected)


def test_minibatches_reach_the_model_with_their_row_numbers_and_every_row_once(x):
    seen = []

    def model(x, index=None, size=None):
        with data_plate(x, index, size):
            z = pyro.sample("z", MixtureWeights(torch.ones(C, dtype=F64) / C))
            loc = pyro.param("loc", lambda: rows[:C].clone())
            pyro.sample("x", DiagonalNormals(loc, torch.ones(D, dtype=F64))[z], obs=x)
        seen.append((x, index, size))

    rows = x
    guide = FullPartition(model, components=C)
    guide.read(x)
    inference = SVI(
        model, guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1)
    )
    seen.clear()
    quiet(inference, x, epochs=1, batch_size=40)
    assert all(size == N and torch.equal(part, x[index]) for part, index, size in seen)
    distinct = {tuple(index.tolist()) for _, index, _ in seen}
    assert sorted(len(part) for part in distinct) == [10, 40, 40]
    assert sorted(number for part in distinct for number in part) == list(range(N))
    assert max(distinct, key=len) != tuple(sorted(max(distinct, key=len)))  # shuffled


@pytest.mark.parametrize(
    "as_seeds", [lambda x: x[:C], lambda x: x[torch.arange(C)]], ids=["view", "copy"]
)
def test_fits_leave_rows_and_seeds_as_they_were(x, as_seeds):
    """Params are written in place: a model that starts at seeds must not keep their memory."""
    rows = x.clone()
    seeds = Seeds(torch.arange(C), as_seeds(x), x.var(0))
    loc = seeds.loc.clone()
    model = GaussianMixture(components=C, features=D).double()
    model.start_at(seeds)
    quiet(EM(model, FullPartition(model, components=C)), x, epochs=2)
    assert torch.equal(x, rows)
    assert torch.equal(seeds.loc, loc)


# Warm-up.


@pytest.mark.parametrize(
    ("name", "warms"), [("exact", False), ("stepwise", False), ("SVI", False), ("truncated", True)]
)
def test_only_guides_that_search_are_warmed_up(x, name, warms):
    found = quiet(STRATEGIES[name](x), x, epochs=2, warmup=3)
    phase = "SVI" if name == "SVI" else "EM"
    assert found.history["phase"].tolist() == ["warm-up"] * 3 * warms + [phase] * 2


def test_svi_is_not_warmed_up(x):
    assert quiet(svi(x, TruncatedPartition), x, epochs=2).history["phase"].tolist() == ["SVI"] * 2


def test_warm_up_changes_the_guide_only(x):
    em = truncated(x)
    before = params(em.model)
    found = quiet(em, x, epochs=0, warmup=4)
    assert found.history["phase"].tolist() == ["warm-up"] * 4
    assert np.diff(found.history["elbo"]).min() >= 0
    assert_same(params(em.model), before, rtol=0, atol=0)
    assert em.steps == 0


def test_warm_up_ends_when_it_has_settled(x):
    found = fit(truncated(x), x, epochs=0, warmup=200, patience=2, progress=False)
    assert 3 <= len(found.history) < 50
    assert not found.converged  # nothing was fitted


# Convergence.


def affine_epochs(x, shift, scale, tolerance=1e-4):
    found = fit(
        exact(scale * (x + shift)),
        scale * (x + shift),
        epochs=400,
        tolerance=tolerance,
        progress=False,
    )
    assert found.converged
    return found


@pytest.mark.parametrize(
    ("shift", "scale"), [(1000.0, 1.0), (0.0, 1e-3), (0.0, 1e3), (1000.0, 1e-3), (-1000.0, 1e3)]
)
def test_shifted_and_scaled_data_take_as_many_epochs(x, shift, scale):
    plain, moved = affine_epochs(x, 0.0, 1.0), affine_epochs(x, shift, scale)
    assert len(plain.history) > 5
    assert len(moved.history) == len(plain.history)
    # Densities are those of the scaled features.
    expected = plain.history["elbo"] - D * math.log(scale)
    np.testing.assert_allclose(moved.history["elbo"], expected, atol=1e-6)


def test_tolerance_is_per_row_and_feature(x):
    """Rows twice over, or independent copies of the features, change nothing but the sums."""
    alone = affine_epochs(x, 0.0, 1.0)
    pyro.clear_param_store()
    twice = torch.cat([x, x])
    assert len(affine_epochs(twice, 0.0, 1.0).history) == len(alone.history)


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_fit_ends_after_patience_epochs_below_the_tolerance_running(x, patience):
    tolerance = 1e-3
    found = fit(exact(x), x, epochs=400, tolerance=tolerance, patience=patience, progress=False)
    gains = np.diff(found.history["elbo"])
    small = gains < tolerance * D
    runs = [small[k : k + patience].all() for k in range(len(small) - patience + 1)]
    assert found.converged
    assert runs.index(True) == len(runs) - 1


def test_infinite_tolerance_and_none(x):
    assert (
        len(fit(exact(x), x, epochs=9, tolerance=math.inf, patience=1, progress=False).history) <= 2
    )
    assert len(quiet(exact(x), x, epochs=9).history) == 9


def test_no_epochs_leave_everything_as_it_was(x, strategy):
    inference = strategy(x)
    before = params(inference.model)
    found = quiet(inference, x, epochs=0, warmup=0)
    assert len(found.history) == 0
    assert math.isnan(found.elbo)
    assert not found.converged
    assert found.history["elbo"].shape == (0,)
    assert_same(params(inference.model), before, rtol=0, atol=0)


# History.


def test_history_has_columns_and_a_dict_for_json(x, strategy):
    found = quiet(strategy(x), x, epochs=3, batch_size=40)
    history = found.history
    assert isinstance(history, History)
    columns = history.to_dict()
    assert list(columns) == [name for name in Epoch._fields if name != "details"]
    assert json.loads(json.dumps(columns)) == columns
    for name in columns:
        assert history[name].tolist() == columns[name]
        assert len(history[name]) == len(history)
    assert np.diff(history["seconds"]).min() >= 0
    assert found.elbo == history["elbo"][-1]
    assert (history["live"] >= 1).all()
    assert (history["live"] <= C).all()
    with pytest.raises(OptionError, match="no column 'loss'"):
        history["loss"]


@pytest.mark.parametrize("batch_size", [None, 40])
def test_recorded_elbo_is_the_evidence_before_the_update(x, batch_size):
    em = exact(x)
    expected = log_evidence(em.model, x).mean().item()
    elbos = [expected]
    quiet(
        em,
        x,
        epochs=3,
        batch_size=batch_size,
        callbacks=[lambda f: elbos.append(log_evidence(f.model, x).mean().item())],
    )
    found = quiet(em, x, epochs=1)
    assert found.elbo == pytest.approx(elbos[-1], rel=1e-12)
    assert -em.evaluate_loss(x) / N == pytest.approx(
        log_evidence(em.model, x).mean().item(), rel=1e-12
    )
    assert elbos == sorted(elbos)


@pytest.mark.parametrize("batch_size", [None, 40])
def test_evaluations_are_those_of_all_posteriors(x, strategy, batch_size):
    inference = strategy(x)
    counted, posterior = [], inference.guide.posterior

    def counting(*args, **kwargs):
        found = posterior(*args, **kwargs)
        counted.append(found.evaluations)
        return found

    inference.guide.posterior = counting
    totals = []
    found = quiet(
        inference,
        x,
        epochs=3,
        batch_size=batch_size,
        callbacks=[lambda _: totals.append(sum(counted))],
    )
    assert found.history["evaluations"].tolist() == totals
    if type(inference.guide) is FullPartition:
        assert totals == [N * C, 2 * N * C, 3 * N * C]


def test_evaluations_count_from_the_start_of_each_fit(x):
    em = exact(x)
    for _ in range(2):
        assert quiet(em, x, epochs=2).history["evaluations"].tolist() == [N * C, 2 * N * C]
    assert em.guide.evaluations == 4 * N * C


@pytest.mark.parametrize(
    ("empty", "reseeded", "dropped"), [("reseed", 1, 0), ("drop", 0, 1), ("keep", 0, 0)]
)
@pytest.mark.parametrize("build", [exact, truncated])
def test_history_counts_what_was_reseeded_and_dropped(x, build, empty, reseeded, dropped):
    em = build(x, empty=empty)
    with torch.no_grad():
        em.model.loc[2] += 1e4
    found = quiet(em, x, epochs=1)
    searching = found.history["phase"] == "warm-up"
    assert searching.sum() == 2 * isinstance(em.guide, SearchingGuide)
    for name, expected in (("reseeded", reseeded), ("dropped", dropped)):
        assert found.history[name][searching].tolist() == [0, 0][: searching.sum()]
        assert found.history[name][-1] == expected
    assert found.history["live"][-1] == C - 1


# Callbacks.


def test_callbacks_see_the_fit_after_every_epoch(x, strategy):
    calls = []
    found = quiet(
        strategy(x),
        x,
        epochs=3,
        callbacks=[lambda f: calls.append((f, len(f.history))), lambda f: calls.append("then")],
    )
    assert calls[1::2] == ["then"] * len(found.history)
    assert [count for _, count in calls[::2]] == [*range(1, len(found.history) + 1)]
    assert all(f is found for f, _ in calls[::2])
    assert (found.model, found.guide) == (found.inference.model, found.inference.guide)


def test_only_true_stops(x):
    for answer in (None, False, 1, "yes"):
        assert (
            len(quiet(exact(x), x, epochs=3, callbacks=[lambda _, answer=answer: answer]).history)
            == 3
        )


def test_a_callback_that_returns_true_stops_after_all_were_called(x):
    called = []
    found = quiet(
        exact(x),
        x,
        epochs=9,
        callbacks=[lambda f: len(f.history) == 2, lambda f: called.append(len(f.history))],
    )
    assert len(found.history) == 2
    assert called == [1, 2]
    assert not found.converged
    assert not found.interrupted


def test_a_callback_that_returns_true_during_warm_up_stops_the_fit(x):
    """``callbacks``: "one that returns True stops the fit", not only its phase."""
    found = quiet(truncated(x), x, epochs=5, warmup=5, callbacks=[lambda f: len(f.history) == 1])
    assert found.history["phase"].tolist() == ["warm-up"]


def test_callbacks_may_be_a_generator(x):
    calls = []
    quiet(exact(x), x, epochs=2, callbacks=(call for call in [lambda _: calls.append(1)]))
    assert calls == [1, 1]


# Interruption.


def interrupt(fitted):
    if len(fitted.history) == 3:
        raise KeyboardInterrupt


def test_interrupt_between_epochs_keeps_what_was_reached_and_can_go_on(x):
    whole = quiet(exact(x), x, epochs=5)
    expected = params(whole.model)
    em = exact(x)
    first = quiet(em, x, epochs=9, callbacks=[interrupt])
    assert first.interrupted
    assert not first.converged
    assert len(first.history) == 3
    rest = quiet(em, x, epochs=2)
    assert not rest.interrupted
    assert_same(params(em.model), expected)
    np.testing.assert_allclose(
        [*first.history["elbo"], *rest.history["elbo"]], whole.history["elbo"]
    )


def test_interrupted_fits_of_every_strategy_can_go_on(x, strategy):
    inference = strategy(x)
    first = quiet(inference, x, epochs=9, batch_size=40, callbacks=[interrupt])
    assert first.interrupted
    rest = quiet(inference, x, epochs=3, batch_size=40, warmup=0)
    assert not rest.interrupted
    assert rest.elbo > first.history["elbo"][0]
    assert log_evidence(inference.model, x).isfinite().all()


class Interrupted(GaussianMixture):
    """Raises in the middle of its program at the call numbered ``at``."""

    at = math.inf
    calls = 0

    def component_distributions(self):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return super().component_distributions()


@pytest.mark.parametrize("extra", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("step_size", [None, lambda t: (t + 1) ** -0.6], ids=["exact", "stepwise"])
def test_interrupt_within_the_model_abandons_the_pass(x, step_size, extra):
    """Wherever in the pass it comes, nothing of the half pass is left: the next epoch is that of a fresh EM."""

    def build():
        pyro.clear_param_store()
        model = Interrupted(components=C, features=D).double()
        model.start_at(Seeds(torch.arange(C), x[:C].clone(), x.var(0)))
        return EM(model, FullPartition(model, components=C), step_size=step_size)

    em = build()
    quiet(em, x, epochs=2, batch_size=N)
    reached, calls = params(em.model), em.model.calls
    em.model.at = calls + extra
    found = quiet(em, x, epochs=4, batch_size=40)
    assert found.interrupted
    assert len(found.history) == 0
    assert not em._sites
    assert not em._calls
    assert not em._reservoir.winners
    assert em._rows == 0
    assert not pyro.poutine.runtime._PYRO_STACK
    if step_size is not None:
        return
    assert_same(params(em.model), reached, rtol=0, atol=0)
    quiet(em, x, epochs=1, batch_size=40)
    mine = params(em.model)
    whole = build()
    quiet(whole, x, epochs=3, batch_size=N)
    assert_same(mine, params(whole.model), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("guide", [FullPartition, TruncatedPartition])
def test_interrupt_within_the_model_leaves_svi_usable(x, guide):
    pyro.clear_param_store()
    model = Interrupted(components=C, features=D).double()
    model.start_at(Seeds(torch.arange(C), x[:C].clone(), x.var(0)))
    inference = SVI(
        model,
        guide(model, components=C, **({"neighbors": 3} if guide is TruncatedPartition else {})),
        pyro.optim.Adam({"lr": 0.05}),
        TraceEnum_ELBO(),
    )
    first = quiet(inference, x, epochs=2, batch_size=40)
    for extra in (1, 2, 3):
        model.at = model.calls + extra
        assert quiet(inference, x, epochs=3, batch_size=40).interrupted
        assert not pyro.poutine.runtime._PYRO_STACK
        assert inference.guide.training
    rest = quiet(inference, x, epochs=3, batch_size=40)
    assert not rest.interrupted
    assert rest.elbo > first.history["elbo"][0]


def test_interrupt_during_warm_up_does_not_start_the_fit(x):
    found = quiet(truncated(x), x, epochs=5, warmup=9, callbacks=[interrupt])
    assert found.interrupted
    assert found.history["phase"].tolist() == ["warm-up"] * 3
    assert found.inference.steps == 0


def test_other_errors_of_callbacks_reach_the_user(x):
    def broken(_):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        quiet(exact(x), x, epochs=2, callbacks=[broken])


# Progress.


def test_progress_bar_shows_elbo_and_evaluations(x, strategy, capsys):
    found = fit(strategy(x), x, epochs=2, warmup=1, tolerance=-math.inf, progress=True)
    out, err = capsys.readouterr()
    assert not out
    last = re.split(r"[\r\n]+", err.strip())[-1]
    assert f"elbo={found.elbo:.4f}" in last
    assert "evaluations=" in last
    assert found.history["phase"][-1] in last
    assert "2/2" in last


def test_no_progress_no_output(x, strategy, capsys):
    quiet(strategy(x), x, epochs=2)
    assert capsys.readouterr() == ("", "")


def test_stock_program_with_plain_indexing_is_fitted(x):
    def model(x):
        weights = pyro.param(
            "weights", torch.full((C,), 1 / C, dtype=F64), constraint=dist.constraints.simplex
        )
        loc = pyro.param("loc", start.clone())
        scale = pyro.param(
            "scale", 2 * torch.ones(C, D, dtype=F64), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)

    start = x[:C].clone()
    found = fit(EM(model, FullPartition(model, components=C)), x, epochs=300, progress=False)
    assert found.converged
    assert np.diff(found.history["elbo"]).min() >= -1e-12


@pytest.mark.parametrize("rows", [60, 3000])
def test_params_may_start_from_the_rows(rows):
    """As in the README: the first run of the program must see rows enough, whoever makes it."""
    x = torch.randn(rows, 2) + 6 * (torch.arange(rows) % 3).unsqueeze(-1)

    def program(x, index=None, size=None):
        weights = pyro.param("weights", torch.full((3,), 1 / 3), constraint=constraints.simplex)
        loc = pyro.param("loc", lambda: x[:: len(x) // 3][:3].clone())
        scale = pyro.param("scale", torch.ones(3, 2), constraint=constraints.positive)
        with data_plate(x, index, size):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)

    fit(EM(program, FullPartition(program, components=3)), x, progress=False)
    assert pyro.param("loc").shape == (3, 2)
    fit(
        EM(program, FullPartition(program, components=3)),
        x,
        batch_size=50,
        epochs=2,
        progress=False,
    )


@pytest.mark.parametrize("weight", [1e-4, 1.0, 50.0])
@pytest.mark.parametrize("batch_size", [None, 32])
def test_weights_of_rows_change_neither_when_a_fit_stops_nor_what_it_reports(x, weight, batch_size):
    """The tolerance is in nats a row: of weight one, whatever unit the weights have."""

    def weighted(x, index=None, size=None):
        with pyro.poutine.scale(scale=weight * torch.ones(len(x))):
            return model(x, index=index, size=size)

    found = []
    for program in ("plain", "weighted"):
        pyro.set_rng_seed(0)
        model = mixture(x)
        one = model if program == "plain" else weighted
        found.append(
            fit(
                EM(one, FullPartition(one, components=C)), x, batch_size=batch_size, progress=False
            ).history
        )
    np.testing.assert_allclose(found[1]["elbo"], found[0]["elbo"], rtol=1e-4)
