"""Guides and given values that scores refuse."""

import pytest
import torch

from pyro_mixtures.errors import ModelError
from pyro_mixtures.infer import assign, log_evidence, responsibilities
from pyro_mixtures.models import GaussianMixture


def gmm():
    return GaussianMixture(components=2, features=2)


@pytest.mark.parametrize("score", [log_evidence, responsibilities, assign])
def test_unknown_guides_and_unknown_given_sites_are_refused(score):
    with pytest.raises(ModelError, match="guide='full' is no guide"):
        score(gmm(), torch.zeros(3, 2), guide="full")
    with pytest.raises(ModelError, match=r"given=\['shift'\]: .* no such latent sites"):
        score(gmm(), torch.zeros(3, 2), given={"shift": torch.zeros(())})
