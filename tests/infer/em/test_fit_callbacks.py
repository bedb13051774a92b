"""Callbacks, interruptions and progress bars of fits."""

import math
import re

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO

from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit, log_evidence
from pyro_mixtures.init import Seeds
from pyro_mixtures.models import GaussianMixture
from tests.infer.em.strategies import (
    C,
    D,
    N,
    assert_same,
    exact,
    params,
    quiet,
    truncated,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


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
    """Nothing of the unfinished pass is left: the next epoch is that of a fresh EM."""

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
