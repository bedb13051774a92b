"""M-steps against scikit-learn, stationarity, variance floors, and stepwise EM."""

import warnings

import pyro
import pytest
import torch
from pyro import distributions as dist
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Peer

from pyro_mixtures.distributions import (
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
)
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models import GaussianMixture, MixtureOfFactorAnalyzers

C, D, N = 3, 4, 120
F64 = torch.float64

PEERS = {
    "spherical": ("isotropic", False),
    "diag": ("diagonal", False),
    "full": ("full", False),
    "tied": ("full", True),
}


pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture
def x():
    return 2 * torch.randn(N, D, dtype=F64) + torch.arange(D) * torch.randint(3, (N, 1))


def start(model, x):
    """Distinct means at rows of the data, weights that differ."""
    with torch.no_grad():
        model.double()
        model.loc = x[:: N // C][:C].clone()
        model.weights = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
        if hasattr(model, "factor"):
            model.factor = torch.randn_like(model.factor)
    return model


def everything(model):
    """A truncated guide whose candidate sets hold all components."""
    return TruncatedPartition(model, components=C, candidates=C, neighbors=C)


def values(model):
    return {
        name: value.detach().clone()
        for name, value in model.component_distributions().arguments.items()
    }


def posterior(normals, weights, x):
    return (weights.log() + normals.log_prob(x.unsqueeze(1))).softmax(-1).detach()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", PEERS)
def test_em_steps_equal_those_of_scikit_learn(x, kind, steps):
    covariance, tied = PEERS[kind]
    model = start(GaussianMixture(components=C, features=D, covariance=covariance, tied=tied), x)
    ones = {
        "spherical": torch.ones(C),
        "diag": torch.ones(C, D),
        "full": torch.eye(D).expand(C, D, D),
    }
    peer = Peer(
        C,
        covariance_type=kind,
        weights_init=model.weights.detach().numpy(),
        means_init=model.loc.detach().numpy(),
        precisions_init=ones.get(kind, torch.eye(D)).double().numpy(),
        max_iter=steps,
        reg_covar=0.0,
        tol=0.0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        peer.fit(x.numpy())

    em = EM(model, everything(model), variance_floor=0.0, empty="keep")
    for _ in range(steps):
        em.step(x)
    new = values(model)
    if covariance == "full":
        found = new["scale_tril"] @ new["scale_tril"].mT
    else:
        found = new["scale"].square()
    for mine, theirs in (
        (model.weights, peer.weights_),
        (new["loc"], peer.means_),
        (found, peer.covariances_),
    ):
        torch.testing.assert_close(mine.detach(), torch.from_numpy(theirs), rtol=1e-6, atol=1e-8)
    assert -em.evaluate_loss(x) / N == pytest.approx(peer.score(x.numpy()), rel=1e-8)


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_tied_covariance_pools_the_components(x, covariance):
    model = start(GaussianMixture(components=C, features=D, covariance=covariance, tied=True), x)
    q = posterior(dist.MultivariateNormal(model.loc, torch.eye(D, dtype=F64)), model.weights, x)
    EM(model, everything(model), variance_floor=0.0, empty="keep").step(x)
    loc = (q.T @ x) / q.sum(0).unsqueeze(-1)
    away = x.unsqueeze(1) - loc
    pooled = torch.einsum("nc,nci,ncj->ij", q, away, away) / N
    new = values(model)
    torch.testing.assert_close(new["loc"], loc)
    if covariance == "full":
        torch.testing.assert_close(new["scale_tril"] @ new["scale_tril"].T, pooled)
    else:
        variance = pooled.diagonal()
        torch.testing.assert_close(
            new["scale"].square(), variance if covariance == "diagonal" else variance.mean()
        )


@pytest.mark.parametrize("family", ["isotropic", "diagonal", "full", "factor"])
def test_a_component_without_rows_does_not_change_a_tied_covariance(x, family):
    """The pooled variance is a mean over rows: an empty component adds nothing to it."""
    found = []
    for components in (C, C + 1):
        pyro.clear_param_store()
        torch.manual_seed(0)
        if family == "factor":
            model = MixtureOfFactorAnalyzers(
                components=components, features=D, factors=1, tied=True
            ).double()
        else:
            model = GaussianMixture(
                components=components, features=D, covariance=family, tied=True
            ).double()
        with torch.no_grad():
            model.loc = torch.cat([x[:C], torch.full((1, D), 1e4, dtype=F64)])[:components]
            if family == "factor":
                model.factor = torch.linspace(-1, 1, 4 * D, dtype=F64).reshape(4, D, 1)[:components]
        guide = FullPartition(model, components=components)
        EM(model, guide, variance_floor=0.0, empty="keep").step(x)
        tied = {"full": "scale_tril", "factor": "noise"}.get(family, "scale")
        found.append(values(model)[tied])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("family", ["isotropic", "diagonal", "full", "factor"])
def test_elbo_never_falls_when_an_empty_component_is_kept_under_a_tied_covariance(family):
    """``empty="keep"`` holds its mean: the shared covariance must be best *given that mean*."""
    x = torch.cat([torch.randn(40, 2, dtype=F64), torch.tensor([[9.0, 9.0]], dtype=F64)])
    if family == "factor":
        model = MixtureOfFactorAnalyzers(components=2, features=2, factors=1, tied=True).double()
    else:
        model = GaussianMixture(components=2, features=2, covariance=family, tied=True).double()
    with torch.no_grad():
        model.loc = torch.tensor([[0.0, 0.0], [5.0, 5.0]], dtype=F64)
        if family == "factor":
            model.factor = 0.1 * torch.ones(2, 2, 1, dtype=F64)
    em = EM(model, FullPartition(model, components=2), empty="keep")
    losses = torch.tensor([em.step(x) for _ in range(4)], dtype=F64)
    assert losses.diff().max() <= 1e-9, losses.tolist()


def test_no_factors_is_the_diagonal_mixture(x):
    analyzers = start(MixtureOfFactorAnalyzers(components=C, features=D, factors=0), x)
    first = [EM(analyzers, everything(analyzers), empty="keep").step(x) for _ in range(3)]
    pyro.clear_param_store()
    diagonal = start(GaussianMixture(components=C, features=D), x)
    second = [EM(diagonal, everything(diagonal), empty="keep").step(x) for _ in range(3)]
    assert first == pytest.approx(second, rel=1e-12)
    torch.testing.assert_close(analyzers.loc, diagonal.loc)
    torch.testing.assert_close(analyzers.noise, diagonal.scale.square())


def expected_log_density(x, q, old, new):
    """E log N(x | loc + A f, psi) with f given x under the ``old`` params.

    The M-step of factor analyzers maximizes it.
    """
    total = 0.0
    for c in range(C):
        loc, factor, noise = (
            value.expand(C, *value.shape[-k:])[c] for value, k in zip(old, (1, 2, 1), strict=True)
        )
        noise = noise.expand(D)
        beta = factor.T @ (factor @ factor.T + noise.diag()).inverse()
        mean = (x - loc) @ beta.T
        own = torch.eye(factor.shape[1], dtype=F64) - beta @ factor
        loc, factor, noise = (
            value.expand(C, *value.shape[-k:])[c] for value, k in zip(new, (1, 2, 1), strict=True)
        )
        noise = noise.expand(D)
        square = (x - loc - mean @ factor.T).square() + (factor @ own * factor).sum(-1)
        total = total - 0.5 * (q[:, c] @ (noise.log() + square / noise)).sum()
    return total


NOISES = {"own": (C, D), "per component": (C, 1), "tied": (D,), "one number": (1,)}


@pytest.mark.parametrize("shape", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize(
    "frozen", [(), ("loc",), ("factor",), ("noise",), ("loc", "factor")], ids=str
)
def test_factor_analyzers_step_is_stationary_in_what_is_free(x, shape, frozen):
    old = {
        "loc": x[:C].clone(),
        "factor": torch.randn(C, D, 2, dtype=F64),
        "noise": 0.5 + torch.rand(shape, dtype=F64),
    }

    def model(x):
        weights = pyro.param(
            "weights", torch.full((C,), 1 / C, dtype=F64), constraint=dist.constraints.simplex
        )
        loc = pyro.param("loc", old["loc"].clone())
        factor = pyro.param("factor", old["factor"].clone())
        noise = pyro.param("noise", old["noise"].clone(), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", FactorAnalyzers(loc, factor, noise)[z], obs=x)

    normals = dist.LowRankMultivariateNormal(old["loc"], old["factor"], old["noise"].expand(C, D))
    q = posterior(normals, torch.full((C,), 1 / C, dtype=F64), x)
    EM(model, FullPartition(model, components=C), variance_floor=0.0, freeze=frozen).step(x)
    new = {name: pyro.param(name).detach().clone().requires_grad_() for name in old}
    value = expected_log_density(x, q, old.values(), new.values())
    grads = dict(zip(new, torch.autograd.grad(value, [*new.values()]), strict=True))
    for name in old:
        if name in frozen:
            assert torch.equal(new[name], old[name]) or name == "noise"  # through exp and log
            torch.testing.assert_close(new[name].detach(), old[name])
        else:
            assert grads[name].abs().max() < 1e-8 * N


@pytest.mark.parametrize("frozen", ["weights", "loc", "scale"])
def test_frozen_params_stay_and_the_others_are_best_given_them(x, frozen):
    model = start(GaussianMixture(components=C, features=D), x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    q = posterior(dist.Normal(model.loc, model.scale).to_event(1), model.weights, x)
    loc = model.loc.detach() if frozen == "loc" else (q.T @ x) / q.sum(0).unsqueeze(-1)
    variance = torch.einsum("nc,ncd->cd", q, (x.unsqueeze(1) - loc).square()) / q.sum(0).unsqueeze(
        -1
    )
    EM(model, everything(model), variance_floor=0.0, freeze=[frozen]).step(x)
    kept = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
    assert [name.split("_")[0] for name in kept] == [frozen]
    expected = {"weights": q.mean(0), "loc": loc, "scale": variance.sqrt()}
    for name in expected.keys() - {frozen}:
        torch.testing.assert_close(getattr(model, name).detach(), expected[name])


@pytest.mark.parametrize("family", [IsotropicNormals, DiagonalNormals, FullNormals])
def test_constant_arguments_stay_and_the_params_are_best_given_them(x, family):
    """Arguments that are plain tensors are given, not unknown."""
    fixed = x[:C].clone()
    shape = {IsotropicNormals: (C,), DiagonalNormals: (C, D), FullNormals: (C, D, D)}[family]
    spread = (
        torch.eye(D, dtype=F64).expand(shape)
        if family is FullNormals
        else torch.ones(shape, dtype=F64)
    )
    constraint = (
        dist.constraints.lower_cholesky if family is FullNormals else dist.constraints.positive
    )

    def model(x):
        spread_ = pyro.param("spread", spread.clone(), constraint=constraint)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.full((C,), 1 / C, dtype=F64)))
            pyro.sample("x", family(fixed, spread_)[z], obs=x)

    q = (-0.5 * (x.unsqueeze(1) - fixed).square().sum(-1)).softmax(-1)
    EM(model, FullPartition(model, components=C), variance_floor=0.0).step(x)
    assert torch.equal(fixed, x[:C])
    away = x.unsqueeze(1) - fixed
    covariance = torch.einsum("nc,nci,ncj->cij", q, away, away) / q.sum(0).view(-1, 1, 1)
    new = pyro.param("spread").detach()
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    if family is FullNormals:
        torch.testing.assert_close(new @ new.mT, covariance)
    else:
        torch.testing.assert_close(
            new.square(), variance.mean(-1) if family is IsotropicNormals else variance
        )


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_variances_stop_at_the_floor(covariance):
    """Two points of twenty rows: the floor is a fraction of each feature's variance."""
    x = torch.tensor([[0.0, 0.0], [8.0, 4.0]], dtype=F64).repeat_interleave(20, 0)
    floor = 0.01 * x.var(0, unbiased=False)
    model = GaussianMixture(components=2, features=2, covariance=covariance).double()
    with torch.no_grad():
        model.loc = x[::20] + 1
    em = EM(model, FullPartition(model, components=2), variance_floor=0.01)
    for _ in range(3):
        em.step(x)
    if covariance == "full":
        expected = floor.diag().expand(2, 2, 2)
        torch.testing.assert_close(model.scale_tril @ model.scale_tril.mT, expected)
    else:
        expected = floor.mean().expand(2) if covariance == "isotropic" else floor.expand(2, 2)
        torch.testing.assert_close(model.scale.square(), expected)


# Stepwise EM.


def test_stepwise_em_at_full_rate_is_exact_em(x):
    found = []
    for step_size in (None, lambda t: 1.0):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model = start(MixtureOfFactorAnalyzers(components=C, features=D, factors=1), x)
        em = EM(model, everything(model), step_size=step_size, empty="keep")
        losses = [em.step(x) for _ in range(4)]
        found.append((torch.tensor(losses), *model.state_dict().values()))
    for exact, stepwise in zip(*found, strict=True):
        torch.testing.assert_close(stepwise, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["diagonal", "full", "factor"])
def test_stepwise_em_on_minibatches_comes_near_the_exact_optimum(family):
    truth = 6 * torch.eye(3, dtype=F64)
    x = truth[torch.randint(3, (300,))] + torch.randn(300, 3, dtype=F64)
    log_evidence = []
    for step_size in (None, lambda t: (t + 1) ** -0.7):
        pyro.clear_param_store()
        if family == "factor":
            model = MixtureOfFactorAnalyzers(components=3, features=3, factors=1).double()
        else:
            model = GaussianMixture(components=3, features=3, covariance=family).double()
        with torch.no_grad():
            model.loc = truth + 0.5
        em = EM(model, FullPartition(model, components=3), step_size=step_size)
        for _ in range(6):
            for index in torch.randperm(300).split(60) if step_size else [torch.arange(300)]:
                em.step(x[index], index=index, size=300)
        log_evidence.append(-em.evaluate_loss(x) / 300)
    assert log_evidence[1] == pytest.approx(log_evidence[0], abs=0.03)
