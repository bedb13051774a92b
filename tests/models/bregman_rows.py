"""Mixtures of exponential families, rows drawn from them, and their divergences."""

import pyro
import torch
from torch import Tensor

from pyro_mixtures.init import Seeds, seed_rows
from pyro_mixtures.models.bregman import BregmanMixture

FEATURES = 4
PRECISION = torch.tensor([[2.0, 0.5, 0, 0], [0.5, 1.0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 0.7]])
# Well-separated means for each divergence.
MEANS = torch.tensor([[1.0, 1, 8, 8], [8.0, 8, 1, 1], [8.0, 1, 8, 1]])


def make(divergence: str, components: int = 3, **options) -> BregmanMixture:
    given = {"precision": PRECISION} if divergence == "mahalanobis" else {}
    given |= {"total": 40} if divergence == "multinomial" else {}
    torch.manual_seed(0)
    model = BregmanMixture(
        components=components, features=FEATURES, divergence=divergence, **given, **options
    )
    return model.double()


def truth(divergence: str) -> Tensor:
    means = MEANS.double()
    return {"logistic": means / 9, "multinomial": means / means.sum(-1, keepdim=True)}.get(
        divergence, means
    )


def draw(divergence: str, rows: int = 300) -> Tensor:
    """Rows drawn from the true model."""
    model = make(divergence)
    model.weights, model.mean = torch.tensor([0.5, 0.3, 0.2]).double(), truth(divergence)
    with torch.no_grad(), pyro.poutine.block(), pyro.poutine.seed(rng_seed=1):
        x = model(size=rows)
    pyro.clear_param_store()
    return x


def seeds(x: Tensor, components: int) -> Seeds:
    return seed_rows(x, components, generator=torch.Generator("cpu").manual_seed(3))


def losses_of(divergence: str, x: Tensor, mean: Tensor) -> Tensor:
    """Bregman divergences (N, C) of the rows from the means, by their definitions."""
    x = x.unsqueeze(-2)
    if divergence in ("squared", "mahalanobis"):
        precision = (
            PRECISION.double() if divergence == "mahalanobis" else torch.eye(FEATURES).double()
        )
        return 0.5 * torch.einsum("nci,ij,ncj->nc", x - mean, precision, x - mean)
    if divergence == "logistic":
        return torch.nn.functional.softplus(-(2 * x - 1) * mean.logit()).sum(-1)
    if divergence == "itakura_saito":
        return (x / mean - (x / mean).log() - 1).sum(-1)
    mean = mean * x.sum(-1, keepdim=True) if divergence == "multinomial" else mean
    return (torch.xlogy(x, x / mean) - x + mean).sum(-1)


def nothing_moves(result) -> bool:
    return result.guide.moved == 0


def inertia(x: Tensor, mean: Tensor, labels: Tensor) -> float:
    return float((x.double() - mean.double()[labels]).square().sum())
