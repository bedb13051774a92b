"""Rows that count for nothing, in models by their means: masked, and what is refused."""

import pyro
import pytest
import torch

from pyro_mixtures.errors import DataError
from pyro_mixtures.guides import FullPartition, HardPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models.bregman import BregmanMixture


def fitted(x, weight, guide_class, divergence):
    pyro.clear_param_store()
    torch.manual_seed(0)
    model = BregmanMixture(components=2, features=2, divergence=divergence).to(x.dtype)
    em = EM(model, guide_class(model, components=2), empty="keep")
    losses = [em.step(x, weight) for _ in range(3)]
    return torch.cat(
        [torch.tensor(losses, dtype=torch.float64), model.mean.detach().flatten().double()]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", ["squared", "kl"])
@pytest.mark.parametrize("guide_class", [FullPartition, HardPartition])
def test_rows_of_weight_zero_are_nobodys(dtype, divergence, guide_class):
    x = torch.tensor([[0.0, 4.0], [1.0, 2.0], [9.0, 9.0], [7.0, 1.0], [6.0, 2.0]], dtype=dtype)
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0], dtype=dtype)
    kept = weight > 0
    found, expected = (
        fitted(*rows, guide_class, divergence) for rows in ((x, weight), (x[kept], weight[kept]))
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(2), r"row_weight \(2,\) for 3 rows"),
        (torch.tensor([1.0, -1.0, 1.0]), "row_weight of row 1 is -1"),
        (torch.tensor([1.0, 1.0, torch.nan]), "row_weight of row 2 is nan"),
        (1.0, "row_weight must be a tensor"),
    ],
)
def test_weights_that_cannot_be_are_refused(weight, message):
    pyro.clear_param_store()
    model = BregmanMixture(components=2, features=2)
    with pytest.raises(DataError, match=message):
        model(torch.zeros(3, 2), weight)
    with pytest.raises(DataError, match=r"for 0 rows|must be a tensor"):
        model(None, weight, size=3)
