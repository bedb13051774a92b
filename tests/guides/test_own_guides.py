"""Users' own guides: what a subclass has to define."""

import pytest
import torch

from pyro_mixtures.errors import ModelError
from pyro_mixtures.guides import PartitionGuide
from pyro_mixtures.infer import EM, log_evidence
from pyro_mixtures.models import GaussianMixture


def test_missing_methods_are_named():
    class Incomplete(PartitionGuide):
        pass

    with torch.device("cpu"):
        model, x = GaussianMixture(components=2, features=2), torch.randn(10, 2)
    guide = Incomplete(model, components=2)
    with pytest.raises(ModelError, match=r"Incomplete does not implement e_step\(\)"):
        EM(model, guide).step(x)
    with pytest.raises(ModelError, match=r"does not implement posterior_of_new_rows\(\)"):
        log_evidence(model, x, guide=guide)
