"""CandidateCategorical and RestrictedSupport: categoricals over a few components per row."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import TraceEnum_ELBO

from pyro_mixtures.distributions import CandidateCategorical, MixtureWeights, RestrictedSupport
from pyro_mixtures.errors import PartitionError

F64 = torch.float64


def per_row(rows=6, size=3, components=9):
    candidates = torch.rand(rows, components, device="cpu").argsort(-1)[:, :size]
    logits = torch.randn(rows, size, dtype=F64, device="cpu")
    return candidates, logits, CandidateCategorical(candidates, logits)


def shared(rows=6, size=3):
    candidates = torch.tensor([1, 4, 8], device="cpu")[:size]
    logits = torch.randn(rows, size, dtype=F64, device="cpu")
    return candidates, logits, CandidateCategorical(candidates, logits)


@pytest.fixture(params=[per_row, shared])
def case(request):
    return request.param()


def dense(candidates, logits, components=9):
    """The same q as a table (rows, C) of log probabilities."""
    table = torch.full((len(logits), components), -torch.inf, dtype=F64, device="cpu")
    return table.scatter(1, candidates.expand(logits.shape), logits.log_softmax(-1))


@pytest.mark.meta
def test_log_prob_is_that_of_the_dense_table(case):
    candidates, logits, q = case
    table = dense(candidates, logits)
    all_components = torch.arange(9, device="cpu").unsqueeze(-1)
    torch.testing.assert_close(q.log_prob(all_components), table.T)
    rows = torch.randint(9, (6,), device="cpu")
    torch.testing.assert_close(q.log_prob(rows), table.gather(1, rows.unsqueeze(-1)).squeeze(-1))


@pytest.mark.meta
def test_support_is_the_candidates_and_holds_all_probability(case):
    candidates, _, q = case
    support = q.enumerate_support()
    assert torch.equal(support, candidates.expand(6, 3).T)
    torch.testing.assert_close(
        q.log_prob(support).logsumexp(0), torch.zeros(6, dtype=F64, device="cpu")
    )


def test_shared_support_need_not_be_expanded():
    _, _, q = shared()
    assert q.enumerate_support(expand=False).tolist() == [[1], [4], [8]]
    torch.testing.assert_close(
        q.log_prob(q.enumerate_support(expand=False)), q.log_prob(q.enumerate_support())
    )


def test_expand_keeps_the_candidates(case):
    candidates, logits, q = case
    wide = q.expand((2, 6))
    assert wide.batch_shape == (2, 6)
    assert wide.enumerate_support().shape == (3, 2, 6)
    table = dense(candidates, logits)
    torch.testing.assert_close(
        wide.log_prob(torch.arange(9).view(9, 1, 1)), table.T.unsqueeze(1).expand(9, 2, 6)
    )


def test_gradient_reaches_the_logits(case):
    candidates, logits, _ = case
    leaf = logits.clone().requires_grad_()
    q = CandidateCategorical(candidates, leaf)
    all_components = torch.arange(9).unsqueeze(-1)
    found = q.log_prob(all_components)
    found[found.isfinite()].square().sum().backward()
    expected = logits.clone().requires_grad_()
    expected.log_softmax(-1).square().sum().backward()
    torch.testing.assert_close(leaf.grad, expected.grad)


def test_samples_have_the_frequencies_of_the_logits(case):
    candidates, logits, q = case
    n = 20_000
    draws = q.sample((n,))
    assert draws.shape == (n, 6)
    probs = dense(candidates, logits).exp()
    frequency = torch.nn.functional.one_hot(draws, 9).double().mean(0)
    assert bool((frequency[probs == 0] == 0).all())
    spread = (probs * (1 - probs) / n).sqrt()
    assert ((frequency - probs)[probs > 0] / spread[probs > 0]).abs().max() < 5


def test_enumeration_in_a_plate_runs_over_each_rows_candidates():
    candidates, logits, q = per_row()
    table = torch.randn(9, dtype=F64)

    def guide():
        with pyro.plate("data", 6):
            pyro.sample("z", q, infer={"enumerate": "parallel", "expand": True})

    def model():
        with pyro.plate("data", 6):
            z = pyro.sample("z", MixtureWeights(logits=torch.zeros(9, dtype=F64)))
            pyro.sample(
                "x",
                dist.Normal(table[z], torch.tensor(1.0, dtype=F64)),
                obs=torch.zeros(6, dtype=F64),
            )

    log_q = logits.log_softmax(-1)
    log_p = -torch.tensor(9.0, dtype=F64).log() + dist.Normal(table, 1.0).log_prob(
        torch.zeros((), dtype=F64)
    )
    expected = (log_q.exp() * (log_p[candidates] - log_q)).sum()
    assert -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide) == pytest.approx(float(expected))


@pytest.mark.parametrize(("bad", "row"), [([[0, 1], [2, 2]], 1), ([[3, 3], [0, 1]], 0)])
@pytest.mark.parametrize(
    "build",
    [
        lambda candidates: CandidateCategorical(candidates, torch.zeros(2, 2)),
        lambda candidates: RestrictedSupport(MixtureWeights(torch.full((4,), 0.25)), candidates),
    ],
    ids=["candidate", "restricted"],
)
def test_a_repeated_candidate_is_refused_by_row(build, bad, row):
    with pytest.raises(PartitionError, match=f"candidate set {row} lists a component twice"):
        build(torch.tensor(bad))


def test_logits_must_match_the_candidates():
    with pytest.raises(PartitionError, match="3 candidates per row but 2 logits"):
        CandidateCategorical(torch.tensor([[0, 1, 2]]), torch.zeros(1, 2))


def bases():
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
    return [MixtureWeights(probs), dist.Categorical(probs)]


@pytest.mark.parametrize("base", bases(), ids=["MixtureWeights", "Categorical"])
def test_restricted_log_prob_is_the_bases_unnormalized(base):
    candidates = torch.tensor([[3, 0], [1, -1]])
    restricted = RestrictedSupport(base, candidates)
    assert restricted.batch_shape == (2,)
    assert restricted.unrestricted is base
    support = restricted.enumerate_support()
    assert torch.equal(support, candidates.T)
    torch.testing.assert_close(
        restricted.log_prob(support).exp(), torch.tensor([[0.4, 0.2], [0.1, 0.0]])
    )


@pytest.mark.parametrize("base", bases(), ids=["MixtureWeights", "Categorical"])
def test_restriction_survives_expansion(base):
    candidates = torch.tensor([[3, 0], [1, 2]])
    wide = RestrictedSupport(base, candidates).expand((5, 2))
    assert wide.batch_shape == (5, 2)
    assert torch.equal(wide.enumerate_support(), candidates.T.unsqueeze(1).expand(2, 5, 2))
    assert wide.log_prob(wide.enumerate_support()).shape == (2, 5, 2)


def test_restricted_samples_are_candidates_with_their_odds():
    base = MixtureWeights(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    draws = RestrictedSupport(base, torch.tensor([[3, 0], [1, -1]])).sample((20_000,))
    assert draws.shape == (20_000, 2)
    assert set(draws[:, 0].tolist()) == {0, 3}
    assert float((draws[:, 0] == 3).double().mean()) == pytest.approx(0.8, abs=0.015)
    assert set(draws[:, 1].tolist()) == {1}
