"""The exact likelihood: derivatives of all families, and the programs that it accepts."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch.distributions import constraints

from pyro_mixtures.distributions import (
    Categoricals,
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
    LinearRegressions,
    MixtureWeights,
    Poissons,
)
from pyro_mixtures.errors import ModelError
from pyro_mixtures.infer.uncertainty.exact_likelihood import ExactLikelihood
from pyro_mixtures.infer.uncertainty.observed_information import (
    central_differences,
    observed_information,
)
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.poutine import data_plate
from tests.infer.uncertainty.programs import F64, alone, climb, groups, two_gaussians

pytestmark = pytest.mark.usefixtures("on_one_thread")


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
def test_hessians_of_all_families_agree_with_second_differences(kind):
    """Second differences of the log evidence use no gradient, and the point is no maximum."""

    def model(x):
        family = FAMILIES[kind]()
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(torch.tensor([0.4, 0.6], dtype=F64)))
            pyro.sample("x", family[z], obs=x)

    x = rows_of(kind)
    model(x)
    likelihood = ExactLikelihood(model, (x,), "z", None, frozenset(), None)
    u = likelihood.params.start
    hessian, scores = central_differences(likelihood, u, likelihood.log_evidence(u))
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


def test_modules_in_single_precision_are_computed_in_double():
    x = groups(120).float()
    model = GaussianMixture(components=2, features=1)
    with torch.no_grad():
        model.loc = torch.tensor([[-1.5], [1.5]])
    climb(model, x)
    result = observed_information(model, x)
    assert set(result.standard_errors) == {"weights", "loc", "scale"}
    wide = observed_information(model.double(), x.double())
    torch.testing.assert_close(result.covariance, wide.covariance)
    assert all(e.dtype == F64 and bool((e > 0).all()) for e in result.standard_errors.values())


def test_stock_distributions_are_accepted():
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
    result = observed_information(two_gaussians, x)
    other = observed_information(stock, x[:, 0]) if set_flat() else None
    torch.testing.assert_close(result.covariance, other.covariance, rtol=1e-6, atol=1e-9)


def set_flat():
    """The same params, without the features' dimension."""
    store = pyro.get_param_store()
    for name in ("loc", "scale"):
        store[name] = store[name].detach()[:, 0]
    return True


def test_row_weights_are_counts_and_masked_rows_are_ignored():
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
        result = observed_information(masked, x, robust=robust)
        torch.testing.assert_close(result.covariance, expected.covariance, rtol=1e-6, atol=1e-9)


def test_priors_outside_the_plate_are_refused():
    def model(x):
        pyro.factor("prior", pyro.param("loc", x.mean(0, keepdim=True)).sum())
        alone(IsotropicNormals(pyro.param("loc"), torch.ones(1)), x)

    with pytest.raises(ModelError, match="outside the data plate"):
        observed_information(model, torch.randn(5, 1))
