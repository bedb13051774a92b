"""Arguments of data plates that are refused."""

import pytest
import torch

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.poutine import data_plate


def gmm():
    return GaussianMixture(components=2, features=2)


@pytest.mark.parametrize("size", [-5, "5", 5.0, True])
def test_sizes_must_be_numbers_of_rows(size):
    with pytest.raises(OptionError, match="size="):
        gmm()(None, size=size)
    with pytest.raises(OptionError, match="rows="):
        data_plate(size)


def test_index_must_be_a_tensor():
    with pytest.raises(DataError, match="index must be a tensor of row numbers, not a list"):
        data_plate(torch.zeros(2, 2), index=[0, 1], size=5)
