"""Arguments that can mean nothing are refused in words: plates, EM, fit, scores, families, module experts."""

import math

import pyro
import pytest
import torch

from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.distributions.regression.generalized_regressions import LogisticRegressions
from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.distributions.regression.support_vectors import SupportVectorMachines
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, assign, fit, log_evidence, responsibilities
from pyro_mixtures.models import GaussianMixture, MixtureOfSVMs
from pyro_mixtures.models.experts import MixtureOfExperts
from pyro_mixtures.models.latent_class_logit import LatentClassLogit
from pyro_mixtures.poutine import data_plate


def gmm():
    return GaussianMixture(components=2, features=2)


def exact(**options) -> EM:
    model = gmm()
    return EM(model, FullPartition(model, components=2), **options)


@pytest.mark.parametrize("size", [-5, "5", 5.0, True])
def test_sizes_of_plates_that_are_no_numbers_of_rows(size):
    with pytest.raises(OptionError, match="size="):
        gmm()(None, size=size)
    with pytest.raises(OptionError, match="rows="):
        data_plate(size)


def test_indices_that_are_no_tensors():
    with pytest.raises(DataError, match="index must be a tensor of row numbers, not a list"):
        data_plate(torch.zeros(2, 2), index=[0, 1], size=5)


@pytest.mark.parametrize("event_shape", [3, "3", (3.0,), (0,), None])
def test_event_shapes_that_are_no_shapes(event_shape):
    with pytest.raises(OptionError, match="event_shape="):
        MixtureOfExperts(
            lambda: torch.nn.Linear(2, 1),
            components=2,
            features=2,
            loss="squared",
            event_shape=event_shape,
        )


def test_substituted_parameters_of_experts_are_refused_in_words_that_fit():
    model = MixtureOfExperts(
        lambda: torch.nn.Linear(2, 1), components=2, features=2, loss="squared"
    )
    replaced = pyro.poutine.substitute(model, data={"experts.0.bias": torch.zeros(1)})
    with pytest.raises(
        ModelError, match=r"'experts.0.bias', a module's own: .* no prior or substitute"
    ):
        replaced(torch.zeros(3, 2), torch.zeros(3))


@pytest.mark.parametrize(
    "option", [{"loss": ["hinge"]}, {"loss": None}, {"solver": ["newton"]}, {"ridge": math.nan}]
)
def test_options_of_support_vector_machines(option):
    with pytest.raises(OptionError, match=f"{next(iter(option))}="):
        MixtureOfSVMs(components=2, features=2, **option)


def built(family, ridge):
    x, weight, bias = torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(2)
    if family is LinearRegressions:
        return family(x, weight, bias, torch.ones(2), ridge=ridge)
    return family(x, weight, bias, ridge=ridge)


@pytest.mark.parametrize("ridge", [math.nan, math.inf, -1.0, "1", None, True])
@pytest.mark.parametrize(
    "family", [LinearRegressions, LogisticRegressions, SupportVectorMachines, GatedWeights]
)
def test_penalties_of_families(family, ridge):
    with pytest.raises(OptionError, match="ridge="):
        built(family, ridge)


@pytest.mark.parametrize("score", [log_evidence, responsibilities, assign])
def test_scores_by_guides_that_are_none_or_given_sites_that_are_not_there(score):
    with pytest.raises(ModelError, match="guide='full' is no guide"):
        score(gmm(), torch.zeros(3, 2), guide="full")
    with pytest.raises(ModelError, match=r"given=\['shift'\]: .* no such latent sites"):
        score(gmm(), torch.zeros(3, 2), given={"shift": torch.zeros(())})


@pytest.mark.parametrize("guide", [None, "full"])
def test_guides_of_em_that_are_none(guide):
    with pytest.raises(ModelError, match=f"guide={guide!r} has no E-step"):
        EM(gmm(), guide)


@pytest.mark.parametrize("freeze", [3, None, [3], "loc"])
def test_frozen_names_that_are_no_list_of_names(freeze):
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
def test_options_of_fits(option, value):
    with pytest.raises(OptionError, match=f"{option}="):
        fit(exact(), torch.randn(20, 2), progress=False, **{option: value})


@pytest.mark.parametrize("tolerance", [math.inf, -math.inf, 0])
def test_tolerances_may_have_no_end(tolerance):
    assert (
        len(fit(exact(), torch.randn(20, 2), epochs=2, progress=False, tolerance=tolerance).history)
        == 2
    )


def test_stepwise_em_refuses_families_that_keep_rows_in_their_own_words():
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
