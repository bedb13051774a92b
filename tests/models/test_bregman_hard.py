"""Bregman hard clustering: Lloyd's algorithm, leave-one-out scores, against brute force."""

import math

import pyro
import pytest
import torch

from pyro_mixtures.guides import HardPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models.bregman import DIVERGENCES
from pyro_mixtures.models.kmeans import KMeans
from tests.models.bregman_rows import draw, inertia, losses_of, make, nothing_moves, seeds

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=list(DIVERGENCES))
def divergence(request) -> str:
    return request.param


def test_hard_steps_equal_brute_force(divergence):
    x, model = draw(divergence), make(divergence, 4, equal_weights=True)
    model.start_at(seeds(x, 4))
    guide = HardPartition(model, components=4)
    em, mean = EM(model, guide, variance_floor=1e-12), model.mean.detach().clone()
    for _ in range(4):
        em.step(x)
        labels = losses_of(divergence, x, mean).argmin(-1)
        assert torch.equal(guide.labels.long(), labels)
        mean = torch.stack([x[labels == c].mean(0) for c in range(4)])
        mean = mean / mean.sum(-1, keepdim=True) if divergence == "multinomial" else mean
        mean = mean.clamp(1e-9, 1 - 1e-9) if divergence == "logistic" else mean
        torch.testing.assert_close(model.mean.detach(), mean, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("score", ["loss", "leave_one_out"])
def test_hard_objective_falls_until_no_row_moves(divergence, score):
    x, model = draw(divergence), make(divergence, 5, equal_weights=True)
    model.start_at(seeds(x, 5))
    guide = HardPartition(model, components=5, score=score)
    result = fit(EM(model, guide), x, tolerance=0.0, progress=False, callbacks=[nothing_moves])
    elbo = torch.tensor([epoch.elbo for epoch in result.history.epochs])
    assert guide.moved == 0
    assert len(elbo) < 60
    if score == "loss":
        assert (elbo.diff() > -1e-9).all()
    # With equal weights the ELBO of a row is its log density minus log C.
    own = model.component_distributions()[guide.labels.long()].log_prob(x)
    assert result.elbo == pytest.approx(float(own.mean().detach()) - math.log(5), rel=1e-9)


def test_leave_one_out_finds_no_worse_partition_than_lloyd():
    """Where Lloyd's algorithm stops, leave-one-out scores can still improve the partition."""
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).double()
    final = []
    for scores in (["loss"], ["loss", "leave_one_out"]):
        model = KMeans(components=12, features=2).double()
        model.start_at(seeds(x, 12))
        labels = None
        for score in scores:
            guide = HardPartition(model, components=12, score=score)
            if labels is not None:
                guide.set_labels(labels)
            em = EM(model, guide)
            objective = []
            for _ in range(25):
                em.step(x)
                objective.append(inertia(x, model.mean.detach(), guide.labels.long()))
            labels = guide.labels
        final.append(min(objective))
        pyro.clear_param_store()
    assert final[1] < final[0]
