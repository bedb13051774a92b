"""Options of models that are refused."""

import math

import pyro
import pytest
import torch

from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.models import MixtureOfSVMs
from pyro_mixtures.models.experts import MixtureOfExperts


@pytest.mark.parametrize("event_shape", [3, "3", (3.0,), (0,), None])
def test_impossible_event_shapes_are_refused(event_shape):
    with pytest.raises(OptionError, match="event_shape="):
        MixtureOfExperts(
            lambda: torch.nn.Linear(2, 1),
            components=2,
            features=2,
            loss="squared",
            event_shape=event_shape,
        )


def test_substituted_parameters_of_experts_are_refused():
    model = MixtureOfExperts(
        lambda: torch.nn.Linear(2, 1), components=2, features=2, loss="squared"
    )
    replaced = pyro.poutine.substitute(model, data={"experts.0.bias": torch.zeros(1)})
    with pytest.raises(
        ModelError, match=r"replaces param 'experts\.0\.bias', which belongs to a module"
    ):
        replaced(torch.zeros(3, 2), torch.zeros(3))


@pytest.mark.parametrize(
    "option", [{"loss": ["hinge"]}, {"loss": None}, {"solver": ["newton"]}, {"ridge": math.nan}]
)
def test_impossible_options_of_support_vector_machines_are_refused(option):
    with pytest.raises(OptionError, match=f"{next(iter(option))}="):
        MixtureOfSVMs(components=2, features=2, **option)
