"""Standard errors against closed forms and autograd."""

import math

import pyro
import pytest
import torch
from torch.distributions import constraints

from pyro_mixtures.distributions import (
    DiagonalNormals,
    IsotropicNormals,
    LogisticRegressions,
    MixtureWeights,
    PoissonRegressions,
)
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.errors import NumericalError, OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.infer.uncertainty.observed_information import (
    observed_information,
    standard_errors,
)
from pyro_mixtures.poutine import data_plate
from tests.infer.uncertainty.programs import DTYPES, F64, N, alone, climb, groups, two_gaussians

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("robust", [False, True])
def test_one_gaussian_has_textbook_errors(dtype, robust):
    x = (
        torch.randn(N, 2, dtype=F64, device="cpu")
        * torch.tensor([1e-4, 300.0], dtype=F64, device="cpu")
    ).to(dtype)
    deviation = x.std(0, correction=0)

    def model(x):
        loc = pyro.param("loc", x.mean(0, keepdim=True))
        scale = pyro.param("scale", deviation.unsqueeze(0), constraint=constraints.positive)
        alone(DiagonalNormals(loc, scale), x)

    result = observed_information(model, x, robust=robust)
    unit = ((x - x.mean(0)) / deviation).double()
    # Of sandwiches: the fourth moment in place of a Gaussian's.
    excess = (unit.pow(4).mean(0) - 1) / 2 if robust else 1.0
    spread = deviation.double()
    near = {"rtol": 1e-6 if dtype == F64 else 1e-4, "atol": 0}
    torch.testing.assert_close(result.standard_errors["loc"][0], spread / math.sqrt(N), **near)
    torch.testing.assert_close(
        result.standard_errors["scale"][0], spread * (excess / (2 * N)) ** 0.5, **near
    )
    assert result.names == ("loc[0, 0]", "loc[0, 1]", "scale[0, 0]", "scale[0, 1]")
    assert result.covariance.shape == (4, 4)
    assert result.information.dtype == F64
    normal = torch.distributions.Normal(x.mean(0).double(), spread)
    assert result.log_likelihood == pytest.approx(
        normal.log_prob(x.double()).sum().item(), rel=1e-5
    )


def test_weights_of_separated_clusters_have_multinomial_errors():
    """Clusters far apart: the covariance is that of a multinomial, of rank C - 1."""
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    x = torch.repeat_interleave(
        torch.tensor([0.0, 100.0, 200.0], dtype=F64), (N * shares).round().long()
    ).unsqueeze(-1)

    def model(x):
        weights = pyro.param("weights", shares, constraint=constraints.simplex)
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(weights))
            loc = torch.tensor([[0.0], [100.0], [200.0]], dtype=F64)
            pyro.sample("x", IsotropicNormals(loc, torch.ones(3, dtype=F64))[z], obs=x)

    result = observed_information(model, x)
    expected = (shares.diag() - shares.outer(shares)) / N
    torch.testing.assert_close(result.covariance, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        result.standard_errors["weights"], expected.diagonal().sqrt(), rtol=1e-6, atol=0
    )
    assert result.information.shape == (2, 2)
    odds = result.derived(lambda params: (params["weights"][1:] / params["weights"][0]).log())
    torch.testing.assert_close(odds.value, (shares[1:] / shares[0]).log(), rtol=1e-6, atol=0)
    counts = N * shares  # the odds of a multinomial: 1 / n_k + 1 / n_0, and 1 / n_0 between them
    torch.testing.assert_close(
        odds.covariance, (1 / counts[1:]).diag() + 1 / counts[0], rtol=1e-5, atol=0
    )
    torch.testing.assert_close(odds.standard_error, odds.covariance.diagonal().sqrt())
    total = result.derived(lambda params: params["weights"].sum())
    assert total.value.shape == total.standard_error.shape == ()
    assert float(total.standard_error) < 1e-6
    with pytest.raises(NumericalError, match="at the estimates"):
        result.derived(lambda params: params["weights"][0] / 0)


@pytest.mark.parametrize("family", [LogisticRegressions, PoissonRegressions])
@pytest.mark.parametrize("robust", [False, True])
def test_regressions_agree_with_generalized_linear_models(family, robust):
    u = torch.randn(N, 2, dtype=F64)
    y = (u[:, 0] + torch.randn(N, dtype=F64) > 0).double()

    def single(u, y):
        weight, bias = (
            pyro.param("weight", torch.zeros(1, 2, dtype=F64)),
            pyro.param("bias", torch.zeros(1, dtype=F64)),
        )
        with data_plate(u):
            z = pyro.sample("z", MixtureWeights(torch.ones(1, dtype=F64)))
            pyro.sample("y", family(u, weight, bias)[z], obs=y)

    climb(single, u, y)
    result = observed_information(single, u, y, robust=robust)
    design = torch.cat([u, torch.ones(N, 1, dtype=F64)], -1)
    beta = torch.cat([result.params["weight"][0], result.params["bias"]])
    eta = design @ beta
    mean = eta.sigmoid() if family is LogisticRegressions else eta.exp()
    variance = mean * (1 - mean) if family is LogisticRegressions else mean
    expected = torch.linalg.inv(design.T @ (variance.unsqueeze(-1) * design))
    if robust:
        scores = (y - mean).unsqueeze(-1) * design
        expected = expected @ (scores.T @ scores) @ expected
    torch.testing.assert_close(result.covariance, expected, rtol=1e-5, atol=1e-9)
    errors = standard_errors(single, u, y, robust=robust)
    torch.testing.assert_close(errors["bias"], expected.diagonal()[2:].sqrt(), rtol=1e-5, atol=0)


def test_gates_of_known_clusters_agree_with_multinomial_logit():
    u = torch.randn(200, 2, dtype=F64)
    z = GatedWeights(
        u, torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=F64), torch.tensor([0.3, 0.0], dtype=F64)
    ).sample()
    x = 100.0 * z.double().unsqueeze(-1)

    def model(u, x):
        gate = GatedWeights(
            u,
            pyro.param("weight", torch.zeros(2, 2, dtype=F64)),
            pyro.param("bias", torch.zeros(2, dtype=F64)),
        )
        with data_plate(u):
            z = pyro.sample("z", gate)
            loc = 100.0 * torch.arange(3, dtype=F64).unsqueeze(-1)
            pyro.sample("x", IsotropicNormals(loc, torch.ones(3, dtype=F64))[z], obs=x)

    EM(model, FullPartition(model, components=3)).step(u, x)
    result = observed_information(model, u, x)
    theta = torch.cat([result.params["weight"].reshape(-1), result.params["bias"]])

    def loss(t):
        gate = GatedWeights(u, t[:4].reshape(2, 2), t[4:], validate_args=False)
        return -gate.log_prob(z).sum()

    expected = torch.linalg.inv(torch.autograd.functional.hessian(loss, theta))
    torch.testing.assert_close(result.covariance, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.meta
@pytest.mark.parametrize("robust", [False, True])
def test_two_components_agree_with_autograd(robust):
    """In other coordinates: one logit, means, log scales; at a maximum no matter."""
    x = groups()
    climb(two_gaussians, x)
    result = observed_information(two_gaussians, x, robust=robust)
    p = result.params
    logit = (p["weights"][1] / p["weights"][0]).log().reshape(1)
    theta = torch.cat([logit, p["loc"].reshape(-1), p["scale"].log().reshape(-1)])

    def each(t):
        prior = torch.stack([(-t[0]).sigmoid(), t[0].sigmoid()]).log()
        normal = torch.distributions.Normal(t[1:3], t[3:].exp(), validate_args=False)
        return (prior + normal.log_prob(x)).logsumexp(-1)

    inverse = torch.linalg.inv(-torch.autograd.functional.hessian(lambda t: each(t).sum(), theta))
    if robust:
        scores = torch.autograd.functional.jacobian(each, theta)
        inverse = inverse @ scores.T @ scores @ inverse
    torch.testing.assert_close(
        result.standard_errors["loc"][:, 0], inverse.diagonal()[1:3].sqrt(), rtol=1e-5, atol=0
    )
    log_scale = inverse.diagonal()[3:].sqrt()
    torch.testing.assert_close(
        result.standard_errors["scale"][:, 0], p["scale"][:, 0] * log_scale, rtol=1e-5, atol=0
    )
    share = float(p["weights"].prod() * inverse[0, 0].sqrt())
    assert result.standard_errors["weights"].tolist() == pytest.approx([share] * 2, rel=1e-5)


def test_chunks_agree_and_params_are_unchanged():
    x = groups()
    climb(two_gaussians, x)
    before = {name: leaf.clone() for name, leaf in pyro.get_param_store().named_parameters()}
    whole, chunked = (
        observed_information(two_gaussians, x),
        observed_information(two_gaussians, x, chunk=37),
    )
    torch.testing.assert_close(chunked.covariance, whole.covariance)
    for name, leaf in pyro.get_param_store().named_parameters():
        assert torch.equal(leaf, before[name])
        assert leaf.grad is None
    assert torch.get_default_dtype() == torch.float32


def test_standard_errors_agree_with_the_spread_of_estimates():
    """Over data sets drawn from one mixture."""
    result, errors = [], []
    for _ in range(8):
        pyro.clear_param_store()
        x = groups(400)
        climb(two_gaussians, x)
        result.append(pyro.param("loc").detach()[:, 0].clone())
        errors.append(standard_errors(two_gaussians, x)["loc"][:, 0])
    scatter, reported = torch.stack(result).std(0), torch.stack(errors).mean(0)
    assert bool(((scatter / reported).log().abs() < math.log(2.2)).all())


def test_frozen_params_have_no_standard_errors():
    x = groups()
    climb(two_gaussians, x)
    all_of_them = standard_errors(two_gaussians, x)
    result = observed_information(two_gaussians, x, freeze=["weights", "scale"])
    assert set(result.standard_errors) == {"loc"}
    assert bool((result.standard_errors["loc"] < all_of_them["loc"]).all())
    pyro.get_param_store().get_state()["params"]["scale"].requires_grad_(False)
    assert set(standard_errors(two_gaussians, x)) == {"weights", "loc"}
    with pytest.raises(OptionError, match="no such params"):
        observed_information(two_gaussians, x, freeze=["nothing"])
    with pytest.raises(OptionError, match="no params are left"):
        observed_information(two_gaussians, x, freeze=["weights", "scale", "loc"])


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("times", [3, 10**7])
def test_weights_are_counts_of_rows(robust, times):
    """A weight has the effect of that many copies of the row."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(60, 1, generator=generator, dtype=torch.float64) * 2

    def model(x, weight=None):
        loc = pyro.param("loc", x.mean(0, keepdim=True))
        scale = torch.ones(1, dtype=torch.float64)
        row_weight = 1.0 if weight is None else weight
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=row_weight):
            z = pyro.sample("z", MixtureWeights(torch.ones(1, dtype=torch.float64)))
            pyro.sample("x", IsotropicNormals(loc, scale)[z], obs=x)

    once = standard_errors(model, x, robust=robust)["loc"]
    weight = torch.full((60,), float(times), dtype=torch.float64)
    many = standard_errors(model, x, weight, robust=robust)["loc"]
    torch.testing.assert_close(many, once / times**0.5, rtol=1e-6, atol=0)
