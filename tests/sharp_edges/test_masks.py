"""Masks: masked rows contribute nothing, on the side of the model and of the guide."""

import pyro
import pytest
import torch
from pyro import poutine
from torch.testing import assert_close

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import MixtureError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.partition import CandidateSets
from pyro_mixtures.poutine import truncate
from tests.sharp_edges.program import (
    CPU,
    ELBO,
    WEIGHTS,
    C,
    N,
    draw_rows,
    exact_loss,
    frozen_guide,
    log_joint,
    mixture_params,
    no_guide,
    params_after_em,
)


def masked(x, mask, only_x=False):
    weights, loc, scale = mixture_params()
    with pyro.plate("data", len(x), device=x.device):
        with poutine.mask(mask=torch.ones_like(mask) if only_x else mask):
            z = pyro.sample("z", MixtureWeights(weights))
        with poutine.mask(mask=mask):
            pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)


def masked_rows():
    x, mask = draw_rows(), torch.arange(N, device="cpu") % 3 > 0
    return x, mask, torch.ones(int(mask.sum()), dtype=torch.bool, device="cpu")


@pytest.mark.meta
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_masked_rows_contribute_nothing(strategy):
    x, mask, all_components = masked_rows()
    guide = frozen_guide(strategy, masked, x, mask)
    table = guide.sets.table[mask] if strategy is TruncatedPartition else None
    alone = frozen_guide(strategy, masked, x[mask], all_components, table=table)
    assert_close(
        ELBO.loss(masked, guide, x, mask),
        ELBO.loss(masked, alone, x[mask], all_components),
        rtol=1e-6,
        atol=0,
    )
    losses = [
        EM(masked, g).evaluate_loss(*a)
        for g, a in ((guide, (x, mask)), (alone, (x[mask], all_components)))
    ]
    assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    assert_close(
        params_after_em(masked, guide, x, mask),
        params_after_em(masked, alone, x[mask], all_components),
    )


@pytest.mark.meta
def test_masked_rows_that_hold_nan_are_ignored_or_refused():
    x, mask, all_components = masked_rows()
    spoiled = torch.where(mask.unsqueeze(-1), x, torch.nan)
    guide = frozen_guide(FullPartition, masked, x, mask)
    try:
        assert_close(
            EM(masked, guide).evaluate_loss(spoiled, mask), exact_loss(x[mask]), rtol=1e-6, atol=0
        )
        after = params_after_em(masked, guide, spoiled, mask)
    except MixtureError as error:
        assert "nan" in str(error)  # noqa: PT017
        return
    alone = frozen_guide(FullPartition, masked, x[mask], all_components)
    assert_close(after, params_after_em(masked, alone, x[mask], all_components))


def prior_of_sets(table):
    return float(WEIGHTS[table.long()].sum(-1).log().sum())


@pytest.mark.meta
def test_masking_only_x_leaves_the_prior_of_the_candidates():
    x, mask, all_components = masked_rows()
    guide = frozen_guide(TruncatedPartition, masked, x, mask, True)
    alone = frozen_guide(
        TruncatedPartition, masked, x[mask], all_components, table=guide.sets.table[mask]
    )
    left = ELBO.loss(masked, guide, x, mask, True) - ELBO.loss(
        masked, alone, x[mask], all_components
    )
    bias = -prior_of_sets(guide.sets.table[~mask])
    assert bias > 0.1
    assert_close(left, bias, rtol=1e-4, atol=0)


@pytest.mark.meta
def test_truncate_of_a_program_that_masks_only_x_leaves_the_prior_of_the_candidates():
    x, mask, _ = masked_rows()
    sets = CandidateSets(
        rows=N, components=C, candidates=2, generator=torch.Generator(CPU).manual_seed(0)
    ).table.long()
    loss = ELBO.loss(truncate(masked, "z", sets), no_guide, x, mask, True)
    alone = -float(log_joint(x).gather(-1, sets).logsumexp(-1)[mask].sum())
    assert_close(loss - alone, -prior_of_sets(sets[~mask]), rtol=1e-4, atol=0)


@pytest.mark.meta
def test_truncate_of_a_program_that_masks_z_and_x_counts_masked_rows_as_nothing():
    x, mask, _ = masked_rows()
    sets = CandidateSets(
        rows=N, components=C, candidates=2, generator=torch.Generator(CPU).manual_seed(0)
    ).table.long()
    loss = ELBO.loss(truncate(masked, "z", sets), no_guide, x, mask)
    assert_close(
        loss, -float(log_joint(x).gather(-1, sets).logsumexp(-1)[mask].sum()), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("stock", [False, True])
def test_masks_of_a_handler_and_of_a_distribution_are_the_same(stock):
    """Masked rows hold NaN; the other site of the program sees all rows."""
    x, mask, _ = masked_rows()
    spoiled = torch.where(mask.unsqueeze(-1), x, torch.nan)
    labels = torch.arange(N, device="cpu") % 4

    def program(x, labels, by_handler):
        _, loc, scale = mixture_params()
        probs = pyro.param(
            "probs",
            torch.eye(C, 4, device="cpu") / 2 + 1 / 8,
            constraint=pyro.distributions.constraints.simplex,
        )
        with pyro.plate("data", N, device="cpu"):
            z = pyro.sample("z", MixtureWeights(torch.full((C,), 1 / C, device="cpu")))
            if stock:
                rows = pyro.distributions.Normal(loc[z], scale[z], validate_args=False).to_event(1)
            else:
                rows = DiagonalNormals(loc, scale)[z]
            with poutine.mask(mask=mask if by_handler else torch.ones_like(mask)):
                pyro.sample("x", rows if by_handler else rows.mask(mask), obs=x)
            pyro.sample("labels", pyro.distributions.Categorical(probs[z]), obs=labels)

    def after_step(by_handler):
        pyro.clear_param_store()
        EM(program, FullPartition(program, components=C), freeze=["weights"]).step(
            spoiled, labels, by_handler
        )
        return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

    by_handler, by_distribution = after_step(True), after_step(False)
    assert all(bool(value.isfinite().all()) for value in by_distribution.values())
    assert_close(by_distribution, by_handler)
