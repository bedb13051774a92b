"""Categorical components against the stock Categorical."""

import pytest
import torch
from pyro import distributions as dist

from pyro_mixtures.distributions import Categoricals
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError

F64 = torch.float64


def probs(*shape):
    table = torch.rand(*shape, dtype=F64, device="cpu") + 0.1
    return table / table.sum(-1, keepdim=True)


@pytest.mark.meta
@pytest.mark.parametrize("lead", [(), (2, 1)])
@pytest.mark.parametrize("rows", [(7,), (4, 1, 7), (3, 1, 1)])
def test_log_prob_and_gradient_are_those_of_a_categorical(lead, rows):
    mine = probs(*lead, 3, 5).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    z, label = torch.randint(3, rows, device="cpu"), torch.randint(5, (7,), device="cpu")
    shape = torch.broadcast_shapes(lead, rows, label.shape)
    table = (
        dist.Categorical(theirs).log_prob(label.view(7, *(1,) * (len(lead) + 1))).movedim(0, -2)
    )  # (*lead, 7, C)
    if lead:
        table = table.squeeze(1)
    expected = table.expand(*shape, 3).gather(-1, z.expand(shape).unsqueeze(-1)).squeeze(-1)
    found = Categoricals(mine)[z].log_prob(label)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    along = torch.eye(5, dtype=F64, device="cpu") - theirs.detach().unsqueeze(
        -2
    )  # Categorical normalizes its argument
    torch.testing.assert_close((along @ mine.grad.unsqueeze(-1)).squeeze(-1), theirs.grad)


def test_padding_and_impossible_labels_have_probability_zero_and_finite_gradients():
    table = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=F64).requires_grad_()
    found = Categoricals(table)[torch.tensor([0, 0, -1, 1])].log_prob(torch.tensor([1, 2, 1, 2]))
    torch.testing.assert_close(found.exp(), torch.tensor([0.5, 0.0, 0.0, 0.5], dtype=F64))
    found.logsumexp(0).backward()
    torch.testing.assert_close(
        table.grad, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=F64)
    )


def test_shapes_are_those_of_a_pyro_distribution():
    family = Categoricals(probs(3, 5))
    assert (family.batch_shape, family.event_shape, family.components, family.labels) == (
        (3,),
        (),
        3,
        5,
    )
    selected = family[torch.tensor([0, 2])].expand((4, 2))
    assert selected.sample((6,)).shape == (6, 4, 2)
    assert selected.log_prob(torch.tensor(1)).shape == (4, 2)
    assert not selected.has_rsample
    assert family.log_prob(torch.tensor([[0], [4]])).shape == (2, 3)
    with pytest.raises(NotImplementedError, match="Categoricals"):
        selected.rsample()


def test_draws_have_the_frequencies_and_mean_of_their_component():
    table, n = probs(3, 4), 20_000
    z = torch.tensor([2, 0])
    draws = Categoricals(table)[z].sample((n,))
    frequency = torch.nn.functional.one_hot(draws, 4).double().mean(0)
    spread = (table[z] * (1 - table[z]) / n).sqrt()
    assert ((frequency - table[z]) / spread).abs().max() < 5
    torch.testing.assert_close(Categoricals(table)[z].mean, (table[z] * torch.arange(4)).sum(-1))


def test_statistics_count_labels_and_their_maximizer_is_the_share():
    table = probs(3, 2)
    family = Categoricals(table)
    z, label = torch.tensor([[0, 1, 0], [1, -1, -1]]), torch.tensor([1, 0, 0])
    q = torch.tensor([[0.25, 1.0, 1.0], [0.75, 0.0, 0.0]], dtype=F64)
    statistics = family[z].statistics(label, q)
    assert statistics.counts.tolist() == [[1.0, 0.25], [1.0, 0.75], [0.0, 0.0]]
    new = family.maximize(statistics, frozenset(["probs"]), floor=None)["probs"]
    # The last component is empty and stays.
    expected = torch.stack([torch.tensor([0.8, 0.2]), torch.tensor([4 / 7, 3 / 7]), table[2]])
    torch.testing.assert_close(new, expected, check_dtype=False)
    assert family.maximize(statistics, frozenset(), floor=None) == {}


@pytest.mark.parametrize("bad", [-1, 5])
def test_labels_out_of_range_are_refused(bad):
    with pytest.raises(DataError, match=r"not in \[0, 5\)"):
        Categoricals(probs(3, 5))[torch.tensor([0])].log_prob(torch.tensor([bad]))


def test_arguments_that_are_no_probabilities_are_refused():
    with pytest.raises(OptionError, match="floating-point"):
        Categoricals(torch.tensor([[1, 0]]))
    with pytest.raises(ValueError, match="probs"):
        Categoricals(torch.tensor([[0.5, 0.6]]), validate_args=True)


def test_a_batch_of_tables_has_no_closed_form():
    selected = Categoricals(probs(2, 1, 3, 4))[torch.tensor([0, 1])]
    with pytest.raises(ClosedFormError, match="one set of parameters"):
        selected.statistics(torch.tensor([0, 1]), torch.ones(2, 2))
