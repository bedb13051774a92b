"""Flat component numbers."""

import torch

from pyro_mixtures.distributions.indexing import flat_index, once


def test_flat_index_numbers_batches_and_leaves_padding():
    z = torch.tensor([0, 2, -1])
    assert flat_index(z, torch.Size(), 3) is z
    assert flat_index(z, torch.Size([1]), 3) is z
    assert flat_index(z, torch.Size([2, 1]), 3).tolist() == [[0, 2, -1], [3, 5, -1]]
    assert flat_index(z[0], torch.Size([1, 1]), 3).tolist() == [[0]]


def test_an_index_expanded_over_rows_is_looked_up_once():
    every = torch.arange(3).unsqueeze(-1)
    assert once(every.expand(3, 7)).shape == (3, 1)
    assert once(every.expand(3, 7).clone()).shape == (3, 7)
    assert once(torch.tensor(2)).shape == ()
    assert once(torch.zeros(0, dtype=torch.int64)).shape == (0,)
