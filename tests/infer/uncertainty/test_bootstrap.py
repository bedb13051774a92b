"""The bootstrap: refits to resamples, which leave the fit unchanged, and their spread."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch.distributions import constraints

from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit, log_evidence
from pyro_mixtures.infer.restarts.stored_fits import StoredModel, state_without_modules
from pyro_mixtures.infer.uncertainty.bootstrap import bootstrap
from pyro_mixtures.models import GaussianMixture, SoftmaxMixture
from pyro_mixtures.poutine import data_plate

pytestmark = pytest.mark.usefixtures("on_one_thread")

CENTERS = torch.tensor([[-4.0, 0.0], [4.0, 1.0]], device="cpu")


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def two_clusters(rows: int = 50, dtype=torch.float32) -> torch.Tensor:
    draws = torch.randn(2, rows, 2, generator=generator(1), dtype=dtype, device="cpu")
    return (CENTERS.to(dtype).unsqueeze(1) + draws).reshape(-1, 2)


def em(kind=FullPartition, dtype=torch.float32, **options) -> EM:
    model = GaussianMixture(components=2, features=2).to(dtype)
    with torch.no_grad():
        model.loc = CENTERS.to(dtype, copy=True)
    return EM(model, kind(model, components=2, **options))


def function(x, index=None, size=None):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", CENTERS.clone())
    with data_plate(x, index, size):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_refit_is_the_fit_of_its_resample(dtype):
    """The same rows drawn by hand, fitted from the same params."""
    x = two_clusters(dtype=dtype)
    whole = fit(em(dtype=dtype), x, epochs=5, progress=False)
    result = bootstrap(whole, x, draws=3, generator=generator(7), progress=False, epochs=4)
    one = generator(7)
    for refit in result.refits:
        index = torch.randint(len(x), (len(x),), generator=one)
        torch.randint(1 << 31, (), generator=one)
        pyro.clear_param_store()
        again = em(dtype=dtype)
        with torch.no_grad():
            for name in ("weights", "loc", "scale"):
                setattr(again.model, name, getattr(whole.model, name).detach().clone())
        fit(again, x[index], epochs=4, progress=False)
        for name in ("weights", "loc", "scale"):
            assert getattr(refit.fit.model, name).dtype == dtype
            torch.testing.assert_close(getattr(refit.fit.model, name), getattr(again.model, name))


def test_the_fit_and_the_store_are_unchanged():
    x = two_clusters()
    whole = fit(em(), x, epochs=5, progress=False)
    before = {name: value.detach().clone() for name, value in whole.model.named_parameters()}
    leaves = dict(pyro.get_param_store().named_parameters())
    pyro.set_rng_seed(3)
    state = torch.get_rng_state()
    bootstrap(whole, x, draws=2, generator=generator(), progress=False, epochs=2)
    for name, value in whole.model.named_parameters():
        assert torch.equal(value, before[name])
    after = dict(pyro.get_param_store().named_parameters())
    assert after.keys() == leaves.keys()
    assert all(after[name] is leaf for name, leaf in leaves.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_same_generator_same_refits():
    x = two_clusters()
    whole = fit(em(), x, epochs=3, progress=False)
    first, second = (
        bootstrap(whole, x, draws=2, generator=generator(5), progress=False, epochs=2).elbos
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert first[0] != first[1]


def test_spread_of_means_is_their_standard_error():
    """For separated components this is sigma / sqrt(n_c), known to one eighth from 30 draws."""
    x = two_clusters()
    whole = fit(em(), x, epochs=5, progress=False)
    result = bootstrap(whole, x, draws=30, generator=generator(2), progress=False, epochs=3)
    loc = torch.stack([refit.fit.model.loc.detach() for refit in result.refits])
    expected = x.reshape(2, 50, 2).std(1) / 50**0.5
    assert bool(((loc.std(0) / expected).log().abs() < 0.4).all())


def test_params_of_functions():
    """They exist in the store only; every refit has its own."""
    x = two_clusters()
    whole = fit(EM(function, FullPartition(function, components=2)), x, epochs=4, progress=False)
    kept = pyro.param("loc").detach().clone()
    result = bootstrap(whole, x, draws=3, generator=generator(), progress=False, epochs=3)
    assert torch.equal(pyro.param("loc"), kept)
    scores = [log_evidence(refit.model, x).sum().item() for refit in result.refits]
    assert len(set(scores)) == 3
    assert max(scores) <= log_evidence(function, x).sum().item() + 1e-2


def test_build_may_be_given_instead_of_a_fit():
    x = two_clusters()
    result = bootstrap(lambda: em(), x, draws=2, generator=generator(), progress=False, epochs=3)
    assert torch.equal(pyro.param("loc"), result.fit.model.loc)
    assert result.elbos.shape == result.converged.shape == (2,)


def test_labels_of_a_hard_partition_are_resampled_with_the_rows():
    """Clusters are far apart, so no row changes its cluster."""
    x = two_clusters()
    start = em(HardPartition)
    start.guide.set_labels(torch.arange(2).repeat_interleave(50))
    whole = fit(start, x, epochs=3, progress=False)
    result = bootstrap(whole, x, draws=2, generator=generator(4), progress=False, epochs=2)
    one = generator(4)
    for refit in result.refits:
        index = torch.randint(100, (100,), generator=one)
        torch.randint(1 << 31, (), generator=one)
        assert torch.equal(refit.fit.guide.labels.long(), index // 50)


def test_truncated_guides_search_anew():
    x = two_clusters()
    whole = fit(em(TruncatedPartition, candidates=1, neighbors=2), x, epochs=5, progress=False)
    result = bootstrap(whole, x, draws=2, generator=generator(4), progress=False, epochs=5)
    for refit in result.refits:
        torch.testing.assert_close(refit.fit.model.loc, CENTERS, atol=0.6, rtol=0)


@pytest.mark.parametrize(
    ("fitted", "options", "error", "message"),
    [
        (
            lambda: fit(em(), two_clusters(), epochs=1, progress=False),
            {"draws": 0},
            OptionError,
            "draws=0",
        ),
        (lambda: em, {"generator": 3}, OptionError, "generator=3"),
        (lambda: em, {"epochs": 0}, OptionError, "epochs=0"),
        (lambda: 3, {}, OptionError, "neither a Fit"),
        (lambda: lambda: 3, {}, ModelError, "return an EM"),
    ],
)
def test_refusals(fitted, options, error, message):
    with pytest.raises(error, match=message):
        bootstrap(fitted(), two_clusters(), progress=False, **options)


def test_svi_is_refused():
    guide = FullPartition(function, components=2)
    svi = SVI(function, guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))
    with pytest.raises(ModelError, match="by SVI"):
        bootstrap(fit(svi, two_clusters(), epochs=1, progress=False), two_clusters())


class TestStoredModel:
    def test_modules_keep_their_values(self):
        x = two_clusters()
        first = em().model
        with torch.no_grad():
            first.loc += 1.0
        shifted = log_evidence(first, x)
        pyro.clear_param_store()
        second = em().model
        plain = log_evidence(second, x)  # leaves its params in the store under the same names
        torch.testing.assert_close(
            log_evidence(StoredModel(first, state_without_modules(first)), x), shifted
        )
        torch.testing.assert_close(log_evidence(second, x), plain)

    @pytest.mark.meta
    def test_the_store_is_put_back(self):
        pyro.param("loc", torch.ones(2, device="cpu"))

        def model():
            return pyro.param("loc", torch.zeros(2, device="cpu"))

        placed = StoredModel(model, {"params": {}, "constraints": {}})
        assert placed().tolist() == [0.0, 0.0]
        with placed.store(), torch.no_grad():
            pyro.param("loc").add_(5.0)
        assert placed().tolist() == [5.0, 5.0]
        assert pyro.param("loc").tolist() == [1.0, 1.0]


def test_row_weights_are_refused():
    """Resampling items instead of draws would overestimate the variance."""
    features = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))

    def build():
        model = SoftmaxMixture(components=1, features=features)
        return EM(model, FullPartition(model, components=1), empty="keep")

    with pytest.raises(ModelError, match="weights"):
        bootstrap(
            build,
            torch.arange(6),
            torch.tensor([3.0, 5, 2, 2, 8, 1]),
            draws=2,
            epochs=2,
            progress=False,
        )
