"""Standard errors against closed forms, autograd's and differenced Hessians, and what cannot be identified."""

import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from scipy.optimize import minimize
from torch.distributions import constraints

from pyro_mixtures.distributions import (
    Categoricals,
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
    LinearRegressions,
    LogisticRegressions,
    MixtureWeights,
    PoissonRegressions,
    Poissons,
)
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.errors import ModelError, NumericalError, OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.infer.uncertainty.exact_likelihood import ExactLikelihood
from pyro_mixtures.infer.uncertainty.observed_information import (
    _differences,
    observed_information,
    standard_errors,
)
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.poutine import data_plate

pytestmark = pytest.mark.usefixtures("on_one_thread")

F64 = torch.float64
N = 80
DTYPES = [torch.float32, torch.float64]


def alone(family, *rows):
    """Rows of one component."""
    with data_plate(rows[-1]):
        z = pyro.sample("z", MixtureWeights(torch.ones(1, device="cpu")))
        pyro.sample("x", family[z], obs=rows[-1])


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("robust", [False, True])
def test_one_gaussian_has_the_textbooks_errors(dtype, robust):
    x = (
        torch.randn(N, 2, dtype=F64, device="cpu")
        * torch.tensor([1e-4, 300.0], dtype=F64, device="cpu")
    ).to(dtype)
    deviation = x.std(0, correction=0)

    def model(x):
        loc = pyro.param("loc", x.mean(0, keepdim=True))
        scale = pyro.param("scale", deviation.unsqueeze(0), constraint=constraints.positive)
        alone(DiagonalNormals(loc, scale), x)

    found = observed_information(model, x, robust=robust)
    unit = ((x - x.mean(0)) / deviation).double()
    # Of sandwiches: the fourth moment in place of a Gaussian's.
    excess = (unit.pow(4).mean(0) - 1) / 2 if robust else 1.0
    spread = deviation.double()
    near = {"rtol": 1e-6 if dtype == F64 else 1e-4, "atol": 0}
    torch.testing.assert_close(found.standard_errors["loc"][0], spread / math.sqrt(N), **near)
    torch.testing.assert_close(
        found.standard_errors["scale"][0], spread * (excess / (2 * N)) ** 0.5, **near
    )
    assert found.names == ("loc[0, 0]", "loc[0, 1]", "scale[0, 0]", "scale[0, 1]")
    assert found.covariance.shape == (4, 4)
    assert found.information.dtype == F64
    normal = torch.distributions.Normal(x.mean(0).double(), spread)
    assert found.log_likelihood == pytest.approx(normal.log_prob(x.double()).sum().item(), rel=1e-5)


def test_weights_of_observed_groups_have_binomial_errors():
    """Groups far apart: the simplex has one direction less, and its covariance is the multinomial's."""
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

    found = observed_information(model, x)
    expected = (shares.diag() - shares.outer(shares)) / N
    torch.testing.assert_close(found.covariance, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        found.standard_errors["weights"], expected.diagonal().sqrt(), rtol=1e-6, atol=0
    )
    assert found.information.shape == (2, 2)
    odds = found.derived(lambda params: (params["weights"][1:] / params["weights"][0]).log())
    torch.testing.assert_close(odds.value, (shares[1:] / shares[0]).log(), rtol=1e-6, atol=0)
    counts = N * shares  # the odds of a multinomial: 1 / n_k + 1 / n_0, and 1 / n_0 between them
    torch.testing.assert_close(
        odds.covariance, (1 / counts[1:]).diag() + 1 / counts[0], rtol=1e-5, atol=0
    )
    torch.testing.assert_close(odds.standard_error, odds.covariance.diagonal().sqrt())
    total = found.derived(lambda params: params["weights"].sum())
    assert total.value.shape == total.standard_error.shape == ()
    assert float(total.standard_error) < 1e-6
    with pytest.raises(NumericalError, match="at the estimates"):
        found.derived(lambda params: params["weights"][0] / 0)


def climb(model, *rows):
    """Put the params at the maximum nearby, by scipy."""
    likelihood = ExactLikelihood(model, rows, "z", None, frozenset(), None)

    def loss(u):
        slope, log_evidence = likelihood.slope(torch.from_numpy(u))
        return -log_evidence.sum().item(), -slope.numpy()

    start = likelihood.params.start.numpy()
    u = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 300},
    ).x
    with torch.no_grad():
        parts = torch.from_numpy(u).split(likelihood.params.sizes)
        for handle, part in zip(likelihood.params.handles, parts, strict=True):
            handle.leaf.copy_(part.reshape(handle.leaf.shape))


@pytest.mark.parametrize("family", [LogisticRegressions, PoissonRegressions])
@pytest.mark.parametrize("robust", [False, True])
def test_regressions_have_those_of_generalised_linear_models(family, robust):
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
    found = observed_information(single, u, y, robust=robust)
    design = torch.cat([u, torch.ones(N, 1, dtype=F64)], -1)
    beta = torch.cat([found.params["weight"][0], found.params["bias"]])
    eta = design @ beta
    mean = eta.sigmoid() if family is LogisticRegressions else eta.exp()
    variance = mean * (1 - mean) if family is LogisticRegressions else mean
    expected = torch.linalg.inv(design.T @ (variance.unsqueeze(-1) * design))
    if robust:
        scores = (y - mean).unsqueeze(-1) * design
        expected = expected @ (scores.T @ scores) @ expected
    torch.testing.assert_close(found.covariance, expected, rtol=1e-5, atol=1e-9)
    errors = standard_errors(single, u, y, robust=robust)
    torch.testing.assert_close(errors["bias"], expected.diagonal()[2:].sqrt(), rtol=1e-5, atol=0)


def test_gates_of_known_groups_have_those_of_the_multinomial_logit():
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
    found = observed_information(model, u, x)
    theta = torch.cat([found.params["weight"].reshape(-1), found.params["bias"]])

    def loss(t):
        gate = GatedWeights(u, t[:4].reshape(2, 2), t[4:], validate_args=False)
        return -gate.log_prob(z).sum()

    expected = torch.linalg.inv(torch.autograd.functional.hessian(loss, theta))
    torch.testing.assert_close(found.covariance, expected, rtol=1e-5, atol=1e-8)


def two_gaussians(x):
    weights = pyro.param(
        "weights", torch.tensor([0.4, 0.6], dtype=F64, device="cpu"), constraint=constraints.simplex
    )
    loc = pyro.param("loc", torch.tensor([[-1.0], [1.5]], dtype=F64, device="cpu"))
    scale = pyro.param(
        "scale", torch.ones(2, 1, dtype=F64, device="cpu"), constraint=constraints.positive
    )
    with data_plate(x):
        z = pyro.sample("z", MixtureWeights(weights))
        pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)


def groups(rows=300):
    which = (torch.arange(rows, device="cpu") % 5 < 2).double().unsqueeze(-1)
    return torch.randn(rows, 1, dtype=F64, device="cpu") + 1.8 - 3.6 * which


@pytest.mark.meta
@pytest.mark.parametrize("robust", [False, True])
def test_two_components_have_those_of_plain_autograd(robust):
    """In other coordinates: one logit, means, log scales; at a maximum no matter."""
    x = groups()
    climb(two_gaussians, x)
    found = observed_information(two_gaussians, x, robust=robust)
    p = found.params
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
        found.standard_errors["loc"][:, 0], inverse.diagonal()[1:3].sqrt(), rtol=1e-5, atol=0
    )
    log_scale = inverse.diagonal()[3:].sqrt()
    torch.testing.assert_close(
        found.standard_errors["scale"][:, 0], p["scale"][:, 0] * log_scale, rtol=1e-5, atol=0
    )
    share = float(p["weights"].prod() * inverse[0, 0].sqrt())
    assert found.standard_errors["weights"].tolist() == pytest.approx([share] * 2, rel=1e-5)


def test_chunks_change_nothing_and_params_stay_as_they_are():
    x = groups()
    climb(two_gaussians, x)
    before = {name: leaf.clone() for name, leaf in pyro.get_param_store().named_parameters()}
    whole, parts = (
        observed_information(two_gaussians, x),
        observed_information(two_gaussians, x, chunk=37),
    )
    torch.testing.assert_close(parts.covariance, whole.covariance)
    for name, leaf in pyro.get_param_store().named_parameters():
        assert torch.equal(leaf, before[name])
        assert leaf.grad is None
    assert torch.get_default_dtype() == torch.float32


def test_errors_are_how_estimates_scatter():
    """Over data sets drawn from one mixture."""
    found, errors = [], []
    for _ in range(8):
        pyro.clear_param_store()
        x = groups(400)
        climb(two_gaussians, x)
        found.append(pyro.param("loc").detach()[:, 0].clone())
        errors.append(standard_errors(two_gaussians, x)["loc"][:, 0])
    scatter, told = torch.stack(found).std(0), torch.stack(errors).mean(0)
    assert bool(((scatter / told).log().abs() < math.log(2.2)).all())


# Every family: its own gradient kernels against differences of its log densities


def start(*shape, positive=False):
    value = torch.randn(*shape, dtype=F64)
    return 0.5 + value.abs() if positive else value


U = torch.randn(30, 2, dtype=F64, generator=torch.Generator().manual_seed(4))
P = {"constraint": constraints.positive}
FAMILIES = {
    "isotropic": lambda: IsotropicNormals(
        pyro.param("a", start(2, 2)), pyro.param("b", start(2, positive=True), **P)
    ),
    "diagonal": lambda: DiagonalNormals(
        pyro.param("a", start(2, 2)), pyro.param("b", start(2, 2, positive=True), **P)
    ),
    "full": lambda: FullNormals(
        pyro.param("a", start(2, 2)),
        pyro.param(
            "b", torch.eye(2, dtype=F64).repeat(2, 1, 1), constraint=constraints.lower_cholesky
        ),
    ),
    "factors": lambda: FactorAnalyzers(
        pyro.param("a", start(2, 2)),
        pyro.param("b", start(2, 2, 1)),
        pyro.param("c", start(2, 2, positive=True), **P),
    ),
    "poisson": lambda: Poissons(pyro.param("a", start(2, 2, positive=True), **P)),
    "linear": lambda: LinearRegressions(
        U,
        pyro.param("a", start(2, 2)),
        pyro.param("b", start(2)),
        pyro.param("c", start(2, positive=True), **P),
        ridge=0.1,
    ),
    "categorical": lambda: Categoricals(
        pyro.param(
            "a", start(2, 3, positive=True).log_softmax(-1).exp(), constraint=constraints.simplex
        )
    ),
}


def rows_of(kind):
    g = torch.Generator().manual_seed(7)
    x = torch.randn(30, 2, dtype=F64, generator=g)
    return {
        "poisson": x.abs().ceil(),
        "linear": x[:, 0],
        "categorical": (x[:, 0].abs() * 2).long().clamp_max(2),
    }.get(kind, x)


@pytest.mark.parametrize("kind", FAMILIES)
def test_hessians_of_all_families_are_those_of_their_evidence(kind):
    """Second differences of the evidence, which no gradient enters; anywhere, not at a maximum."""

    def model(x):
        family = FAMILIES[kind]()
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(torch.tensor([0.4, 0.6], dtype=F64)))
            pyro.sample("x", family[z], obs=x)

    x = rows_of(kind)
    model(x)
    likelihood = ExactLikelihood(model, (x,), "z", None, frozenset(), None)
    u = likelihood.params.start
    hessian, scores = _differences(likelihood, u, likelihood.log_evidence(u))
    h, unit = 1e-4, torch.eye(len(u), dtype=F64)
    total = lambda v: float(likelihood.log_evidence(v).sum())  # noqa: E731
    for i in (0, len(u) // 2, len(u) - 1):
        for j in range(len(u)):
            a, b = h * unit[i], h * unit[j]
            corner = total(u + a + b) - total(u + a - b) - total(u - a + b) + total(u - a - b)
            assert float(hessian[i, j]) == pytest.approx(
                corner / (4 * h * h), abs=2e-4 * float(hessian.abs().max())
            )
    torch.testing.assert_close(scores.sum(0), likelihood.slope(u)[0], rtol=1e-6, atol=1e-6)


# What the program may be


def test_modules_in_single_precision_are_computed_in_double():
    x = groups(120).float()
    model = GaussianMixture(components=2, features=1)
    with torch.no_grad():
        model.loc = torch.tensor([[-1.5], [1.5]])
    climb(model, x)
    found = observed_information(model, x)
    assert set(found.standard_errors) == {"weights", "loc", "scale"}
    wide = observed_information(model.double(), x.double())
    torch.testing.assert_close(found.covariance, wide.covariance)
    assert all(e.dtype == F64 and bool((e > 0).all()) for e in found.standard_errors.values())


def test_stock_distributions_will_do():
    x = groups(150)

    def stock(x):
        weights = pyro.param(
            "weights", torch.tensor([0.4, 0.6], dtype=F64), constraint=constraints.simplex
        )
        loc = pyro.param("loc", torch.tensor([-1.0, 1.5], dtype=F64))
        scale = pyro.param("scale", torch.ones(2, dtype=F64), constraint=constraints.positive)
        with data_plate(x):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    climb(two_gaussians, x)
    found = observed_information(two_gaussians, x)
    other = observed_information(stock, x[:, 0]) if set_flat() else None
    torch.testing.assert_close(found.covariance, other.covariance, rtol=1e-6, atol=1e-9)


def set_flat():
    """The same params, without the features' dimension."""
    store = pyro.get_param_store()
    for name in ("loc", "scale"):
        store[name] = store[name].detach()[:, 0]
    return True


def test_row_weights_are_copies_and_masked_rows_are_none():
    x = groups(100)
    times = torch.arange(100) % 3 + 1.0

    def weighted(x):
        with pyro.poutine.scale(scale=times.to(x)):
            two_gaussians(x)

    def masked(x):
        with pyro.poutine.mask(mask=times > 1):
            two_gaussians(x)

    copies = x.repeat_interleave(times.long(), 0)
    climb(two_gaussians, copies)
    expected = observed_information(two_gaussians, copies)
    torch.testing.assert_close(
        observed_information(weighted, x).covariance, expected.covariance, rtol=1e-6, atol=1e-9
    )
    climb(two_gaussians, x[times > 1])
    expected = observed_information(two_gaussians, x[times > 1])
    for robust in (False, True):
        expected = observed_information(two_gaussians, x[times > 1], robust=robust)
        found = observed_information(masked, x, robust=robust)
        torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-6, atol=1e-9)


def test_frozen_params_are_known_for_certain():
    x = groups()
    climb(two_gaussians, x)
    all_of_them = standard_errors(two_gaussians, x)
    found = observed_information(two_gaussians, x, freeze=["weights", "scale"])
    assert set(found.standard_errors) == {"loc"}
    assert bool((found.standard_errors["loc"] < all_of_them["loc"]).all())
    pyro.get_param_store().get_state()["params"]["scale"].requires_grad_(False)
    assert set(standard_errors(two_gaussians, x)) == {"weights", "loc"}
    with pytest.raises(OptionError, match="no such params"):
        observed_information(two_gaussians, x, freeze=["nothing"])
    with pytest.raises(OptionError, match="no params are left"):
        observed_information(two_gaussians, x, freeze=["weights", "scale", "loc"])


# What cannot be told


def test_gates_need_a_reference_and_no_component_without_rows():
    u = torch.randn(N, 1, dtype=F64)

    def model(u, x, reference=True):
        shape = (2 - reference, 1)
        weight, bias = (
            pyro.param("weight", torch.zeros(shape, dtype=F64)),
            pyro.param("bias", torch.zeros(shape[0])),
        )
        with data_plate(u):
            z = pyro.sample("z", GatedWeights(u, weight, bias.to(F64), reference=reference))
            loc = torch.tensor([[-1.0], [1.0]], dtype=F64)
            pyro.sample("x", IsotropicNormals(loc, torch.ones(2, dtype=F64))[z], obs=x)

    with pytest.raises(
        NumericalError, match=r"\['bias', 'weight'\] are not identified: in 2 directions"
    ):
        observed_information(lambda u, x: model(u, x, False), u, u)
    pyro.clear_param_store()
    model(u, u)
    with torch.no_grad():
        pyro.param("bias").fill_(-torch.inf)
    with pytest.raises(NumericalError, match=r"params \['bias'\] are not finite"):
        observed_information(model, u, u)


def test_params_that_are_not_identified_are_named():
    """Logits know no common constant; factors are known up to a rotation; a param may have no influence."""
    x = torch.randn(N, 3, dtype=F64)

    def logits(x):
        with data_plate(x):
            z = pyro.sample(
                "z", MixtureWeights(logits=pyro.param("logits", torch.zeros(2, dtype=F64)))
            )
            loc = torch.tensor([[-1.0] * 3, [1.0] * 3], dtype=F64)
            pyro.sample("x", IsotropicNormals(loc, torch.ones(2, dtype=F64))[z], obs=x)

    with pytest.raises(NumericalError, match=r"\['logits'\] are not identified: in 1 direction"):
        observed_information(logits, x)

    def unused(x):
        pyro.param("unused", torch.zeros(2, dtype=F64))
        alone(
            IsotropicNormals(pyro.param("mean", x.mean(0, keepdim=True)), torch.ones(1, dtype=F64)),
            x,
        )

    with pytest.raises(NumericalError, match=r"\['unused'\] are not identified: in 2"):
        observed_information(unused, x)
    assert set(standard_errors(unused, x, freeze=["unused"])) == {"mean"}


def test_factors_are_known_up_to_a_rotation():
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(300, 6, dtype=F64, generator=generator)
    x = (
        torch.randn(300, 2, dtype=F64, generator=generator)
        @ (2 * torch.randn(2, 6, dtype=F64, generator=generator))
        + noise
    )

    def single(x):
        loc = pyro.param("loc", x.mean(0, keepdim=True))
        factor = pyro.param("factor", torch.randn(1, 6, 2, dtype=F64))
        spread = pyro.param("noise", torch.ones(1, 6, dtype=F64), constraint=constraints.positive)
        alone(FactorAnalyzers(loc, factor, spread), x)

    climb(single, x)
    with pytest.raises(NumericalError, match=r"\['factor'\] are not identified: in 1 direction"):
        observed_information(single, x)


def test_points_that_are_no_maximum_are_told():
    x = groups()
    climb(two_gaussians, x)
    with torch.no_grad():
        pyro.param("loc").add_(0.05)
    with pytest.warns(RuntimeWarning, match="can still rise by about"):
        observed_information(two_gaussians, x)
    with torch.no_grad():
        pyro.param("loc").fill_(0.1)  # between the groups: a saddle
        pyro.get_param_store()["scale"] = torch.full((2, 1), 0.5, dtype=F64)
    with pytest.raises(NumericalError, match="at no maximum"):
        observed_information(two_gaussians, x)


def test_priors_outside_the_plate_are_refused():
    def model(x):
        pyro.factor("prior", pyro.param("loc", x.mean(0, keepdim=True)).sum())
        alone(IsotropicNormals(pyro.param("loc"), torch.ones(1)), x)

    with pytest.raises(ModelError, match="outside the data plate"):
        observed_information(model, torch.randn(5, 1))


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("times", [3, 10**7])
def test_weights_are_counts_of_rows(robust, times):
    """Errors are those of so many copies, whatever their number is."""
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
