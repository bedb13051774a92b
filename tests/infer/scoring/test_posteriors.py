"""Exact scores against brute force, other programs, and memory."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import DataError, ModelError, OptionError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, Responsibilities, assign, fit, log_evidence, responsibilities
from pyro_mixtures.models import BregmanMixture
from pyro_mixtures.poutine import data_plate
from tests.infer.scoring.mixtures import (
    F64,
    FAMILIES,
    C,
    D,
    N,
    brute,
    mixture,
    rows,
    trained,
    two_observations,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


# Exact.


@pytest.mark.parametrize("chunk", [None, 1, 7, N, 10 * N])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_evidence_is_the_brute_force_sum(family, chunk):
    model, x = mixture(family), rows()
    torch.testing.assert_close(log_evidence(model, x, chunk=chunk), brute(model, x).logsumexp(-1))


def test_rows_need_not_be_those_of_the_fit():
    model = mixture()
    fit(EM(model, FullPartition(model, components=C)), rows(), epochs=3, progress=False)
    for count in (1, 2, 77):
        x = rows(count)
        torch.testing.assert_close(log_evidence(model, x), brute(model, x).logsumexp(-1))


def test_scores_carry_no_gradient_and_take_arrays():
    model, x = mixture(), rows()
    found = log_evidence(model, x)
    assert not found.requires_grad
    assert torch.equal(log_evidence(model, x.numpy()), found)
    assert torch.equal(log_evidence(model, x.tolist()), log_evidence(model, x))


@pytest.mark.parametrize("divergence", ["kl", "mahalanobis"])
def test_scores_are_the_same_in_inference_mode(divergence):
    precision = torch.eye(2) if divergence == "mahalanobis" else None
    model = BregmanMixture(components=3, features=2, divergence=divergence, precision=precision)
    guide = TruncatedPartition(model, components=3, candidates=2, neighbors=2)
    x = torch.ones(20, 2)
    guide.posterior(x)
    with torch.inference_mode():
        log_evidences = log_evidence(model, x)
        assert responsibilities(model, x, guide=guide).probs.shape[0] == 20
    torch.testing.assert_close(log_evidences, log_evidence(model, x))


def test_float32_rows_are_widened():
    model, x = mixture(), rows().float()
    torch.testing.assert_close(log_evidence(model, x), brute(model, x.double()).logsumexp(-1))


@pytest.mark.parametrize("top", [1, 3, C, C + 4])
@pytest.mark.parametrize("chunk", [None, 9])
@pytest.mark.parametrize("family", FAMILIES)
def test_responsibilities_are_the_best_of_the_posterior(family, top, chunk):
    model, x = mixture(family), rows()
    found = responsibilities(model, x, top=top, chunk=chunk)
    assert isinstance(found, Responsibilities)
    expected = brute(model, x).softmax(-1).topk(min(top, C), dim=-1)
    assert torch.equal(found.components, expected.indices)
    torch.testing.assert_close(found.probs, expected.values)
    assert (found.probs.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("chunk", [None, 9])
def test_assign_is_the_best_component(chunk):
    model, x = mixture(), rows()
    assert torch.equal(assign(model, x, chunk=chunk), brute(model, x).argmax(-1))


def test_a_component_of_zero_weight_is_never_assigned():
    model, x = mixture(), rows()
    with torch.no_grad():
        weights = model.weights.clone()
        weights[2] = 0
        model.weights = weights / weights.sum()
    assert 2 not in assign(model, x)
    assert log_evidence(model, x).isfinite().all()
    assert responsibilities(model, x, top=C).probs[:, -1].max() == 0


def test_an_exact_guide_gives_the_same():
    model, x = mixture(), rows()
    guide = FullPartition(model, components=C)
    assert torch.equal(log_evidence(model, x, guide=guide), log_evidence(model, x))
    assert torch.equal(assign(model, x, guide=guide), assign(model, x))
    assert guide.rows_won.sum() == 0


def test_scoring_inside_other_handlers_leaves_no_trace():
    model, x = mixture(), rows()
    with pyro.poutine.trace() as tracer:
        log_evidence(model, x)
        assign(model, x, guide=trained(model, x))
    assert not tracer.trace.nodes


@pytest.mark.parametrize("chunk", [None, 11])
@pytest.mark.parametrize("guided", [False, True])
def test_two_observations_count_both(guided, chunk):
    x, label = rows(), torch.randint(4, (N,))
    guide = (
        TruncatedPartition(two_observations, components=3, candidates=3, neighbors=3)
        if guided
        else None
    )
    found = log_evidence(two_observations, x, label, guide=guide, chunk=chunk)
    weights, loc, table = (pyro.param(name).detach() for name in ("weights", "loc", "table"))
    normals = torch.distributions.Normal(loc, 1.0).log_prob(x.unsqueeze(1)).sum(-1)
    joint = weights.log() + normals + table[:, label].T.log()
    torch.testing.assert_close(found, joint.logsumexp(-1))
    assert torch.equal(
        assign(two_observations, x, label, guide=guide, chunk=chunk), joint.argmax(-1)
    )
    best = responsibilities(two_observations, x, label, guide=guide, chunk=chunk)
    torch.testing.assert_close(best.probs, joint.softmax(-1).sort(-1, descending=True).values)


def test_tensors_of_different_lengths_are_refused_before_a_run():
    with pytest.raises(DataError, match="different numbers of rows"):
        log_evidence(two_observations, rows(5), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("chunk", [None, 4])
def test_stock_program_under_another_site_name(chunk):
    weights, loc = torch.tensor([0.2, 0.8], dtype=F64), torch.tensor([0.0, 1.5], dtype=F64)

    def model(y):
        with pyro.plate("rows", len(y)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("y", dist.Poisson(loc[k].exp()), obs=y)

    y = torch.randint(6, (N,)).double()
    joint = weights.log() + torch.distributions.Poisson(loc.exp()).log_prob(y.unsqueeze(1))
    torch.testing.assert_close(log_evidence(model, y, site="k", chunk=chunk), joint.logsumexp(-1))
    assert torch.equal(assign(model, y, site="k", chunk=chunk), joint.argmax(-1))


def with_prior(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([C, D]).to_event(2))
    with data_plate(x):
        z = pyro.sample("z", MixtureWeights(torch.full((C,), 1 / C, dtype=F64)))
        pyro.sample("x", DiagonalNormals(loc, torch.ones(D, dtype=F64))[z], obs=x)


@pytest.mark.parametrize("chunk", [None, 11])
@pytest.mark.parametrize("guided", [None, "full", "truncated"])
def test_given_values_of_latent_sites_are_conditioned_on(guided, chunk):
    x, loc = rows(), 2 * torch.randn(C, D, dtype=F64)
    guide = None
    if guided == "full":
        guide = FullPartition(with_prior, components=C)
    if guided == "truncated":
        guide = TruncatedPartition(with_prior, components=C, candidates=C, neighbors=C)
    joint = (
        torch.distributions.Normal(loc, 1.0).log_prob(x.unsqueeze(1)).sum(-1)
        - torch.tensor(C, dtype=F64).log()
    )
    options = {"guide": guide, "given": {"loc": loc}, "chunk": chunk}
    # The prior of the means is not part of a row's evidence.
    torch.testing.assert_close(log_evidence(with_prior, x, **options), joint.logsumexp(-1))
    assert torch.equal(assign(with_prior, x, **options), joint.argmax(-1))
    best = responsibilities(with_prior, x, top=2, **options)
    torch.testing.assert_close(best.probs, joint.softmax(-1).topk(2).values)


def test_latent_sites_without_a_value_are_named():
    with pytest.raises(ModelError, match="latent site 'loc'"):
        log_evidence(with_prior, rows())


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements of any tensor that an operation allocates."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        sizes = [
            value.untyped_storage().nbytes() // value.element_size()
            for value in tree_leaves(found)
            if isinstance(value, torch.Tensor)
        ]
        self.largest = max([self.largest, *sizes])
        return found


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("use", [log_evidence, responsibilities, assign])
def test_no_array_of_rows_by_components_is_made(use, guided):
    components, count, chunk = 100, 1500, 75
    model, x = mixture(components=components), rows(count)
    guide = (
        TruncatedPartition(model, components=components, neighbors=5, seed=0) if guided else None
    )
    with LargestTensor() as seen:
        use(model, x, guide=guide, chunk=chunk)
    assert count * D <= seen.largest <= 2 * components * chunk < count * components / 5


def test_default_chunks_bound_the_pairs(monkeypatch):
    monkeypatch.setattr("pyro_mixtures.infer.scoring.posteriors._EXACT_PAIRS", 1000)
    model, x = mixture(components=100), rows(600)
    with LargestTensor() as seen:
        log_evidence(model, x)
    assert seen.largest <= 600 * D


def test_dense_responsibilities_are_the_table_of_all_components():
    found = Responsibilities(torch.tensor([[2, 0], [1, 2]]), torch.tensor([[0.7, 0.2], [0.9, 0.1]]))
    expected = torch.tensor([[0.2, 0.0, 0.7, 0.0], [0.0, 0.9, 0.1, 0.0]])
    assert torch.equal(found.dense(4), expected)
    with pytest.raises(OptionError, match="up to number 2"):
        found.dense(2)
