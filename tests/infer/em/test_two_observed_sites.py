"""A hand-written program with two observed sites under one z: EM against loops in numpy."""

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam

from pyro_mixtures.distributions import (
    Categoricals,
    DiagonalNormals,
    FactorAnalyzers,
    MixtureWeights,
)
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.poutine import data_plate

C, D, H, L, N = 3, 4, 1, 5, 60
F64 = torch.float64


pytestmark = pytest.mark.usefixtures("on_one_thread")


def initial(kind):
    """Start of every param, as numpy arrays."""
    random = np.random.default_rng(0)
    labels = random.random((C, L)) + 0.2
    start = {
        "weights": np.array([0.5, 0.3, 0.2]),
        "loc": random.standard_normal((C, D)),
        "labels": labels / labels.sum(1, keepdims=True),
    }
    if kind == "factor":
        return start | {
            "factor": random.standard_normal((C, D, H)),
            "noise": 1 + random.random((C, D)),
        }
    return start | {"scale": 1 + random.random((C, D))}


def program(kind, start):
    simplex, positive = dist.constraints.simplex, dist.constraints.positive

    def model(x, label, index=None, size=None):
        p = {name: torch.from_numpy(value.copy()) for name, value in start.items()}
        weights = pyro.param("weights", p["weights"], constraint=simplex)
        loc = pyro.param("loc", p["loc"])
        labels = Categoricals(pyro.param("labels", p["labels"], constraint=simplex))
        if kind == "factor":
            noise = pyro.param("noise", p["noise"], constraint=positive)
            images = FactorAnalyzers(loc, pyro.param("factor", p["factor"]), noise)
        else:
            images = DiagonalNormals(loc, pyro.param("scale", p["scale"], constraint=positive))
        with data_plate(x, index, size):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("image", images[z], obs=x)
            pyro.sample("label", labels[z], obs=label)

    return model


def log_normal(row, mean, covariance):
    away = row - mean
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    return -0.5 * (log_det + away @ np.linalg.solve(covariance, away))


def covariances(kind, p):
    if kind == "factor":
        return [a @ a.T + np.diag(psi) for a, psi in zip(p["factor"], p["noise"], strict=True)]
    return [np.diag(scale**2) for scale in p["scale"]]


def loops(kind, p, x, label):
    """One EM step in plain loops: (free energy before it, new params)."""
    sigma = covariances(kind, p)
    q, log_evidence = np.zeros((N, C)), 0.0
    for n in range(N):
        for c in range(C):
            q[n, c] = (
                np.log(p["weights"][c])
                + log_normal(x[n], p["loc"][c], sigma[c])
                + np.log(p["labels"][c, label[n]])
            )
        top = np.logaddexp.reduce(q[n])
        log_evidence += top
        q[n] = np.exp(q[n] - top)

    new = {"weights": q.mean(0), "loc": np.zeros((C, D)), "labels": np.zeros((C, L))}
    for c in range(C):
        for n in range(N):
            new["labels"][c, label[n]] += q[n, c] / q[:, c].sum()
    if kind != "factor":
        new["scale"] = np.zeros((C, D))
        for c in range(C):
            new["loc"][c] = q[:, c] @ x / q[:, c].sum()
            new["scale"][c] = np.sqrt(q[:, c] @ (x - new["loc"][c]) ** 2 / q[:, c].sum())
        return log_evidence, new

    new |= {"factor": np.zeros((C, D, H)), "noise": np.zeros((C, D))}
    for c in range(C):  # Ghahramani & Hinton (1996), section 3
        a, mean = p["factor"][c], p["loc"][c]
        beta = a.T @ np.linalg.inv(sigma[c])
        cross, second, scatter = np.zeros((D, H + 1)), np.zeros((H + 1, H + 1)), np.zeros((D, D))
        for n in range(N):
            f = beta @ (x[n] - mean)
            augmented = np.append(f, 1.0)
            moment = np.outer(augmented, augmented)
            moment[:H, :H] += np.eye(H) - beta @ a
            cross += q[n, c] * np.outer(x[n], augmented)
            second += q[n, c] * moment
            scatter += q[n, c] * np.outer(x[n], x[n])
        loadings = cross @ np.linalg.inv(second)
        new["factor"][c], new["loc"][c] = loadings[:, :H], loadings[:, H]
        new["noise"][c] = np.diag(scatter - loadings @ cross.T) / q[:, c].sum()
    return log_evidence, new


def rows():
    random = np.random.default_rng(1)
    z = random.integers(C, size=N)
    return 2 * z[:, None] + random.standard_normal((N, D)), (z + random.integers(2, size=N)) % L


@pytest.mark.parametrize("guided", ["full", "truncated", "minibatches"])
@pytest.mark.parametrize("kind", ["diagonal", "factor"])
def test_em_steps_equal_those_of_plain_loops(kind, guided):
    x, label = rows()
    expected = initial(kind)
    model = program(kind, expected)
    guide = FullPartition(model, components=C)
    if guided == "truncated":
        guide = TruncatedPartition(model, components=C, candidates=C, neighbors=C)
    em = EM(model, guide, variance_floor=0.0, empty="keep")
    images, labels = torch.from_numpy(x), torch.from_numpy(label)
    for _ in range(4):
        log_evidence, expected = loops(kind, expected, x, label)
        if guided == "minibatches":
            parts = torch.arange(N).split(17)
            loss = sum(
                em.accumulate(images[part], labels[part], index=part, size=N) for part in parts
            )
            em.maximize()
        else:
            loss = em.step(images, labels)
        assert -loss == pytest.approx(log_evidence, rel=1e-10)
        for name, value in expected.items():
            torch.testing.assert_close(
                pyro.param(name).detach(), torch.from_numpy(value), rtol=1e-8, atol=1e-10
            )


@pytest.mark.parametrize("kind", ["diagonal", "factor"])
def test_evaluate_loss_is_that_of_svi(kind):
    x, label = (torch.from_numpy(value) for value in rows())
    model = program(kind, initial(kind))
    guide = TruncatedPartition(model, components=C, candidates=2, neighbors=2)
    em, svi = EM(model, guide), SVI(model, guide, Adam({}), TraceEnum_ELBO(max_plate_nesting=1))
    part = torch.arange(5, 30)
    for _ in range(2):
        em.step(x, label)
    guide.eval()
    assert em.evaluate_loss(x, label) == pytest.approx(svi.evaluate_loss(x, label), rel=1e-10)
    minibatch = {"index": part, "size": N}
    expected = svi.evaluate_loss(x[part], label[part], **minibatch)
    assert em.evaluate_loss(x[part], label[part], **minibatch) == pytest.approx(expected, rel=1e-10)


def test_evaluate_loss_changes_nothing():
    x, label = (torch.from_numpy(value) for value in rows())
    model = program("diagonal", initial("diagonal"))
    guide = TruncatedPartition(model, components=C, candidates=2, neighbors=2)
    em = EM(model, guide)
    em.step(x, label)
    sets, graph = guide.sets.table.clone(), guide.graph.neighbors.clone()
    params = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    em.evaluate_loss(x, label)
    assert guide.training
    assert torch.equal(guide.sets.table, sets)
    assert torch.equal(guide.graph.neighbors, graph)
    assert all(torch.equal(pyro.param(name), value) for name, value in params.items())
