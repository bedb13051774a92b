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


def separated_rows(dtype):
    return torch.cat([torch.randn(60, 2) - 4, torch.randn(60, 2) + 4]).to(dtype)


def with_dropped(parameters, components, first):
    """Put the parameters (2, ...) of two components at ``first`` and ``first`` + 1 of C."""
    new = torch.randn(components, *parameters.shape[1:]).abs().to(parameters)
    new[first : first + 2] = parameters
    return new


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("tied", [False, True])
def test_dropped_components_do_not_count(dtype, covariance, tied):
    x = separated_rows(dtype)
    results = []
    for components in (2, 3, 5):
        pyro.clear_param_store()
        model = GaussianMixture(
            components=components, features=2, covariance=covariance, tied=tied
        ).to(dtype)
        with torch.no_grad():
            far = torch.full((3, 2), 1e4)
            model.loc = torch.cat([torch.tensor([[-4.0, -4], [4, 4]]), far])[:components].to(dtype)
        em = EM(model, FullPartition(model, components=components), empty="drop")
        fit(em, x, progress=False)
        results.append(criteria(model, x))
        assert results[-1].shares[2:].eq(0).all()
    for result in results[1:]:
        assert result.parameters == results[0].parameters
        assert result.bic == pytest.approx(results[0].bic, rel=1e-4)


@pytest.mark.parametrize("freeze", [(), ("loc",), ("weights",), ("factor",)])
def test_dropped_factor_analyzers_have_no_rotations(freeze):
    x = torch.randn(30, 6)

    def count(components):
        pyro.clear_param_store()
        model = MixtureOfFactorAnalyzers(components=components, features=6, factors=3)
        with torch.no_grad():
            model.weights = torch.cat([torch.ones(2) / 2, torch.zeros(components - 2)])
        return criteria(model, x, freeze=freeze).parameters

    assert count(4) == count(3) == count(2)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_dropped_softmax_components_do_not_count(ridge):
    features = torch.randn(40, 3)
    features[:, 2] = features[:, 0] + features[:, 1]

    def count(components):
        pyro.clear_param_store()
        model = SoftmaxMixture(components=components, features=features, ridge=ridge)
        with torch.no_grad():
            model.weights = torch.cat([torch.zeros(components - 2), torch.ones(2) / 2])
        return criteria(model, torch.arange(40)).parameters

    assert count(4) == count(2)


@pytest.mark.parametrize("reference", [True, False])
def test_components_that_a_gate_drops_do_not_count(reference):
    u = torch.randn(N, 4)

    def count(components):
        pyro.clear_param_store()
        own = components - reference
        gate_bias = torch.zeros(own)
        gate_bias[2 - reference :] = -torch.inf

        def model(u, y):
            gate = GatedWeights(
                u,
                pyro.param("w", torch.zeros(own, 4)),
                pyro.param("b", gate_bias),
                reference=reference,
            )
            weight = pyro.param("weight", torch.randn(components, 4))
            with data_plate(u):
                z = pyro.sample("z", gate)
                family = LogisticRegressions(u, weight, torch.zeros(components))
                pyro.sample("y", family[z], obs=y)

        return criteria(model, u, torch.ones(N)).parameters

    assert count(4) == count(2) == 5 + 2 * 4


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("stock", [False, True])
def test_dropped_components_of_plain_programs_do_not_count(x, logits, stock):
    def count(components):
        pyro.clear_param_store()
        shares = torch.cat([torch.zeros(components - 2), torch.ones(2) / 2])

        def model(x):
            weights = MixtureWeights if not stock else dist.Categorical
            if logits:
                prior = weights(logits=pyro.param("logits", shares.log()))
            else:
                prior = weights(pyro.param("probs", shares, constraint=constraints.simplex))
            loc = pyro.param("loc", torch.randn(components, D))
            scale = pyro.param("scale", torch.ones(1, D), constraint=constraints.positive)
            shape = pyro.param(
                "shape", torch.ones(components, D) / D, constraint=constraints.simplex
            )
            with data_plate(x):
                z = pyro.sample("z", prior)
                if stock:
                    pyro.sample("x", dist.Normal(loc[z], scale[0]).to_event(1), obs=x)
                else:
                    pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)
                pyro.sample("n", dist.Multinomial(3, shape[z]), obs=3 * torch.eye(D)[[0] * N])

        return criteria(model, x).parameters

    # The stock Categorical does not tell that its logits are identified up to a constant.
    expected = (2 if stock and logits else 1) + 2 * D + D + 2 * (D - 1)
    assert count(2) == expected
    assert count(4) == expected


def test_weights_of_zero_in_some_rows_drop_no_component(x):
    allowed = torch.where(torch.arange(N) % 3 == 0, 0.0, -torch.inf)

    def model(x, penalty):
        loc = pyro.param("loc", torch.randn(C, D))
        logits = torch.stack([penalty, 0 * penalty.exp(), 0 * penalty.exp()], -1)
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(logits=logits))
            pyro.sample("x", IsotropicNormals(loc, torch.ones(C))[z], obs=x)

    assert criteria(model, x, allowed.roll(1)).parameters == C * D


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
