"""MixtureWeights against the stock Categorical."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_mixtures.distributions import MixtureWeights
from pyro_mixtures.errors import ClosedFormError, OptionError

F64 = torch.float64


def table(*shape):
    return torch.rand(*shape, dtype=F64, device="cpu").add(0.1)


@pytest.fixture(params=["probs", "logits"])
def pair(request):
    """MixtureWeights and Categorical over the same leaf, for any shape."""

    def make(*shape):
        leaf = table(*shape)
        leaf = (
            (leaf / leaf.sum(-1, keepdim=True)).log() - 3
            if request.param == "logits"
            else leaf / leaf.sum(-1, True)
        )
        mine, theirs = leaf.clone().requires_grad_(), leaf.clone().requires_grad_()
        return (
            mine,
            MixtureWeights(**{request.param: mine}),
            theirs,
            dist.Categorical(**{request.param: theirs}),
        )

    return make


@pytest.mark.meta
@pytest.mark.parametrize(
    ("shape", "rows"),
    [((4,), (7,)), ((4,), (3, 7)), ((4,), (4, 1)), ((2, 1, 4), (7,)), ((2, 1, 4), (4, 1, 1))],
)
def test_log_prob_and_gradient_are_those_of_a_categorical(pair, shape, rows):
    mine, weights, theirs, stock = pair(*shape)
    z = torch.randint(4, rows, device="cpu")
    found, expected = weights.log_prob(z), stock.log_prob(z)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    if "probs" in weights.arguments:
        # Categorical normalizes its argument, so its gradient lies along the simplex; ours is the
        # gradient of log p.
        along = torch.eye(4, dtype=F64, device="cpu") - theirs.detach().unsqueeze(-2)
        torch.testing.assert_close((along @ mine.grad.unsqueeze(-1)).squeeze(-1), theirs.grad)
    else:
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_keeps_the_tensor_that_it_was_given():
    probs = torch.tensor([0.5, 0.5])
    assert MixtureWeights(probs).arguments["probs"] is probs
    assert MixtureWeights(logits=probs).expand((3,)).arguments == {"logits": probs}


@pytest.mark.parametrize("name", ["probs", "logits"])
def test_a_zero_weight_is_impossible_and_its_gradient_finite(name):
    probs = torch.tensor([0.25, 0.0, 0.75], dtype=F64)
    given = (probs if name == "probs" else probs.log()).requires_grad_()
    weights = MixtureWeights(**{name: given})
    found = weights.log_prob(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found.exp(), probs)
    found.logsumexp(0).backward()
    assert bool(given.grad.isfinite().all())
    assert float(given.grad[1]) == 0.0
    assert 1 not in weights.sample((500,)).tolist()


def test_padding_is_impossible_and_passes_no_gradient_on():
    probs = torch.tensor([0.25, 0.75], dtype=F64).requires_grad_()
    found = MixtureWeights(probs).log_prob(torch.tensor([-1, 1]))
    assert found.tolist() == [-torch.inf, pytest.approx(-0.2876820724517809)]
    found.logsumexp(0).backward()
    torch.testing.assert_close(probs.grad, torch.tensor([0.0, 4 / 3], dtype=F64))


class _Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returns, also in backward."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_nothing_of_the_size_of_values_times_components_is_built():
    """Categorical.log_prob over broadcast logits builds (values, C) in backward."""
    sizes = []
    for family in (MixtureWeights, dist.Categorical):
        probs, z = torch.full((100,), 0.01).requires_grad_(), torch.randint(100, (4, 60))
        with _Largest() as largest:
            family(probs).expand((60,)).log_prob(z).sum().backward()
        sizes.append(largest.numel)
    assert sizes[0] == 240
    assert sizes[1] >= 60 * 100


def test_shapes_and_support_are_those_of_a_pyro_distribution():
    weights = MixtureWeights(torch.full((5,), 0.2))
    assert (weights.batch_shape, weights.event_shape, weights.components) == ((), (), 5)
    assert weights.param_shape == (5,)
    wide = weights.expand((3, 2))
    assert wide.sample((4,)).shape == (4, 3, 2)
    assert wide.log_prob(torch.tensor(0)).shape == (3, 2)
    assert wide.enumerate_support(expand=False).shape == (5, 1, 1)
    assert torch.equal(wide.enumerate_support(), torch.arange(5).view(5, 1, 1).expand(5, 3, 2))
    assert bool(wide.support.check(wide.sample()).all())
    assert not bool(wide.support.check(torch.tensor(5)))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_samples_have_the_frequencies_of_their_weights(shape):
    probs = table(*shape, 4)
    probs = probs / probs.sum(-1, keepdim=True)
    n = 20_000
    draws = MixtureWeights(probs).sample((n,))
    assert draws.shape == (n, *shape)
    frequency = torch.nn.functional.one_hot(draws, 4).double().mean(0)
    assert ((frequency - probs) / (probs * (1 - probs) / n).sqrt()).abs().max() < 5


def test_expanded_samples_are_drawn_one_by_one():
    draws = MixtureWeights(torch.full((50,), 0.02)).expand((200,)).sample()
    assert len(draws.unique()) > 30


def test_weights_are_expanded_and_enumerated_in_a_plate():
    def model():
        with pyro.plate("data", 3):
            return pyro.sample(
                "z", MixtureWeights(torch.tensor([0.2, 0.8])), infer={"enumerate": "parallel"}
            )

    with pyro.poutine.enum(first_available_dim=-2):
        assert model().tolist() == [[0], [1]]


@pytest.mark.parametrize("arguments", [{}, {"probs": torch.ones(1), "logits": torch.zeros(1)}])
def test_exactly_one_argument_is_needed(arguments):
    with pytest.raises(OptionError, match="pass one of them"):
        MixtureWeights(**arguments)


@pytest.mark.parametrize(
    "bad", [{"probs": torch.tensor([0.5, 0.6])}, {"logits": torch.tensor([0.0, torch.nan])}]
)
def test_arguments_out_of_their_constraints_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        MixtureWeights(**bad, validate_args=True)


def test_statistics_count_responsibilities_and_their_maximizer_is_the_share(pair):
    _, weights, _, _ = pair(4)
    z = torch.tensor([[0, 1, 2], [3, -1, 0]])
    q = torch.tensor([[0.5, 1.0, 0.25], [0.5, 0.0, 0.75]])
    found = weights.statistics(z, q)
    assert found.counts.tolist() == [1.25, 1.0, 0.25, 0.5]
    assert found.counts.dtype == F64
    (new,) = weights.maximize(found, frozenset(weights.arguments)).values()
    shares = new if "probs" in weights.arguments else new.exp()
    torch.testing.assert_close(shares, torch.tensor([1.25, 1.0, 0.25, 0.5], dtype=F64) / 3)
    assert weights.maximize(found, frozenset()) == {}


def test_statistics_of_shared_candidates_are_broadcast_to_the_responsibilities():
    q = torch.rand(3, 7, dtype=F64)
    found = MixtureWeights(torch.full((3,), 1 / 3)).statistics(torch.arange(3).unsqueeze(-1), q)
    torch.testing.assert_close(found.counts, q.sum(-1))


def test_weights_with_batch_dimensions_have_no_closed_form():
    weights = MixtureWeights(torch.full((2, 1, 3), 1 / 3))
    statistics = MixtureWeights(torch.full((3,), 1 / 3)).statistics(
        torch.tensor([0]), torch.ones(1)
    )
    with pytest.raises(ClosedFormError, match="batch dimensions"):
        weights.maximize(statistics, frozenset(["probs"]))
