"""Criteria against scikit-learn, and free parameters against what textbooks count."""

import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.distributions import constraints
from sklearn.mixture import GaussianMixture as Peer

from pyro_mixtures.distributions import (
    DiagonalNormals,
    IsotropicNormals,
    LogisticRegressions,
    MixtureWeights,
)
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.infer.uncertainty.criteria import criteria
from pyro_mixtures.models import (
    GaussianMixture,
    KMeans,
    MixtureOfFactorAnalyzers,
    MixtureOfRegressions,
    SoftmaxMixture,
)
from pyro_mixtures.poutine import data_plate

pytestmark = pytest.mark.usefixtures("on_one_thread")

C, D, N = 3, 2, 90


@pytest.fixture
def x():
    centres = 2.0 * (torch.arange(N, device="cpu") % C).unsqueeze(-1)
    return centres + torch.randn(N, D, device="cpu")


@pytest.mark.parametrize(
    ("covariance", "tied"),
    [("isotropic", False), ("diagonal", False), ("full", False), ("full", True)],
)
def test_criteria_are_scikit_learns(x, covariance, tied):
    names = {"isotropic": "spherical", "diagonal": "diag", "full": "tied" if tied else "full"}
    peer = Peer(C, covariance_type=names[covariance], random_state=0, reg_covar=0.0).fit(
        x.double().numpy()
    )
    model = GaussianMixture(components=C, features=D, covariance=covariance, tied=tied).double()
    with torch.no_grad():
        model.loc, model.weights = torch.from_numpy(peer.means_), torch.from_numpy(peer.weights_)
        found = torch.from_numpy(peer.covariances_)
        if covariance == "full":
            model.scale_tril = torch.linalg.cholesky(found).reshape(model.scale_tril.shape)
        else:
            model.scale = found.sqrt().reshape(model.scale.shape)
    found = criteria(model, x.double())
    assert found.parameters == peer._n_parameters()
    assert found.bic == pytest.approx(peer.bic(x.double().numpy()))
    assert found.aic == pytest.approx(peer.aic(x.double().numpy()))
    q = torch.from_numpy(peer.predict_proba(x.double().numpy()))
    torch.testing.assert_close(found.shares, q.mean(0), rtol=1e-6, atol=1e-9)
    entropy = -float(torch.xlogy(q, q).sum())
    assert found.entropy == pytest.approx(entropy)
    assert found.icl == pytest.approx(found.bic + 2 * entropy)
    assert found.rows == N


@pytest.mark.meta
def test_chunks_and_guides_that_keep_all_candidates_change_nothing(x):
    model = program
    whole = criteria(model, x)
    for options in (
        {"chunk": 7},
        {"guide": FullPartition(model, components=C)},
        {"guide": TruncatedPartition(model, components=C, candidates=C, neighbors=C), "chunk": 40},
    ):
        found = criteria(model, x, **options)
        torch.testing.assert_close(found.shares, whole.shares)
        assert found.bic == pytest.approx(whole.bic, rel=1e-6)
        assert found.entropy == pytest.approx(whole.entropy, rel=1e-5)
    less = criteria(
        model, x, guide=TruncatedPartition(model, components=C, candidates=1, neighbors=C)
    )
    assert less.log_likelihood < whole.log_likelihood
    assert less.entropy == 0.0


def test_factor_analyzers_are_counted_without_their_rotations():
    # Covariances of 6 features with 3 factors: 6 * 3 - 3 loadings and 6 noises.
    model = MixtureOfFactorAnalyzers(components=2, features=6, factors=3)
    assert criteria(model, torch.randn(9, 6)).parameters == 1 + 2 * (6 + 15 + 6)
    assert criteria(model, torch.randn(9, 6), freeze=["factor"]).parameters == 1 + 2 * (6 + 6)


def test_no_factors_have_no_rotations():
    model = MixtureOfFactorAnalyzers(components=2, features=6, factors=0)
    assert criteria(model, torch.randn(9, 6)).parameters == 1 + 2 * (6 + 6)


@pytest.mark.parametrize(("spherical", "each"), [(True, 4), (False, 5)])
def test_directions_have_one_number_less_than_features(spherical, each):
    found = criteria(KMeans(components=3, features=5, spherical=spherical), torch.randn(9, 5))
    assert found.parameters == 3 * each


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_coefficients_that_no_probability_depends_on_are_not_counted(dtype):
    """The third column is the sum of the others, in units far apart."""
    columns = torch.randn(40, 2, dtype=dtype)
    features = torch.cat(
        [1e-3 * columns[:, :1], 1e3 * columns[:, 1:], columns.sum(-1, keepdim=True)], -1
    )

    def count(width, ridge, **options):
        pyro.clear_param_store()
        model = SoftmaxMixture(components=C, features=features[:, :width], ridge=ridge)
        return criteria(model, torch.arange(40), **options).parameters

    assert count(3, 0.0) == count(2, 0.0) == count(2, 0.1) == C - 1 + C * 2
    # A ridge tells apart what no probability does.
    assert count(3, 0.1) == C - 1 + C * 3
    assert count(3, 0.0, freeze=["theta"]) == C - 1


def test_constant_weights_and_options_are_not_counted():
    model = MixtureOfRegressions(components=2, features=3, scale=1.0, equal_weights=True)
    assert criteria(model, torch.randn(9, 3), torch.randn(9)).parameters == 2 * 4
    assert criteria(model, torch.randn(9, 3), torch.randn(9), freeze=["bias"]).parameters == 2 * 3
    model.weight_unconstrained.requires_grad_(False) if hasattr(
        model, "weight_unconstrained"
    ) else model.weight.requires_grad_(False)
    assert criteria(model, torch.randn(9, 3), torch.randn(9)).parameters == 2
    with pytest.raises(OptionError, match="no such params"):
        criteria(model, torch.randn(9, 3), torch.randn(9), freeze=["nothing"])


@pytest.mark.parametrize("reference", [True, False])
def test_gates_are_counted_by_what_they_can_say(reference):
    u = torch.randn(N, 4)

    def model(u, y):
        own = C - reference
        gate = GatedWeights(
            u,
            pyro.param("w", torch.zeros(own, 4)),
            pyro.param("b", torch.zeros(own)),
            reference=reference,
        )
        weight, bias = pyro.param("weight", torch.randn(C, 4)), pyro.param("bias", torch.zeros(C))
        with data_plate(u):
            z = pyro.sample("z", gate)
            pyro.sample("y", LogisticRegressions(u, weight, bias)[z], obs=y)

    assert criteria(model, u, torch.ones(N)).parameters == (C - 1) * 5 + C * 5


def program(x, *, tied=False, logits=False, weights=None, mask=None):
    if logits:
        prior = MixtureWeights(logits=pyro.param("logits", torch.zeros(C, device="cpu")))
    else:
        prior = dist.Categorical(
            pyro.param("probs", torch.ones(C, device="cpu") / C, constraint=constraints.simplex)
        )
    loc = pyro.param("loc", torch.arange(C * D, device="cpu").reshape(C, D).float())
    scale = pyro.param(
        "scale", torch.ones(1 if tied else C, D, device="cpu"), constraint=constraints.positive
    )
    weights, mask = 1.0 if weights is None else weights, True if mask is None else mask
    with data_plate(x), pyro.poutine.scale(scale=weights), pyro.poutine.mask(mask=mask):
        z = pyro.sample("z", prior)
        pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_tied_arguments_count_once_and_logits_one_less(x, tied, logits):
    found = criteria(lambda x: program(x, tied=tied, logits=logits), x)
    assert found.parameters == C - 1 + C * D + (1 if tied else C) * D


def test_one_param_at_two_sites_counts_once(x):
    def model(x):
        loc = pyro.param("loc", torch.randn(C, D))
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(torch.ones(C) / C))
            pyro.sample("x", IsotropicNormals(loc, torch.ones(C))[z], obs=x)
            pyro.sample("y", IsotropicNormals(loc, torch.ones(C))[z], obs=x)

    assert criteria(model, x).parameters == C * D


def test_rows_count_by_their_weights(x):
    times = torch.randint(1, 4, (N,))
    whole = criteria(program, x.repeat_interleave(times, 0))
    found = criteria(lambda x: program(x, weights=times.float()), x, chunk=N)
    assert found.rows == whole.rows == int(times.sum())
    assert found.bic == pytest.approx(whole.bic, rel=1e-6)
    torch.testing.assert_close(found.shares, whole.shares)


def test_masked_rows_do_not_count(x):
    mask = torch.arange(N) % 3 > 0
    whole, found = criteria(program, x[mask]), criteria(lambda x: program(x, mask=mask), x)
    assert found.rows == int(mask.sum())
    assert found.bic == pytest.approx(whole.bic, rel=1e-6)
    assert found.entropy == pytest.approx(whole.entropy, rel=1e-5)
    torch.testing.assert_close(found.shares, whole.shares)


def test_rows_that_all_weigh_zero_are_refused(x):
    with pytest.raises(DataError, match="weights of the 90 rows"):
        criteria(lambda x: program(x, mask=torch.zeros(N, dtype=torch.bool)), x, chunk=N)


def test_criteria_choose_the_number_of_groups_and_can_be_read():
    x = 6.0 * torch.cat([torch.zeros(60, 2), torch.ones(60, 2)]) + torch.randn(120, 2)
    found = {}
    for components in (1, 2, 4):
        pyro.clear_param_store()
        model = GaussianMixture(components=components, features=2)
        with torch.no_grad():
            model.loc = x[:: 120 // components][:components].clone()
        fit(EM(model, FullPartition(model, components=components)), x, epochs=30, progress=False)
        found[components] = criteria(model, x)
    assert min(found, key=lambda c: found[c].bic) == 2
    assert min(found, key=lambda c: found[c].icl) == 2
    assert found[1].entropy == 0.0
    text = str(found[2])
    assert "free parameters 9" in text
    assert f"{found[2].bic:.3f}" in text
    assert "0.500 0.500" in text
    assert math.isfinite(found[4].icl)
