"""Flags are True or False: a string such as "no" would count as true."""

import importlib
import inspect

import numpy as np
import pytest
import torch

from pyro_mixtures import data, diagnostics, distributions, infer, models
from pyro_mixtures.diagnostics.partition_information import PartitionInformation, plot_information
from pyro_mixtures.errors import OptionError
from pyro_mixtures.init.moment_atoms import moment_atoms
from pyro_mixtures.options import check_flag

PACKAGES = ("data", "diagnostics", "distributions", "guides", "infer", "information", "init")
PACKAGES += ("models", "ops", "partition")
# Set by the library: fields of results, and arguments of methods that only it calls.
NOT_OPTIONS = {"converged", "interrupted", "searched", "learned_weights", "validate_args"}

x = torch.randn(6, 2, device="cpu")
sizes = {"components": 2, "features": 2}


def build(*_):
    raise AssertionError("called before the flags were checked")


# By name of the callable: positional and other arguments of a call.
CALLS = {
    "GatedWeights": (distributions.GatedWeights, (x, x[:2], x[:2, 0]), {}),
    "best_of": (infer.best_of, (build, x), {"starts": [build]}),
    "bootstrap": (infer.bootstrap, (build, x), {}),
    "choices_from_long": (
        data.choices_from_long,
        ({"id": [1]},),
        {"chooser": "id", "alternative": "id", "chosen": "id"},
    ),
    "choices_from_wide": (
        data.choices_from_wide,
        ({"id": [1]},),
        {"chosen": "id", "alternatives": {}},
    ),
    "compare_fits": (diagnostics.compare_fits, ({"a": build}, x), {"components": [2]}),
    "fit": (infer.fit, (None, x), {}),
    "fit_restarts": (infer.fit_restarts, (build, x), {"starts": 1}),
    "grow": (infer.grow, (build, x), {"components": [1, 2]}),
    "observed_information": (infer.observed_information, (build, x), {}),
    "plot_information": (plot_information, (PartitionInformation([], [], 0.5, 9),), {}),
    "to_arviz": (diagnostics.to_arviz, (build, x), {}),
    "BregmanMixture": (models.BregmanMixture, (), sizes),
    "GaussianMixture": (models.GaussianMixture, (), sizes),
    "KMeans": (models.KMeans, (), sizes),
    "MixtureOfExperts": (models.MixtureOfExperts, (build,), {**sizes, "loss": "squared"}),
    "MixtureOfFactorAnalyzers": (models.MixtureOfFactorAnalyzers, (), {**sizes, "factors": 1}),
    "MixtureOfLogisticRegressions": (models.MixtureOfLogisticRegressions, (), sizes),
    "MixtureOfPoissonRegressions": (models.MixtureOfPoissonRegressions, (), sizes),
    "MixtureOfRegressions": (models.MixtureOfRegressions, (), sizes),
    "MixtureOfSVMs": (models.MixtureOfSVMs, (), sizes),
    "SoftmaxMixture": (models.SoftmaxMixture, (), {"components": 2, "features": x}),
}
ABSTRACT = {"ConditionalMixture", "Mixture", "MixtureProgram", "NormalMixture"}


def flags():
    """Name of the callable and of the option, for each flag of the public packages."""
    for package in PACKAGES:
        module = importlib.import_module(f"pyro_mixtures.{package}")
        for name in module.__all__:
            function = getattr(module, name)
            if not callable(function) or name in ABSTRACT:
                continue
            try:
                parameters = inspect.signature(function).parameters.values()
            except ValueError:
                continue
            for parameter in parameters:
                is_flag = parameter.annotation is bool or isinstance(parameter.default, bool)
                if is_flag and parameter.name not in NOT_OPTIONS:
                    yield name, parameter.name


FLAGS = sorted(set(flags()))


@pytest.mark.parametrize(("name", "option"), FLAGS)
@pytest.mark.parametrize("value", ["no", None, 1, np.array([True, False])], ids=str)
def test_options_that_are_no_booleans_are_refused(name, option, value):
    function, arguments, options = CALLS[name]
    with pytest.raises(OptionError, match=rf"{option}=.* must be True or False"):
        function(*arguments, **{**options, option: value})


def test_the_flag_of_moment_atoms():
    with pytest.raises(OptionError, match="diagonalize='no' must be True or False"):
        moment_atoms(None, 2, max_norm=3.0, diagonalize="no")


@pytest.mark.parametrize("value", [True, False, np.bool_(True)])
def test_booleans_are_accepted(value):
    check_flag(flag=value)


@pytest.mark.parametrize("value", [0, 1, 1.0, "", "True", None, [], torch.tensor(True)], ids=str)
def test_other_values_are_no_flags(value):
    with pytest.raises(OptionError, match="must be True or False"):
        check_flag(flag=value)
