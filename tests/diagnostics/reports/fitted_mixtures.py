"""Small fitted mixtures, and their log densities by torch alone, for tests of reports."""

import torch

from pyro_mixtures.guides import TruncatedPartition
from pyro_mixtures.infer import EM, Fit, fit
from pyro_mixtures.init import Seeds
from pyro_mixtures.models import GaussianMixture

C, D, N = 8, 2, 300


def rows(dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    centers = 4 * torch.randn(C, D, generator=generator, device="cpu", dtype=dtype)
    noise = torch.randn(N, D, generator=generator, device="cpu", dtype=dtype)
    return centers[torch.arange(N, device="cpu") % C] + noise


def mixture(x: torch.Tensor, first: int = 0) -> GaussianMixture:
    with torch.device("cpu"):
        model = GaussianMixture(components=C, features=D).to(x.dtype)
    model.start_at(
        Seeds(torch.arange(first, first + C, device="cpu"), x[first : first + C].clone(), x.var(0))
    )
    return model


def truncated(x: torch.Tensor, *, first: int = 0, epochs: int = 5, neighbors: int = 3) -> Fit:
    model = mixture(x, first)
    guide = TruncatedPartition(
        model, components=C, candidates=2, neighbors=neighbors, explore=1, seed=first
    )
    return fit(EM(model, guide), x, epochs=epochs, progress=False)


def log_densities(result: Fit, x: torch.Tensor) -> torch.Tensor:
    """log p(x | c), (N, C), by torch alone."""
    model = result.model
    normal = torch.distributions.Normal(model.loc.detach().double(), model.scale.detach().double())
    return normal.log_prob(x.double().unsqueeze(1)).sum(-1)


def log_joints(result: Fit, x: torch.Tensor) -> torch.Tensor:
    return result.model.weights.detach().double().log() + log_densities(result, x)
