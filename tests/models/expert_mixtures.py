"""Mixtures of torch modules, their rows, and their densities by loops over rows."""

import copy

import torch
from pyro.optim import Adam
from torch.nn.functional import huber_loss

from pyro_mixtures.models.experts import MixtureOfExperts

C, P, N, LABELS = 4, 3, 23, 5


def huber(output, y):
    return huber_loss(output.squeeze(-1), y, reduction="none")


KINDS = {
    "squared": "squared",
    "cross_entropy": "cross_entropy",
    "huber": huber,
    "vector": "squared",
}


def network(outputs=1, hidden=6, features=P):
    return torch.nn.Sequential(
        torch.nn.Linear(features, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, outputs)
    )


def outputs_of(kind):
    return {"cross_entropy": LABELS, "vector": 2}.get(kind, 1)


def mixture(kind="squared", dtype=torch.float32, components=C, seed=0, **options):
    torch.manual_seed(seed)
    shape = (2,) if kind == "vector" else ()
    with torch.device("cpu"):
        model = MixtureOfExperts(
            lambda: network(outputs_of(kind)),
            components=components,
            features=P,
            loss=KINDS[kind],
            event_shape=shape,
            **options,
        )
        if not options:
            weights = torch.arange(2.0, components + 2)
            model.weights = weights / weights.sum()
    return model.to(dtype)


def rows(kind="squared", dtype=torch.float32, size=N):
    generator = torch.Generator("cpu").manual_seed(1)
    x = torch.randn(size, P, generator=generator, device="cpu", dtype=torch.float64).to(dtype)
    if kind == "cross_entropy":
        return x, torch.randint(LABELS, (size,), generator=generator, device="cpu")
    shape = (size, 2) if kind == "vector" else (size,)
    return x, torch.randn(shape, generator=generator, device="cpu", dtype=torch.float64).to(dtype)


def row_loss(kind, output, y):
    """The loss of one row with output (L,), by its formula."""
    if kind == "cross_entropy":
        return output.logsumexp(0) - output[y]
    away = (output.reshape(y.shape) - y).abs()
    if kind == "huber":
        return torch.where(away < 1, 0.5 * away.square(), away - 0.5)
    return away.square().sum()


def brute(model, kind, x, y):
    """Log densities (C, B) in float64 by loops over rows, and copies of the experts."""
    experts = [copy.deepcopy(expert).double() for expert in model.experts]
    y = y.double() if y.is_floating_point() else y
    table = [
        [-row_loss(kind, e(x[i : i + 1].double())[0], y[i]) for i in range(len(x))] for e in experts
    ]
    return torch.stack([torch.stack(line) for line in table]), experts


def brute_evidence(model, kind, x, y):
    return (
        brute(model, kind, x, y)[0].detach() + model.weights.detach().double().log().unsqueeze(-1)
    ).logsumexp(0)


def adam(lr=0.02):
    return Adam({"lr": lr})
