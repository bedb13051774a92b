"""The most likely of several short fits is continued; a failing start does not stop the others."""

import pyro
import pytest
import torch

from pyro_mixtures.errors import ModelError, NumericalError, OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, fit, log_evidence
from pyro_mixtures.infer.restarts.best_of import best_of
from pyro_mixtures.models import GaussianMixture

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture
def x():
    generator = torch.Generator("cpu").manual_seed(3)
    centers = torch.tensor([[-6.0, 0.0], [0.0, 0.0], [6.0, 0.0]], device="cpu")
    return torch.cat([c + torch.randn(60, 2, generator=generator, device="cpu") for c in centers])


def build():
    with torch.device("cpu"):
        model = GaussianMixture(components=3, features=2)
        return EM(model, FullPartition(model, components=3), empty="keep")


def at(*places):
    """A start with the means at these positions on a line."""

    def start(model):
        with torch.no_grad():
            model.loc = torch.tensor([[place, 0.0] for place in places], device="cpu")

    return start


GOOD, BAD = at(-6, 0, 6), at(-20, 5.9, 6.1)


@pytest.mark.meta
@pytest.mark.parametrize("winner", [0, 1, 2])
def test_the_most_likely_start_is_continued(x, winner):
    starts = [BAD, BAD, BAD]
    starts[winner] = GOOD
    result = best_of(build, x, starts=starts, steps=3, progress=False)
    assert result.winner == winner
    assert result.best.converged
    # The program reads its params.
    assert float(log_evidence(result.best.model, x).mean()) == pytest.approx(
        result.best.elbo, abs=1e-3
    )
    loc = result.best.model.loc.detach().clone()
    pyro.clear_param_store()
    alone = build()
    GOOD(alone.model)
    expected = fit(alone, x, progress=False)
    torch.testing.assert_close(loc, alone.model.loc.detach(), rtol=1e-3, atol=1e-3)
    assert result.best.elbo == pytest.approx(expected.elbo, abs=1e-3)


def test_elbos_do_not_depend_on_other_starts(x):
    together = best_of(build, x, starts=[GOOD, BAD], steps=3, progress=False).elbos
    alone = [
        best_of(build, x, starts=[start], steps=3, progress=False).elbos[0] for start in (GOOD, BAD)
    ]
    assert together.tolist() == alone
    assert together[0] > together[1] + 0.1


def test_a_failing_start_is_skipped(x):
    failing = at(1e30, 1e30, 1e30)
    result = best_of(build, x, starts=[failing, GOOD], steps=3, progress=False)
    assert result.winner == 1
    assert result.elbos[0] == -float("inf")
    with pytest.raises(NumericalError, match="none of 2 starts"):
        best_of(build, x, starts=[failing, failing], steps=3, progress=False)


def test_random_state_and_other_params_are_unchanged(x):
    pyro.clear_param_store()
    pyro.param("other", torch.ones(2))
    pyro.set_rng_seed(5)
    expected = torch.rand(3)
    pyro.set_rng_seed(5)
    best_of(
        build, x, starts=[GOOD], generator=torch.Generator("cpu").manual_seed(0), progress=False
    )
    assert torch.equal(torch.rand(3), expected)
    assert "other" in pyro.get_param_store()


def test_bad_options_are_refused(x):
    with pytest.raises(OptionError, match="0 starts"):
        best_of(build, x, starts=[], progress=False)
    with pytest.raises(OptionError, match="steps=0"):
        best_of(build, x, starts=[GOOD], steps=0, progress=False)
    with pytest.raises(ModelError, match="build"):
        best_of(lambda: GaussianMixture(components=3, features=2), x, starts=[GOOD], progress=False)


def test_a_build_that_returns_the_same_model_is_refused(x):
    """Each start would continue from the previous one."""
    model = build().model
    with pytest.raises(OptionError, match="earlier start"):
        best_of(
            lambda: EM(model, FullPartition(model, components=3)),
            x,
            starts=[GOOD, BAD],
            progress=False,
        )


def test_an_interruption_stops_all_and_returns_the_best(x):
    passes = []

    def stop(result):
        passes.append(result)
        if len(passes) == 5:
            raise KeyboardInterrupt

    result = best_of(
        build, x, starts=[GOOD, BAD, BAD], steps=3, progress=False, callbacks=[stop], patience=99
    )
    assert len(passes) == 5
    assert (result.winner, len(result.elbos)) == (0, 2)
    assert result.best.interrupted
    assert result.best.elbo == result.elbos[0]


def test_starts_may_be_a_generator(x):
    assert (
        best_of(build, x, starts=(start for start in [BAD, GOOD]), steps=2, progress=False).winner
        == 1
    )
