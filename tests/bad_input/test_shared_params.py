"""Models that take each other's params from Pyro's store give a warning."""

import pyro
import pytest
import torch

from pyro_mixtures.errors import SharedParamsWarning
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, log_evidence
from tests.bad_input.inputs import C, draw_rows, gaussian


@pytest.mark.meta
@pytest.mark.parametrize("components", [C, C + 1])
def test_second_model_of_a_session_warns_that_it_takes_the_first_ones_params(components):
    """Both have params of the same names, so Pyro gives the second those of the first."""
    x, first = draw_rows(), gaussian()
    EM(first, FullPartition(first, components=C)).step(x)
    second = gaussian(components=components)
    with pytest.warns(
        SharedParamsWarning, match=r"values of \['loc', 'scale', 'weights'\].*clear_param_store\(\)"
    ):
        second(x)


def test_first_model_warns_that_it_takes_the_second_ones_params():
    """It ran before a second fit in a cleared store, and would lose its own values."""
    x, first = draw_rows(), gaussian()
    log_evidence(first, x)
    pyro.clear_param_store()
    log_evidence(gaussian(), x)
    with pytest.warns(SharedParamsWarning, match=r"values of \['loc', 'scale', 'weights'\]"):
        log_evidence(first, x)


def test_second_model_keeps_its_own_params_after_either_remedy():
    x, first = draw_rows(), gaussian()
    EM(first, FullPartition(first, components=C)).step(x)
    pyro.clear_param_store()
    second = gaussian()
    own = second.loc.detach().clone()
    log_evidence(second, x)
    assert torch.equal(second.loc.detach(), own)
    with pyro.settings.context(module_local_params=True):
        third = gaussian(components=C + 1)
        own = third.loc.detach().clone()
        log_evidence(third, x)
        assert torch.equal(third.loc.detach(), own)
