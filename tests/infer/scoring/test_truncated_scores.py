"""Truncated scores: lower bounds, and state of the guide that scoring leaves unchanged."""

import copy

import pyro
import pytest
import torch

from pyro_mixtures.guides import TruncatedPartition
from pyro_mixtures.infer import EM, assign, log_evidence, responsibilities
from tests.infer.scoring.mixtures import F64, FAMILIES, C, D, brute, mixture, rows, trained

pytestmark = pytest.mark.usefixtures("on_one_thread")


def separated(components=30, count=300):
    """A mixture on a line, its components ten standard deviations apart, and rows of it."""
    model = mixture(components=components)
    with torch.no_grad():
        model.loc = 15.0 * torch.arange(components, dtype=F64).unsqueeze(-1).repeat(1, D) / D**0.5
    truth = torch.arange(count) % components
    return model, (model.loc[truth] + torch.randn(count, D, dtype=F64)).detach(), truth


# Truncated.


@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_log_evidence_is_a_lower_bound(family):
    model, x = mixture(family, 12), rows()
    guide = trained(model, x, candidates=2)
    exact = brute(model, x).logsumexp(-1)
    found = log_evidence(model, rows(3), guide=guide)
    assert found.shape == (3,)
    found = log_evidence(model, x, guide=guide)
    assert (found <= exact + 1e-10).all()
    assert (found < exact - 1e-6).any()
    assert (exact - found).mean() < 1


def test_truncated_log_evidence_with_all_components_is_exact():
    model, x = mixture(), rows()
    guide = trained(model, x, candidates=C, neighbors=C)
    torch.testing.assert_close(log_evidence(model, rows(1), guide=guide).shape, torch.Size([1]))
    torch.testing.assert_close(log_evidence(model, x, guide=guide), brute(model, x).logsumexp(-1))


@pytest.mark.parametrize("count", [1, 10, 300, 900])
@pytest.mark.parametrize("chunk", [None, 64])
def test_truncated_scores_are_close_on_separated_data_of_any_size(count, chunk):
    model, x, _ = separated()
    guide = trained(model, x)
    truth = torch.arange(count) % model.components
    new = (model.loc[truth] + torch.randn(count, D, dtype=F64)).detach()
    exact = brute(model, new)
    found = log_evidence(model, new, guide=guide, chunk=chunk)
    right = assign(model, new, guide=guide, chunk=chunk) == exact.argmax(-1)
    assert right.double().mean() >= 0.9
    torch.testing.assert_close(found[right], exact.logsumexp(-1)[right], rtol=0, atol=1e-3)
    best = responsibilities(model, new, top=2, guide=guide, chunk=chunk)
    assert best.components.shape == (count, 2)
    torch.testing.assert_close(best.probs.sum(-1), torch.ones(count, dtype=F64), rtol=0, atol=1e-3)


def state(guide):
    return copy.deepcopy(
        {
            "table": guide.sets.table,
            "graph": guide.graph.neighbors,
            "wins": guide.rows_won,
            "evaluations": guide.evaluations,
            "training": guide.training,
        }
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("use", [log_evidence, responsibilities, assign])
def test_scoring_leaves_the_guide_alone_bit_for_bit(use, training):
    model, x, _ = separated()
    guide = trained(model, x).train(training)
    before = state(guide)
    for count in (len(x), 7):
        use(model, x[:count], guide=guide, chunk=50)
    after = state(guide)
    for name, value in before.items():
        assert torch.equal(after[name], value) if torch.is_tensor(value) else after[name] == value


def test_scoring_between_steps_does_not_change_the_fit():
    """Scoring does not change the random numbers that the next searches of the guide draw."""
    model = mixture(components=20)
    x, found = rows(200), []
    start = copy.deepcopy(model.state_dict())
    for scores in (False, True):
        pyro.clear_param_store()
        model.load_state_dict(start)
        guide = TruncatedPartition(model, components=20, candidates=2, neighbors=3, seed=0)
        em = EM(model, guide)
        for _ in range(4):
            em.step(x)
            if scores:
                log_evidence(model, x[:9], guide=guide)
        found.append(guide.sets.table.clone())
    assert torch.equal(*found)


def test_scoring_with_a_guide_that_was_never_fitted_leaves_it_so():
    model, x, _ = separated()
    guide = TruncatedPartition(model, components=30, candidates=3, neighbors=5, seed=0)
    assert log_evidence(model, x, guide=guide).isfinite().all()
    assert guide.sets is None
    assert guide.graph is None
    guide.posterior(x[:100])  # not bound to the rows that were scored
