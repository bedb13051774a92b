"""When fits converge: tolerance, patience, and invariance to shifts and scales of the data."""

import math

import numpy as np
import pyro
import pytest
import torch

from pyro_mixtures.infer import fit
from tests.infer.em.strategies import D, assert_same, exact, params, quiet

pytestmark = pytest.mark.usefixtures("on_one_thread")


def affine_epochs(x, shift, scale, tolerance=1e-4):
    found = fit(
        exact(scale * (x + shift)),
        scale * (x + shift),
        epochs=400,
        tolerance=tolerance,
        progress=False,
    )
    assert found.converged
    return found


@pytest.mark.parametrize(
    ("shift", "scale"), [(1000.0, 1.0), (0.0, 1e-3), (0.0, 1e3), (1000.0, 1e-3), (-1000.0, 1e3)]
)
def test_shifted_and_scaled_data_take_as_many_epochs(x, shift, scale):
    plain, moved = affine_epochs(x, 0.0, 1.0), affine_epochs(x, shift, scale)
    assert len(plain.history) > 5
    assert len(moved.history) == len(plain.history)
    # Densities are those of the scaled features.
    expected = plain.history["elbo"] - D * math.log(scale)
    np.testing.assert_allclose(moved.history["elbo"], expected, atol=1e-6)


def test_tolerance_is_per_row_and_feature(x):
    """Rows twice over, or independent copies of the features, change nothing but the sums."""
    alone = affine_epochs(x, 0.0, 1.0)
    pyro.clear_param_store()
    twice = torch.cat([x, x])
    assert len(affine_epochs(twice, 0.0, 1.0).history) == len(alone.history)


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_fit_ends_after_patience_epochs_below_the_tolerance_running(x, patience):
    tolerance = 1e-3
    found = fit(exact(x), x, epochs=400, tolerance=tolerance, patience=patience, progress=False)
    gains = np.diff(found.history["elbo"])
    small = gains < tolerance * D
    runs = [small[k : k + patience].all() for k in range(len(small) - patience + 1)]
    assert found.converged
    assert runs.index(True) == len(runs) - 1


def test_infinite_tolerance_and_none(x):
    assert (
        len(fit(exact(x), x, epochs=9, tolerance=math.inf, patience=1, progress=False).history) <= 2
    )
    assert len(quiet(exact(x), x, epochs=9).history) == 9


def test_no_epochs_leave_everything_as_it_was(x, strategy):
    inference = strategy(x)
    before = params(inference.model)
    found = quiet(inference, x, epochs=0, warmup=0)
    assert len(found.history) == 0
    assert math.isnan(found.elbo)
    assert not found.converged
    assert found.history["elbo"].shape == (0,)
    assert_same(params(inference.model), before, rtol=0, atol=0)
