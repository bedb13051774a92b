"""Rows, families and comparisons for the tests of model choice."""

import torch
from scipy import stats

from pyro_mixtures.diagnostics.model_choice.compare import compare_fits
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.init import seed_rows
from pyro_mixtures.models import GaussianMixture


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), device="cpu", dtype=dtype)


def clusters(components, each=40, seed=0):
    centers = 9.0 * torch.arange(components, device="cpu")
    return (centers[:, None, None] + normal(components, each, 2, seed=seed)).flatten(0, 1)


def gaussians(covariance="diagonal", dtype=torch.float32, guide=FullPartition):
    def build(components):
        with torch.device("cpu"):
            model = GaussianMixture(components=components, features=2, covariance=covariance).to(
                dtype
            )
            return EM(model, guide(model, components=components))

    return build


def few_candidates(model, components):
    few = min(components, 2)
    return TruncatedPartition(
        model, components=components, candidates=few, neighbors=few, explore=0, seed=0
    )


def seeded(model, x):
    model.start_at(seed_rows(x, model.components, generator=generator()))


def compare(builds, *rows, **options):
    builds = builds if isinstance(builds, dict) else {"diagonal": builds}
    return compare_fits(builds, *rows, **({"generator": generator(), "progress": False} | options))


def normal_log_prob(x, others):
    """Log densities of the rows under the maximum likelihood normal distribution of ``others``."""
    return stats.norm.logpdf(x, others.mean(0), others.std(0)).sum(-1)
