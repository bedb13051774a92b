"""PSIS-LOO of a Bayesian mixture agrees with refits that leave each row out."""

import math
import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.poutine import data_plate

pytestmark = [pytest.mark.arviz, pytest.mark.usefixtures("on_one_thread")]

ROWS = 40
# Prior means, far enough apart that the posterior has one mode.
CENTERS = torch.tensor([-2.0, 1.0], device="cpu")
POINTWISE = "loo_i" if az.__version__.startswith("0.") else "elpd_i"


def model(x, index=None, size=None):
    """Two unknown means under normal priors: a two-dimensional posterior for a grid."""
    with pyro.plate("cluster", 2):
        loc = pyro.sample("loc", dist.Normal(CENTERS, 1.0))
    with data_plate(x, index, size):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def rows() -> torch.Tensor:
    draws = torch.randn(ROWS, generator=torch.Generator("cpu").manual_seed(3), device="cpu")
    return draws + torch.where(torch.arange(ROWS) % 5 < 2, *CENTERS)


class Exact:
    """The posterior on a grid of both means."""

    def __init__(self, x, points: int = 241):
        self.grid = torch.linspace(-5.0, 4.0, points, dtype=torch.float64)
        densities = dist.Normal(self.grid.unsqueeze(-1), 1.0).log_prob(x.double())  # (points, N)
        first, second = (
            math.log(0.4) + densities.unsqueeze(1),
            math.log(0.6) + densities.unsqueeze(0),
        )
        self.terms = torch.logaddexp(first, second).flatten(0, 1)  # (points^2, N)
        first, second = (dist.Normal(center, 1.0).log_prob(self.grid) for center in CENTERS)
        self.prior = (first.unsqueeze(1) + second).flatten()

    def log_posterior(self, left_out: int | None = None) -> torch.Tensor:
        terms = self.terms.sum(1) - (0.0 if left_out is None else self.terms[:, left_out])
        return (self.prior + terms).log_softmax(0)

    def left_out(self) -> np.ndarray:
        """log p(x_n | all other rows) (N,), from the posterior without each row."""
        count = range(self.terms.shape[1])
        return np.array(
            [float((self.log_posterior(n) + self.terms[:, n]).logsumexp(0)) for n in count]
        )

    def draw(self, count: int, generator) -> torch.Tensor:
        """Means (count, 2), in float32."""
        cells = torch.multinomial(
            self.log_posterior().exp(), count, replacement=True, generator=generator
        )
        step = self.grid[1] - self.grid[0]
        jitter = torch.rand(count, 2, generator=generator, dtype=torch.float64) - 0.5
        points = torch.stack(
            [self.grid[cells // len(self.grid)], self.grid[cells % len(self.grid)]], -1
        )
        return (points + step * jitter).float()


def loo(data):
    with warnings.catch_warnings():  # this test is not about the warning
        warnings.filterwarnings(
            "ignore", message="Estimated shape parameter of Pareto distribution"
        )
        return az.loo(data, pointwise=True)


def check(found, exact: np.ndarray, *, each: float) -> None:
    """The total is within a tenth of its standard error, and each term within ``each`` nats."""
    pointwise, total = np.asarray(getattr(found, POINTWISE)), exact.sum()
    elpd, error = (found.elpd_loo, found.se) if POINTWISE == "loo_i" else (found.elpd, found.se)
    assert error == pytest.approx(np.sqrt(ROWS * exact.var()), rel=0.1)
    assert abs(elpd - total) < 0.1 * error
    assert np.abs(pointwise - exact).max() < each


def test_with_independent_draws():
    x = rows()
    exact = Exact(x)
    draws = iter(exact.draw(300, torch.Generator("cpu").manual_seed(0)))

    def global_guide(x):
        return {"loc": next(draws)}

    data = to_arviz(FullPartition(model, components=2, global_guide=global_guide), x, draws=300)
    check(loo(data), exact.left_out(), each=0.1)


def test_in_sample_log_evidence_would_fail():
    """The correction by LOO is larger than the tolerance above."""
    x = rows()
    exact = Exact(x)
    fitted = (exact.log_posterior().unsqueeze(1) + exact.terms).logsumexp(0).numpy()
    left = exact.left_out()
    assert abs(fitted.sum() - left.sum()) > 0.2 * np.sqrt(ROWS * left.var())


@pytest.mark.slow
def test_with_nuts():
    x = rows()
    kernel = NUTS(model, max_tree_depth=3)
    mcmc = MCMC(
        kernel,
        num_samples=400,
        warmup_steps=100,
        disable_progbar=True,
        initial_params={"loc": CENTERS.clone()},
    )
    mcmc.run(x)
    check(loo(to_arviz(mcmc, model, x, align=False)), Exact(x).left_out(), each=0.2)
