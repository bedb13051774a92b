"""The log_prob of the weights: nothing of size (values, C) is built."""

import pytest
import torch
from pyro import distributions as dist
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pyro_mixtures.distributions import MixtureWeights
from tests.sharp_edges.program import WEIGHTS, C, N


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest storage that is allocated inside the context."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(
                    self.numel, tensor.untyped_storage().nbytes() // tensor.element_size()
                )
        return out


def largest_of_log_prob(make, slots=3, rows=50, components=70):
    argument = torch.full((components,), 1 / components, requires_grad=True, device="cpu")
    z = torch.randint(components, (slots, rows), device="cpu")
    with LargestTensor() as seen:
        make(argument).expand((rows,)).log_prob(z).sum().backward()
    assert argument.grad is not None
    return seen.numel, slots * rows, slots * rows * components


@pytest.mark.meta
@pytest.mark.parametrize("argument", ["probs", "logits"])
def test_log_prob_builds_nothing_larger_than_its_values(argument):
    largest, values, _ = largest_of_log_prob(lambda tensor: MixtureWeights(**{argument: tensor}))
    assert largest == values


@pytest.mark.parametrize("argument", ["probs", "logits"])
def test_stock_categorical_builds_all_components_of_every_value(argument):
    largest, _, everything = largest_of_log_prob(
        lambda tensor: dist.Categorical(**{argument: tensor})
    )
    assert largest >= everything


@pytest.mark.meta
def test_log_prob_and_gradient_are_those_of_the_stock_categorical():
    z = torch.randint(C, (3, N), device="cpu")
    ours, stock = (WEIGHTS.clone().requires_grad_() for _ in range(2))
    # The weights lie on the simplex, so the stock normalization only changes the offset of the
    # gradient.
    mine = MixtureWeights(ours / ours.sum()).expand((N,)).log_prob(z)
    theirs = dist.Categorical(stock).expand((N,)).log_prob(z)
    assert_close(mine, theirs)
    mine.sum().backward()
    theirs.sum().backward()
    assert_close(ours.grad, stock.grad)
