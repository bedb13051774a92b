"""Mixtures of exponential families: row weights, options and empty components."""

import copy

import pyro
import pytest
import torch

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.infer.em import em as em_module
from pyro_mixtures.init import Seeds
from pyro_mixtures.models.bregman import DIVERGENCES, BregmanMixture
from pyro_mixtures.models.kmeans import KMeans
from tests.models.bregman_rows import PRECISION, draw, make, seeds

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=list(DIVERGENCES))
def divergence(request) -> str:
    return request.param


@pytest.mark.parametrize("kind", [FullPartition, HardPartition])
def test_a_row_of_weight_two_counts_as_two(divergence, kind):
    x = draw(divergence, 100)
    weight = 1.0 + (torch.arange(100) % 3)
    found = []
    for rows in ((x, weight.double()), (x.repeat_interleave(weight.long(), 0),)):
        model = make(divergence)
        model.start_at(seeds(x, 3))
        result = fit(
            EM(model, kind(model, components=3)), *rows, epochs=4, batch_size=64, progress=False
        )
        found.append(torch.cat([model.mean.detach().flatten(), model.weights.detach()]))
        assert len(result.history) == 4
        pyro.clear_param_store()
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-7)


def test_options_are_checked():
    with pytest.raises(OptionError, match="unknown divergence 'cosine'"):
        BregmanMixture(components=2, features=2, divergence="cosine")
    with pytest.raises(OptionError, match="precision="):
        BregmanMixture(components=2, features=2, divergence="mahalanobis")
    with pytest.raises(OptionError, match="precision="):
        BregmanMixture(components=2, features=2, precision=torch.eye(2))
    with pytest.raises(OptionError, match="total=3"):
        BregmanMixture(components=2, features=2, divergence="kl", total=3)
    model = BregmanMixture(components=2, features=2)
    with pytest.raises(DataError, match="row_weight"):
        model(torch.zeros(3, 2), torch.ones(2))
    with pytest.raises(DataError, match="seeds"):
        model.start_at(Seeds(torch.arange(3), torch.zeros(3, 2), torch.ones(2)))
    assert set(dict(model.named_buffers())) == set()
    assert set(dict(KMeans(components=2, features=2).named_buffers())) == {"weights"}


def test_the_state_of_a_model_holds_its_precision():
    model = make("mahalanobis")
    other = make("mahalanobis")
    other.precision.zero_()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.precision, PRECISION.double())


@pytest.mark.parametrize("divergence", ["squared", "kl"])
def test_an_empty_component_is_split_off_another_and_separates_from_it(divergence):
    x = torch.cat([torch.poisson(torch.full((60, 2), rate)) for rate in (3.0, 30.0)])
    model = BregmanMixture(components=3, features=2, divergence=divergence)
    with torch.no_grad():
        model.mean = torch.tensor([[3.0, 3.0], [30.0, 30.0], [5000.0, 5000.0]])
    em = EM(model, FullPartition(model, components=3))
    for _ in range(10):
        em.step(x)
    assert len(model.mean.detach().round(decimals=2).unique(dim=0)) == 3


@pytest.mark.parametrize("kind", ["full", "truncated"])
@pytest.mark.parametrize("divergence", ["squared", "kl", "itakura_saito"])
def test_a_split_costs_a_step_no_more_than_its_bound(divergence, kind, monkeypatch):
    """Compared with the step that keeps all components, the rise is bounded."""
    splits = spied_splits(monkeypatch)
    torch.manual_seed(0)
    rates = 0.2 + 20 * torch.rand(6, 3).double()
    x, seen, rises = (
        torch.poisson(rates[torch.randint(6, (200,))]) + (divergence == "itakura_saito"),
        0,
        0,
    )
    with pyro.settings.context(module_local_params=True):
        model = BregmanMixture(components=16, features=3, divergence=divergence).double()
        model.start_at(seeds(x, 16))
        guide = FullPartition(model, components=16)
        if kind == "truncated":
            guide = TruncatedPartition(model, components=16, candidates=3, neighbors=5, seed=0)
        mean = model.mean.detach().clone()
        mean[3] = 300.0  # empty from the start
        model.mean = mean
        em = EM(model, guide)
        for _ in range(25):
            kept = copy.deepcopy(em)
            kept.empty = "keep"
            before, _ = em.step(x), kept.step(x)
            if not splits[-1]:
                continue
            joint = (
                kept.model.component_distributions().log_prob(x.unsqueeze(1))
                + kept.model.weights.log()
            ).detach()
            if kind == "truncated":
                left_out = torch.ones_like(joint, dtype=torch.bool).scatter_(
                    1, guide.sets.table.long(), value=False
                )
                joint = joint.masked_fill(left_out, -torch.inf)
            q, lost = joint.softmax(-1), torch.zeros(len(x)).double()
            for split in splits[-1]:
                lost += q[:, split.component] + q[:, split.like] / 2
            bound = float(-(joint.logsumexp(-1) + torch.log1p(-lost)).sum())
            after = em.evaluate_loss(x)
            seen, rises = seen + 1, rises + (after > before)
            assert after <= bound + 1e-9 * abs(bound)
            # The step itself lowers the loss, so the split causes any rise.
            assert float(-joint.logsumexp(-1).sum()) <= before + 1e-9 * abs(before)
    assert seen
    if (divergence, kind) == ("kl", "truncated"):
        assert rises  # a split can indeed raise the loss


def spied_splits(monkeypatch) -> list:
    """A list that collects the splits of all later M-steps."""
    found, choose = [], em_module.choose_splits

    def spy(*args):
        found.append(choose(*args))
        return found[-1]

    monkeypatch.setattr(em_module, "choose_splits", spy)
    return found
