"""Rows, labels and programs for the tests of gates and experts."""

import pyro
import torch

from pyro_mixtures.distributions import MixtureWeights
from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.guides import HardPartition
from pyro_mixtures.poutine import data_plate

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64]


def randn(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, dtype=dtype, device=CPU, generator=generator)


def labeled(n, features, clusters, seed=0):
    """Rows of unequal scales, and labels that depend on them and on chance."""
    x = randn(n, features, seed=seed)
    scores = x @ randn(features, clusters, seed=seed + 1) + 0.7 * randn(n, clusters, seed=seed + 2)
    scale = torch.logspace(-2, 2, features, dtype=torch.float64, device=CPU)
    return x * scale + 3 * scale, scores.argmax(-1)


def regressions(weight, bias):
    """A plain program over constant experts."""
    scale = torch.ones_like(bias)

    def model(x, y=None):
        experts = LinearRegressions(x, weight, bias, scale)
        with data_plate(x):
            z = pyro.sample(
                "z",
                MixtureWeights(torch.full_like(bias.reshape(len(bias), -1)[:, 0], 1 / len(bias))),
            )
            return pyro.sample("y", experts[z], obs=y)

    return model


def brute(weight, bias, x):
    """Predictions (N, C, ...), one expert and row at a time."""
    return torch.stack(
        [torch.stack([w @ row + b for w, b in zip(weight, bias, strict=True)]) for row in x]
    )


def with_labels(labels, components):
    """A guide of a partition that was not fitted."""
    guide = HardPartition(lambda: None, components=components)
    guide.labels = None if labels is None else torch.as_tensor(labels, device="cpu")
    return guide
