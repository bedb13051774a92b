"""Options of EM and of the fit loop that are refused."""

import math

import pytest
import torch

from pyro_mixtures.errors import ClosedFormError, ModelError, OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models import GaussianMixture, MixtureOfSVMs
from pyro_mixtures.models.latent_class_logit import LatentClassLogit


def gmm():
    return GaussianMixture(components=2, features=2)


def exact(**options) -> EM:
    model = gmm()
    return EM(model, FullPartition(model, components=2), **options)


@pytest.mark.parametrize("guide", [None, "full"])
def test_guides_without_e_step_are_refused(guide):
    with pytest.raises(ModelError, match=f"guide={guide!r} has no E-step"):
        EM(gmm(), guide)


@pytest.mark.parametrize("freeze", [3, None, [3], "loc"])
def test_freeze_must_list_names(freeze):
    with pytest.raises(OptionError, match="freeze="):
        exact(freeze=freeze)


def test_frozen_names_may_come_from_an_iterator():
    assert exact(freeze=iter(["loc"])).freeze == {"loc"}


WHOLE = [
    ("epochs", 2.0),
    ("epochs", -1),
    ("warmup", 1.5),
    ("patience", 3.0),
    ("patience", 0),
    ("search_every", 2.0),
]


@pytest.mark.parametrize(
    ("option", "value"), [*WHOLE, ("tolerance", math.nan), ("tolerance", "1"), ("tolerance", None)]
)
def test_impossible_options_of_fit_are_refused(option, value):
    with pytest.raises(OptionError, match=f"{option}="):
        fit(exact(), torch.randn(20, 2), progress=False, **{option: value})


@pytest.mark.parametrize("tolerance", [math.inf, -math.inf, 0])
def test_tolerance_may_be_infinite(tolerance):
    assert (
        len(fit(exact(), torch.randn(20, 2), epochs=2, progress=False, tolerance=tolerance).history)
        == 2
    )


def test_stepwise_em_refuses_families_that_are_fitted_to_the_rows():
    x, y = torch.randn(30, 2), torch.ones(30).long()
    model = MixtureOfSVMs(components=2, features=2)
    machines = EM(model, FullPartition(model, components=2), step_size=lambda t: 0.5)
    with pytest.raises(ClosedFormError, match="these components are fitted to the rows themselves"):
        machines.step(x, y)
    classes = LatentClassLogit(components=2, coefficients=2)
    logits = EM(classes, FullPartition(classes, components=2), step_size=lambda t: 0.5)
    with pytest.raises(ClosedFormError, match="logits are fitted to the rows themselves"):
        logits.step(
            torch.randn(30, 1, 3, 2),
            torch.ones(30, 1, 3, dtype=torch.bool),
            torch.ones(30, 1).long(),
        )
