"""AutoGuides next to a guide of z: they leave the minibatch of the data plate alone."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.testing import assert_close

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import ModelError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.poutine import data_plate
from tests.sharp_edges.program import (
    ELBO,
    LOC,
    C,
    D,
    N,
    draw_rows,
    exact_loss,
    mixture_params,
    with_prior,
)


class PerRow:
    """A program with one latent number per row, which records the row numbers of its data plate."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, index=None, size=None):
        weights, loc, scale = mixture_params()
        with data_plate(x, index, size) as rows:
            self.seen.append(rows)
            shift = pyro.sample("shift", dist.Normal(torch.zeros((), device=x.device), 1.0))
            z = pyro.sample("z", MixtureWeights(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x - shift.unsqueeze(-1))


INDEX = torch.tensor([3, 11, 7, 2, 0], device="cpu")


@pytest.mark.meta
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_autonormal_as_global_guide_leaves_the_minibatch_unchanged(strategy):
    x = draw_rows()
    global_guide = AutoNormal(poutine.block(with_prior, hide=["z"]))
    options = {"candidates": C, "neighbors": 3} if strategy is TruncatedPartition else {}
    guide = strategy(with_prior, components=C, global_guide=global_guide, **options)
    drawn = []

    def recorded(*args, **kwargs):
        values = guide(*args, **kwargs)
        drawn.append(values["loc"].detach())
        return values

    guide(x)
    found = ELBO.loss(with_prior, recorded, x[INDEX], index=INDEX, size=N)
    q = dist.Normal(global_guide.locs.loc, global_guide.scales.loc)
    prior = (q.log_prob(drawn[-1]) - dist.Normal(LOC, 1.0).log_prob(drawn[-1])).sum()
    rows = exact_loss(x[INDEX], loc=drawn[-1]) * N / len(INDEX)
    assert_close(found, float(prior.detach()) + rows, rtol=1e-5, atol=0)
    assert sorted(global_guide.plates) == ["components"]


@pytest.mark.meta
def test_svi_with_a_prior_learns_from_minibatches():
    x = torch.cat([torch.randn(30, D, device="cpu") - 4, torch.randn(30, D, device="cpu") + 4])
    guide = TruncatedPartition(
        with_prior,
        components=C,
        candidates=2,
        neighbors=3,
        seed=0,
        global_guide=AutoNormal(poutine.block(with_prior, hide=["z"]), init_scale=0.01),
    )
    svi = SVI(with_prior, guide, pyro.optim.Adam({"lr": 0.2}), ELBO)
    first = svi.evaluate_loss(x)
    for step in range(20):
        index = torch.arange(step % 2, 60, 2, device="cpu")
        svi.step(x[index], index=index, size=len(x))
    assert svi.evaluate_loss(x) < first - 20


def test_stock_autonormal_that_opens_the_data_plate_overrides_the_minibatch():
    x, seen = draw_rows(), []

    def model(x, index):
        with pyro.plate("data", N, subsample=index) as rows:
            seen.append(rows)
            shift = pyro.sample("shift", dist.Normal(torch.zeros((), device="cpu"), 1.0))
            pyro.sample(
                "x",
                dist.Normal(shift.unsqueeze(-1), 1.0).expand([len(index), D]).to_event(1),
                obs=x[index],
            )

    def rows_scored(**options):
        guide = AutoNormal(model, **options)
        guide(x, INDEX)
        seen.clear()
        pyro.set_rng_seed(1)
        Trace_ELBO().loss(model, guide, x, INDEX)
        return seen[-1].tolist()

    assert rows_scored() != INDEX.tolist()
    given = rows_scored(create_plates=lambda x, index: pyro.plate("data", N, subsample=index))
    assert given == INDEX.tolist()


def data_plate_of(x, index=None, size=None):
    return data_plate(x, index, size)


@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
@pytest.mark.parametrize("create_plates", [None, data_plate_of], ids=["all rows", "create_plates"])
def test_latent_site_of_every_row_works_as_global_guide(create_plates, strategy):
    """With all rows by the default autoguide, with minibatches by its create_plates=."""
    x, model = draw_rows(), PerRow()
    global_guide = AutoNormal(poutine.block(model, hide=["z"]), create_plates=create_plates)
    options = {"candidates": 2, "neighbors": 3} if strategy is TruncatedPartition else {}
    guide = strategy(model, components=C, global_guide=global_guide, **options)
    index = torch.arange(N, device="cpu") if create_plates is None else INDEX
    batch = {} if create_plates is None else {"index": INDEX, "size": N}
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), ELBO).step(x[index], **batch)
    assert all(rows.tolist() == index.tolist() for rows in model.seen)


def test_autoguide_that_overrides_the_minibatch_is_refused_with_the_remedy():
    x, model = draw_rows(), PerRow()
    guide = FullPartition(
        model, components=C, global_guide=AutoNormal(poutine.block(model, hide=["z"]))
    )
    with pytest.raises(ModelError, match="create_plates"):
        ELBO.loss(model, guide, x[INDEX], index=INDEX, size=N)
