"""Mixtures of three normals, and of two with priors: fits, functions and MCMC for tests."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import HMC, MCMC
from torch.distributions import constraints

from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.poutine import data_plate

CENTERS = torch.tensor([[-4.0], [0.0], [5.0]], device="cpu")
ORDERS = [[0, 1, 2], [2, 0, 1], [1, 0, 2]]


def three_clusters(rows: int = 20) -> torch.Tensor:
    draws = torch.randn(3, rows, 1, generator=torch.Generator("cpu").manual_seed(1), device="cpu")
    return (CENTERS.unsqueeze(1) + draws).reshape(-1, 1)


def module_fit(order, epochs: int = 3, truncated: bool = False):
    """A fit of a separate model, whose components start in ``order``."""
    pyro.clear_param_store()
    model = GaussianMixture(components=3, features=1)
    with torch.no_grad():
        model.loc = CENTERS[order].clone()
    guide = (
        TruncatedPartition(model, components=3, candidates=2, neighbors=2)
        if truncated
        else FullPartition(model, components=3)
    )
    return fit(EM(model, guide), three_clusters(), epochs=epochs, progress=False)


def function(x, index=None, size=None):
    """A program by hand, whose dimensions have no names."""
    weights = pyro.param("weights", torch.full((3,), 1 / 3), constraint=constraints.simplex)
    loc = pyro.param("loc", CENTERS.clone())
    scale = pyro.param("scale", torch.ones(1), constraint=constraints.positive)
    with data_plate(x, index, size):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale).to_event(1), obs=x)


class MaskedNormals(GaussianMixture):
    def __init__(self):
        super().__init__(components=3, features=1)

    def forward(self, x, seen, index=None, size=None):
        with pyro.poutine.mask(mask=seen > 0):
            return super().forward(x, index=index, size=size)


def function_fit(order):
    with pyro.get_param_store().scope() as state:
        pyro.param("loc", CENTERS[order].clone())
        result = fit(
            EM(function, FullPartition(function, components=3)),
            three_clusters(),
            epochs=3,
            progress=False,
        )
    return result, state


def priors(x, index=None, size=None):
    """Exchangeable components with priors and no params, by stock distributions."""
    with pyro.plate("cluster", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with data_plate(x, index, size):
        z = pyro.sample("z", dist.Categorical(torch.full((2,), 0.5, device="cpu")))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def two_groups() -> torch.Tensor:
    draws = torch.randn(2, 8, generator=torch.Generator("cpu").manual_seed(2), device="cpu")
    return (torch.tensor([[-3.0], [3.0]], device="cpu") + draws).reshape(-1)


def sampled(model, *rows, start, draws: int = 8, chains: int = 1, step: float = 0.1) -> MCMC:
    kernel = HMC(model, step_size=step, num_steps=2, adapt_step_size=False, adapt_mass_matrix=False)
    values = {"loc": torch.tensor(start)}
    if chains > 1:
        values = {"loc": torch.tensor([start, start[::-1]])}
    mcmc = MCMC(
        kernel,
        num_samples=draws,
        warmup_steps=1,
        num_chains=chains,
        initial_params=values,
        disable_progbar=True,
    )
    mcmc.run(*rows)
    return mcmc


def stock(x, index=None, size=None):
    loc = pyro.param("loc", torch.tensor([-3.0, 3.0], device="cpu"))
    with data_plate(x, index, size):
        z = pyro.sample("z", dist.Categorical(torch.full((2,), 0.5, device="cpu")))
        pyro.sample("x", dist.Normal(loc[z], torch.ones((), device="cpu")), obs=x)
