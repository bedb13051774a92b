"""Penalties of families that are refused."""

import math

import pytest
import torch

from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.distributions.regression.generalized_regressions import LogisticRegressions
from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.distributions.regression.support_vectors import SupportVectorMachines
from pyro_mixtures.errors import OptionError


def built(family, ridge):
    x, weight, bias = torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(2)
    if family is LinearRegressions:
        return family(x, weight, bias, torch.ones(2), ridge=ridge)
    return family(x, weight, bias, ridge=ridge)


@pytest.mark.parametrize("ridge", [math.nan, math.inf, -1.0, "1", None, True])
@pytest.mark.parametrize(
    "family", [LinearRegressions, LogisticRegressions, SupportVectorMachines, GatedWeights]
)
def test_impossible_penalties_are_refused(family, ridge):
    with pytest.raises(OptionError, match="ridge="):
        built(family, ridge)
