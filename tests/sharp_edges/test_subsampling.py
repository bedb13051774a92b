"""Subsampling plates: guide and model see the same rows."""

import pyro
import pytest
import torch
from pyro.infer import SVI, infer_discrete
from torch.testing import assert_close

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from tests.sharp_edges.program import (
    ELBO,
    LOC,
    C,
    draw_rows,
    exact_loss,
    mixture_params,
    params_after_em,
    plain,
)

BATCH = 60


class Subsampling:
    """A program whose plate draws its own minibatches, and which records them."""

    def __init__(self):
        self.drawn = []

    def __call__(self, data):
        weights, loc, scale = mixture_params()
        with pyro.plate("data", len(data), subsample_size=BATCH, device=data.device) as index:
            self.drawn.append(index)
            z = pyro.sample("z", MixtureWeights(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=data[index])


def test_stock_rerun_draws_other_rows():
    model = Subsampling()
    infer_discrete(model, first_available_dim=-2, temperature=0)(draw_rows(200))
    assert len({tuple(index.tolist()) for index in model.drawn}) > 1


@pytest.mark.meta
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_guide_and_model_use_the_rows_of_the_e_step(strategy):
    data, model = draw_rows(200), Subsampling()
    options = {"candidates": C, "neighbors": 3} if strategy is TruncatedPartition else {}
    guide = strategy(model, components=C, **options)
    guide.posterior(data)
    model.drawn.clear()
    loss = ELBO.loss(model, guide, data)
    e_step, scored = model.drawn
    assert torch.equal(e_step, scored)
    assert_close(loss, exact_loss(data[scored]) * len(data) / BATCH, rtol=1e-5, atol=0)


@pytest.mark.meta
def test_svi_steps_change_the_candidates_of_their_own_rows_only():
    data, model = draw_rows(200), Subsampling()
    guide = TruncatedPartition(model, components=C, candidates=2, neighbors=5, explore=3, seed=0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), ELBO)
    svi.step(data)
    for _ in range(5):
        model.drawn.clear()
        before = guide.sets.table.clone()
        svi.step(data)
        changed = (guide.sets.table != before).any(-1).nonzero()[:, 0]
        assert set(changed.tolist()) <= set(model.drawn[-1].tolist())
        assert all(torch.equal(index, model.drawn[-1]) for index in model.drawn)


@pytest.mark.meta
def test_em_takes_its_statistics_from_the_rows_of_the_e_step():
    data, model = draw_rows(200), Subsampling()
    guide = FullPartition(model, components=C)
    guide.posterior(data)
    model.drawn.clear()
    found = params_after_em(model, guide, data)
    assert (found["loc"] - LOC).abs().max() > 0.01
    rows = data[model.drawn[0]]
    assert_close(found, params_after_em(plain, FullPartition(plain, components=C), rows))
