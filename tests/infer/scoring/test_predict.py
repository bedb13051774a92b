"""Draws, noise-free signals and missing features, against brute force in numpy and autograd."""

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist

from pyro_mixtures.distributions import Categoricals, DiagonalNormals, FullNormals, MixtureWeights
from pyro_mixtures.errors import OptionError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import conditional, reconstruct, sample
from pyro_mixtures.init import seed_rows
from pyro_mixtures.models import GaussianMixture, MixtureOfFactorAnalyzers
from pyro_mixtures.poutine import data_plate
from tests.infer.scoring.mixtures import (
    FAMILIES,
    brute,
    covariances,
    mixture,
    rows,
    two_observations,
)

C, D, N = 6, 3, 40
F64 = torch.float64


pytestmark = pytest.mark.usefixtures("on_one_thread")


def separated(family):
    """Components far apart, and rows of them."""
    model = mixture(family, 12, spread=1.0)
    with torch.no_grad():
        model.loc = 40.0 * torch.arange(12, dtype=F64).unsqueeze(-1) + model.loc
    return model, sample(model, size=120)["x"]


# Draws.


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_have_the_moments_of_the_mixture(family):
    model, n = mixture(family, 3), 20_000
    draw = sample(model, size=n)
    assert draw["x"].shape == (n, D)
    assert draw["z"].shape == (n,)
    assert not draw["x"].requires_grad
    weights, loc, sigma = model.weights.detach(), model.loc.detach(), covariances(model).detach()
    shares = torch.bincount(draw["z"], minlength=3) / n
    assert ((shares - weights) / (weights * (1 - weights) / n).sqrt()).abs().max() < 5
    for c in range(3):
        own = draw["x"][draw["z"] == c]
        assert ((own.mean(0) - loc[c]) / (sigma[c].diagonal() / len(own)).sqrt()).abs().max() < 5
        variance = sigma[c].diagonal()
        spread = ((variance.outer(variance) + sigma[c].square()) / len(own)).sqrt()
        assert ((own.T.cov() - sigma[c]) / spread).abs().max() < 5


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_repeat_with_pyros_seed(family):
    model = mixture(family)
    pyro.set_rng_seed(7)
    first, other = sample(model, size=20), sample(model, size=20)
    pyro.set_rng_seed(7)
    again = sample(model, size=20)
    assert torch.equal(first["x"], again["x"])
    assert torch.equal(first["z"], again["z"])
    assert not torch.equal(first["x"], other["x"])


def test_draws_of_a_hand_written_program_release_its_observations():
    x, label = torch.full((25, D), torch.nan, dtype=F64), torch.zeros(25, dtype=torch.int64)
    draw = sample(two_observations, x, label)
    assert draw["x"].isfinite().all()
    assert draw["label"].unique().numel() > 1


def test_draws_are_those_of_sample_sites_alone():
    """The plate's row numbers are no draws."""
    assert sample(mixture(), size=5).keys() == {"z", "x"}


def test_draws_leave_no_trace_outside():
    model = mixture()
    with pyro.poutine.trace() as tracer:
        sample(model, size=5)
    assert not tracer.trace.nodes


# Noise-free signals.


def tweedie(model, x, sigma):
    """x + sigma^2 grad log p(x)."""
    x = x.clone().requires_grad_()
    normals = torch.distributions.MultivariateNormal(
        model.loc.detach(), covariances(model).detach()
    )
    log_evidence = (
        (model.weights.detach().log() + normals.log_prob(x.unsqueeze(1))).logsumexp(-1).sum()
    )
    return (x + sigma**2 * torch.autograd.grad(log_evidence, x)[0]).detach()


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_reconstruction_is_tweedies_where_components_are_wider_than_the_noise(family, chunk):
    model, x = mixture(family), rows(N)
    if family == "full":
        with torch.no_grad():
            model.scale_tril = model.scale_tril + 1.5 * torch.eye(D, dtype=F64)
    smallest = torch.linalg.eigvalsh(covariances(model)).min().item()
    if family == "factor":
        smallest = model.noise.min().item()
    sigma = 0.9 * smallest**0.5
    found = reconstruct(model, x, noise=sigma, top=C, chunk=chunk)
    torch.testing.assert_close(found, tweedie(model, x, sigma))
    assert not found.requires_grad


@pytest.mark.parametrize("family", ["isotropic", "diagonal", "factor"])
def test_noise_of_each_feature_is_tweedies_too(family):
    model, x = mixture(family), rows(N)
    sigma = torch.tensor([0.1, 0.3, 0.45], dtype=F64)
    torch.testing.assert_close(reconstruct(model, x, noise=sigma, top=99), tweedie(model, x, sigma))
    torch.testing.assert_close(
        reconstruct(model, x, noise=torch.tensor(0.3), top=99), tweedie(model, x, 0.3)
    )


@pytest.mark.parametrize("tied", [False, True])
def test_factor_analyzers_own_noise_leaves_the_loadings(tied):
    model, x = mixture("factor"), rows(N)
    if tied:
        with torch.no_grad():
            model.noise = model.noise[:1].expand(C, D).clone()
    loc, factor, psi = (value.detach().numpy() for value in (model.loc, model.factor, model.noise))
    q = brute(model, x).softmax(-1).numpy()
    expected = np.zeros((N, D))
    for n, row in enumerate(x.numpy()):
        for c in range(C):
            beta = factor[c].T @ np.linalg.inv(factor[c] @ factor[c].T + np.diag(psi[c]))
            expected[n] += q[n, c] * (loc[c] + factor[c] @ beta @ (row - loc[c]))
    torch.testing.assert_close(reconstruct(model, x, top=C), torch.from_numpy(expected))


@pytest.mark.parametrize("top", [1, 2, 4])
def test_top_averages_the_best_components_renormalised(top):
    model, x = mixture("diagonal"), rows(N)
    best = brute(model, x).softmax(-1).topk(top, dim=-1)
    loc, variance = model.loc.detach()[best.indices], model.scale.detach().square()[best.indices]
    signal = loc + (variance - 0.04) / variance * (x.unsqueeze(1) - loc)
    q = best.values / best.values.sum(-1, keepdim=True)
    torch.testing.assert_close(
        reconstruct(model, x, noise=0.2, top=top), (q.unsqueeze(-1) * signal).sum(1)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_no_noise_returns_the_rows_and_much_noise_the_means(family):
    model, x = mixture(family), rows(N)
    torch.testing.assert_close(reconstruct(model, x, noise=0.0, top=C), x)
    if family != "factor":
        q = brute(model, x).softmax(-1)
        torch.testing.assert_close(
            reconstruct(model, x, noise=100.0, top=C), q @ model.loc.detach()
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_guide_reconstructs_as_the_exact_posterior_does(family):
    model, x = separated(family)
    guide = TruncatedPartition(model, components=12, candidates=3, neighbors=12, seed=0)
    for _ in range(4):
        guide.posterior(x)
    options = {} if family == "factor" else {"noise": 0.3}
    found = reconstruct(model, x[:50], guide=guide, **options)
    torch.testing.assert_close(found, reconstruct(model, x[:50], **options), rtol=0, atol=1e-6)
    full = FullPartition(model, components=12)
    torch.testing.assert_close(
        reconstruct(model, x, guide=full, **options), reconstruct(model, x, **options)
    )


@pytest.mark.parametrize("family", ["isotropic", "diagonal", "full"])
def test_families_without_noise_of_their_own_ask_for_it(family):
    with pytest.raises(OptionError, match="no parameter for noise: pass noise="):
        reconstruct(mixture(family), rows(5))


def test_full_covariances_ask_for_white_noise():
    with pytest.raises(OptionError, match="one standard deviation"):
        reconstruct(mixture("full"), rows(5), noise=torch.tensor([0.1, 0.1, 0.2], dtype=F64))


# Missing features.


PATTERNS = {"one": [1], "last": [2], "two": [0, 2], "others": [0, 1]}


def brute_conditional(model, row, label_log_prob=None):
    """Mean of the missing entries of one row in numpy, their responsibilities given the others."""
    weights, loc, sigma = (
        v.detach().numpy() for v in (model.weights, model.loc, covariances(model))
    )
    missing, seen = np.isnan(row), ~np.isnan(row)
    log_q, mean = np.log(weights), np.zeros((len(weights), missing.sum()))
    for c in range(len(weights)):
        away = row[seen] - loc[c, seen]
        among = sigma[c][np.ix_(seen, seen)]
        log_q[c] += -0.5 * (
            np.linalg.slogdet(2 * np.pi * among)[1] + away @ np.linalg.solve(among, away)
        )
        mean[c] = loc[c, missing] + sigma[c][np.ix_(missing, seen)] @ np.linalg.solve(among, away)
    q = np.exp(log_q - np.logaddexp.reduce(log_q))
    filled = row.copy()
    filled[missing] = q @ mean
    return filled


def with_gaps(x):
    """Rows of every pattern, in turns, and whole ones between them."""
    x = x.clone()
    patterns = [[], *PATTERNS.values()]
    for n in range(len(x)):
        x[n, patterns[n % len(patterns)]] = torch.nan
    return x


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_missing_features_get_their_conditional_means(family, chunk):
    model, x = mixture(family), with_gaps(rows(N))
    expected = np.stack([brute_conditional(model, row) for row in x.numpy()])
    found = conditional(model, x, chunk=chunk)
    torch.testing.assert_close(found, torch.from_numpy(expected))
    kept = ~x.isnan()
    assert torch.equal(found[kept], x[kept])
    assert not found.requires_grad


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_tied_covariances_are_conditioned_on_as_well(family, tied):
    model, x = mixture(family), with_gaps(rows(10))
    names = {"factor": "noise", "full": "scale_tril"}
    name = names.get(family, "scale")
    with torch.no_grad():
        one = getattr(model, name)[0].clone()
        setattr(model, name, one.expand_as(getattr(model, name)).clone())
    expected = conditional(model, x)
    if tied:
        pyro.clear_param_store()
        small = type(model)(components=C, features=D, tied=True, **options_of(model)).double()
        with torch.no_grad():
            small.loc, small.weights = model.loc.clone(), model.weights.clone()
            if family == "factor":
                small.factor = model.factor.clone()
            setattr(small, name, one)
        model = small
        torch.testing.assert_close(conditional(small, x), expected)
        return
    brute_force = np.stack([brute_conditional(model, row) for row in x.numpy()])
    torch.testing.assert_close(expected, torch.from_numpy(brute_force))


def options_of(model):
    return (
        {"factors": model.factors}
        if hasattr(model, "factors")
        else {"covariance": model.covariance}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_without_gaps_come_back_bit_for_bit(family):
    model, x = mixture(family), rows(N)
    found = conditional(model, x)
    assert torch.equal(found, x)
    assert found.data_ptr() != x.data_ptr()
    gaps = with_gaps(x)
    before = gaps.clone()
    found = conditional(model, gaps)
    whole = ~gaps.isnan().any(-1)
    assert torch.equal(found[whole], x[whole])
    torch.testing.assert_close(
        gaps, before, equal_nan=True, rtol=0, atol=0
    )  # the rows given are left alone


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_that_misses_everything_gets_the_mixtures_mean(family):
    model, x = mixture(family), rows(5)
    x[2] = torch.nan
    found = conditional(model, x)
    torch.testing.assert_close(found[2], (model.weights @ model.loc).detach())
    assert torch.equal(found[[0, 1, 3, 4]], x[[0, 1, 3, 4]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guided", ["full", "truncated"])
def test_missing_features_with_a_guide(family, guided):
    model, x = separated(family)
    gaps = with_gaps(x)
    guide = FullPartition(model, components=12)
    if guided == "truncated":
        guide = TruncatedPartition(model, components=12, candidates=4, neighbors=12, seed=0)
        for _ in range(4):
            guide.posterior(x)
        table, graph = guide.sets.table.clone(), guide.graph.neighbors.clone()
    torch.testing.assert_close(
        conditional(model, gaps, guide=guide), conditional(model, gaps), rtol=0, atol=1e-6
    )
    if guided == "truncated":
        assert torch.equal(guide.sets.table, table)
        assert torch.equal(guide.graph.neighbors, graph)


def test_float32_rows_of_a_float64_model_are_filled():
    """Rows are widened to the parameters everywhere else."""
    model, x = mixture(), with_gaps(rows(N)).float()
    found = conditional(model, x)
    torch.testing.assert_close(found.double(), conditional(model, x.double()), rtol=1e-6, atol=1e-6)


def test_arrays_and_lists_are_rows():
    model, x = mixture(), with_gaps(rows(N))
    assert torch.equal(conditional(model, x.numpy()), conditional(model, x))
    whole = rows(N)
    assert torch.equal(
        reconstruct(model, whole.numpy(), noise=0.2), reconstruct(model, whole, noise=0.2)
    )


def test_other_observations_inform_the_missing_features():
    x, label = with_gaps(rows(N)), torch.randint(4, (N,))
    found = conditional(two_observations, x, label)
    weights, loc, table = (pyro.param(name).detach() for name in ("weights", "loc", "table"))
    seen = torch.distributions.Normal(loc, 1.0).log_prob(x.nan_to_num().unsqueeze(1))
    seen = torch.where(x.isnan().unsqueeze(1), 0.0, seen).sum(-1)
    q = (weights.log() + seen + table[:, label].T.log()).softmax(-1)
    torch.testing.assert_close(found, torch.where(x.isnan(), q @ loc, x))


def test_two_sites_of_features_are_filled_by_name():
    """``observed`` says which argument is wanted; here it is the second."""
    table = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=F64)
    loc, tril = (
        torch.tensor([[0.0, 0.0], [3.0, -3.0]], dtype=F64),
        torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=F64),
    )

    def model(label, y):
        with data_plate(y):
            z = pyro.sample("z", MixtureWeights(torch.tensor([0.5, 0.5], dtype=F64)))
            pyro.sample("label", Categoricals(table)[z], obs=label)
            pyro.sample("y", FullNormals(loc, tril)[z], obs=y)

    y = torch.tensor([[1.0, torch.nan], [torch.nan, -2.0]], dtype=F64)
    label = torch.tensor([0, 1])
    expected = y.clone()
    for n, (seen, missing) in enumerate([(0, 1), (1, 0)]):
        log_q = table[:, label[n]].log() - 0.5 * (y[n, seen] - loc[:, seen]).square()
        mean = loc[:, missing] + 0.8 * (y[n, seen] - loc[:, seen])
        expected[n, missing] = log_q.softmax(0) @ mean
    torch.testing.assert_close(conditional(model, label, y, observed="y"), expected)


def test_given_values_condition_predictions():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([C, D]).to_event(2))
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)

    plain, x = mixture(), rows(N)
    weights, scale, given = (
        plain.weights.detach(),
        plain.scale.detach(),
        {"loc": plain.loc.detach()},
    )
    torch.testing.assert_close(
        reconstruct(model, x, noise=0.2, given=given), reconstruct(plain, x, noise=0.2)
    )
    gaps = with_gaps(x)
    torch.testing.assert_close(conditional(model, gaps, given=given), conditional(plain, gaps))


def test_handled_programs_are_sampled_too():
    """They do not tell their arguments."""
    model = GaussianMixture(components=2, features=3)
    assert sample(pyro.poutine.mask(model, mask=True), size=4)["x"].shape == (4, 3)


# Rows of other dtypes.


RECONSTRUCTED = {
    "diagonal": lambda: GaussianMixture(components=2, features=3),
    "full": lambda: GaussianMixture(components=2, features=3, covariance="full"),
    "isotropic": lambda: GaussianMixture(components=2, features=3, covariance="isotropic"),
    "factors": lambda: MixtureOfFactorAnalyzers(components=2, features=3, factors=1),
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float16])
@pytest.mark.parametrize("family", RECONSTRUCTED)
def test_reconstruction_computes_in_the_dtype_of_the_params(family, dtype, wide):
    model = RECONSTRUCTED[family]()
    x = torch.randint(0, 250, (9, 3)).to(dtype)
    model.start_at(seed_rows(x.float(), 2))
    model = model.double() if wide else model
    params_dtype = torch.float64 if wide else torch.float32
    for noise in (0.4, 16.0, 20.0):
        actual = reconstruct(model, x, noise=noise)
        assert actual.dtype == params_dtype
        expected = reconstruct(model, x.to(params_dtype), noise=noise)
        torch.testing.assert_close(actual, expected)
    if dtype == torch.float16:
        x[2, 1] = torch.nan
        expected = conditional(model, x.to(params_dtype)).half()
        torch.testing.assert_close(conditional(model, x), expected)
