"""Criteria against scikit-learn, and free parameters against textbook counts."""

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
    centers = 2.0 * (torch.arange(N, device="cpu") % C).unsqueeze(-1)
    return centers + torch.randn(N, D, device="cpu")


@pytest.mark.parametrize(
    ("covariance", "tied"),
    [("isotropic", False), ("diagonal", False), ("full", False), ("full", True)],
)
def test_criteria_agree_with_scikit_learn(x, covariance, tied):
    names = {"isotropic": "spherical", "diagonal": "diag", "full": "tied" if tied else "full"}
    peer = Peer(C, covariance_type=names[covariance], random_state=0, reg_covar=0.0).fit(
        x.double().numpy()
    )
    model = GaussianMixture(components=C, features=D, covariance=covariance, tied=tied).double()
    with torch.no_grad():
        model.loc, model.weights = torch.from_numpy(peer.means_), torch.from_numpy(peer.weights_)
        covariances = torch.from_numpy(peer.covariances_)
        if covariance == "full":
            model.scale_tril = torch.linalg.cholesky(covariances).reshape(model.scale_tril.shape)
        else:
            model.scale = covariances.sqrt().reshape(model.scale.shape)
    result = criteria(model, x.double())
    assert result.parameters == peer._n_parameters()
    assert result.bic == pytest.approx(peer.bic(x.double().numpy()))
    assert result.aic == pytest.approx(peer.aic(x.double().numpy()))
    q = torch.from_numpy(peer.predict_proba(x.double().numpy()))
    torch.testing.assert_close(result.shares, q.mean(0), rtol=1e-6, atol=1e-9)
    entropy = -float(torch.xlogy(q, q).sum())
    assert result.entropy == pytest.approx(entropy)
    assert result.icl == pytest.approx(result.bic + 2 * entropy)
    assert result.rows == N


@pytest.mark.meta
def test_chunks_and_guides_with_all_candidates_agree(x):
    model = program
    whole = criteria(model, x)
    for options in (
        {"chunk": 7},
        {"guide": FullPartition(model, components=C)},
        {"guide": TruncatedPartition(model, components=C, candidates=C, neighbors=C), "chunk": 40},
    ):
        result = criteria(model, x, **options)
        torch.testing.assert_close(result.shares, whole.shares)
        assert result.bic == pytest.approx(whole.bic, rel=1e-6)
        assert result.entropy == pytest.approx(whole.entropy, rel=1e-5)
    less = criteria(
        model, x, guide=TruncatedPartition(model, components=C, candidates=1, neighbors=C)
    )
    assert less.log_likelihood < whole.log_likelihood
    assert less.entropy == 0.0


def test_rotations_of_factors_do_not_count():
    # Covariances of 6 features with 3 factors: 6 * 3 - 3 loadings and 6 noises.
    model = MixtureOfFactorAnalyzers(components=2, features=6, factors=3)
    assert criteria(model, torch.randn(9, 6)).parameters == 1 + 2 * (6 + 15 + 6)
    assert criteria(model, torch.randn(9, 6), freeze=["factor"]).parameters == 1 + 2 * (6 + 6)


def test_zero_factors_have_no_rotations():
    model = MixtureOfFactorAnalyzers(components=2, features=6, factors=0)
    assert criteria(model, torch.randn(9, 6)).parameters == 1 + 2 * (6 + 6)


@pytest.mark.parametrize(("spherical", "each"), [(True, 4), (False, 5)])
def test_unit_vectors_have_one_free_parameter_less(spherical, each):
    result = criteria(KMeans(components=3, features=5, spherical=spherical), torch.randn(9, 5))
    assert result.parameters == 3 * each


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_redundant_softmax_coefficients_do_not_count(dtype):
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
    # A ridge identifies coefficients that no probability depends on.
    assert count(3, 0.1) == C - 1 + C * 3
    assert count(3, 0.0, freeze=["theta"]) == C - 1


def test_constants_do_not_count():
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
def test_redundant_gate_coefficients_do_not_count(reference):
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
    result = criteria(lambda x: program(x, tied=tied, logits=logits), x)
    assert result.parameters == C - 1 + C * D + (1 if tied else C) * D


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
    result = criteria(lambda x: program(x, weights=times.float()), x, chunk=N)
    assert result.rows == whole.rows == int(times.sum())
    assert result.bic == pytest.approx(whole.bic, rel=1e-6)
    torch.testing.assert_close(result.shares, whole.shares)


def test_masked_rows_do_not_count(x):
    mask = torch.arange(N) % 3 > 0
    whole, result = criteria(program, x[mask]), criteria(lambda x: program(x, mask=mask), x)
    assert result.rows == int(mask.sum())
    assert result.bic == pytest.approx(whole.bic, rel=1e-6)
    assert result.entropy == pytest.approx(whole.entropy, rel=1e-5)
    torch.testing.assert_close(result.shares, whole.shares)


def test_zero_weights_of_all_rows_are_refused(x):
    with pytest.raises(DataError, match="weights of the 90 rows"):
        criteria(lambda x: program(x, mask=torch.zeros(N, dtype=torch.bool)), x, chunk=N)


def test_criteria_choose_the_number_of_clusters_and_print():
    x = 6.0 * torch.cat([torch.zeros(60, 2), torch.ones(60, 2)]) + torch.randn(120, 2)
    results = {}
    for components in (1, 2, 4):
        pyro.clear_param_store()
        model = GaussianMixture(components=components, features=2)
        with torch.no_grad():
            model.loc = x[:: 120 // components][:components].clone()
        fit(EM(model, FullPartition(model, components=components)), x, epochs=30, progress=False)
        results[components] = criteria(model, x)
    assert min(results, key=lambda c: results[c].bic) == 2
    assert min(results, key=lambda c: results[c].icl) == 2
    assert results[1].entropy == 0.0
    text = str(results[2])
    assert "free parameters 9" in text
    assert f"{results[2].bic:.3f}" in text
    assert "0.500 0.500" in text
    assert math.isfinite(results[4].icl)
