"""Params that are not identified, and fits that have not converged."""

import pyro
import pytest
import torch
from torch.distributions import constraints

from pyro_mixtures.distributions import (
    FactorAnalyzers,
    IsotropicNormals,
    MixtureWeights,
)
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.errors import NumericalError
from pyro_mixtures.infer.uncertainty.observed_information import (
    observed_information,
    standard_errors,
)
from pyro_mixtures.poutine import data_plate
from tests.infer.uncertainty.programs import F64, N, alone, climb, groups, two_gaussians

pytestmark = pytest.mark.usefixtures("on_one_thread")


def test_gates_need_a_reference_and_no_component_without_rows():
    u = torch.randn(N, 1, dtype=F64)

    def model(u, x, reference=True):
        shape = (2 - reference, 1)
        weight, bias = (
            pyro.param("weight", torch.zeros(shape, dtype=F64)),
            pyro.param("bias", torch.zeros(shape[0])),
        )
        with data_plate(u):
            z = pyro.sample("z", GatedWeights(u, weight, bias.to(F64), reference=reference))
            loc = torch.tensor([[-1.0], [1.0]], dtype=F64)
            pyro.sample("x", IsotropicNormals(loc, torch.ones(2, dtype=F64))[z], obs=x)

    with pytest.raises(
        NumericalError, match=r"\['bias', 'weight'\] are not identified: in 2 directions"
    ):
        observed_information(lambda u, x: model(u, x, False), u, u)
    pyro.clear_param_store()
    model(u, u)
    with torch.no_grad():
        pyro.param("bias").fill_(-torch.inf)
    with pytest.raises(NumericalError, match=r"params \['bias'\] are not finite"):
        observed_information(model, u, u)


def test_params_that_are_not_identified_are_named():
    """Logits are identified up to a constant, and a param may have no effect."""
    x = torch.randn(N, 3, dtype=F64)

    def logits(x):
        with data_plate(x):
            z = pyro.sample(
                "z", MixtureWeights(logits=pyro.param("logits", torch.zeros(2, dtype=F64)))
            )
            loc = torch.tensor([[-1.0] * 3, [1.0] * 3], dtype=F64)
            pyro.sample("x", IsotropicNormals(loc, torch.ones(2, dtype=F64))[z], obs=x)

    with pytest.raises(NumericalError, match=r"\['logits'\] are not identified: in 1 direction"):
        observed_information(logits, x)

    def unused(x):
        pyro.param("unused", torch.zeros(2, dtype=F64))
        alone(
            IsotropicNormals(pyro.param("mean", x.mean(0, keepdim=True)), torch.ones(1, dtype=F64)),
            x,
        )

    with pytest.raises(NumericalError, match=r"\['unused'\] are not identified: in 2"):
        observed_information(unused, x)
    assert set(standard_errors(unused, x, freeze=["unused"])) == {"mean"}


def test_factors_are_identified_up_to_a_rotation():
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(300, 6, dtype=F64, generator=generator)
    x = (
        torch.randn(300, 2, dtype=F64, generator=generator)
        @ (2 * torch.randn(2, 6, dtype=F64, generator=generator))
        + noise
    )

    def single(x):
        loc = pyro.param("loc", x.mean(0, keepdim=True))
        factor = pyro.param("factor", torch.randn(1, 6, 2, dtype=F64))
        spread = pyro.param("noise", torch.ones(1, 6, dtype=F64), constraint=constraints.positive)
        alone(FactorAnalyzers(loc, factor, spread), x)

    climb(single, x)
    with pytest.raises(NumericalError, match=r"\['factor'\] are not identified: in 1 direction"):
        observed_information(single, x)


def test_points_that_are_not_a_maximum_are_reported():
    x = groups()
    climb(two_gaussians, x)
    with torch.no_grad():
        pyro.param("loc").add_(0.05)
    with pytest.warns(RuntimeWarning, match="can still increase by about"):
        observed_information(two_gaussians, x)
    with torch.no_grad():
        pyro.param("loc").fill_(0.1)  # between the groups: a saddle
        pyro.get_param_store()["scale"] = torch.full((2, 1), 0.5, dtype=F64)
    with pytest.raises(NumericalError, match="not at a maximum"):
        observed_information(two_gaussians, x)
