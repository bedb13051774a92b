"""Fixtures of all tests: an empty param store, fixed seeds, and the default device."""

import os

import pyro
import pytest
import torch

from pyro_mixtures.testing import one_thread

DEFAULT_DEVICE = os.environ.get("PYRO_MIXTURES_TEST_DEVICE")


@pytest.fixture(autouse=True)
def _fresh_pyro():
    """Clear the param store and seed all generators, so that tests do not depend on their order."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)
    yield
    pyro.clear_param_store()


@pytest.fixture(autouse=True)
def _default_device():
    """Set the default device of the meta pass: a tensor created without a device then has no data.

    Tests marked ``meta`` therefore create their inputs on the CPU explicitly.
    """
    if DEFAULT_DEVICE is None:
        yield
        return
    with torch.device(DEFAULT_DEVICE):
        yield


@pytest.fixture
def on_one_thread():
    """Run on one thread, for files with many small problems: ``pytest.mark.usefixtures``."""
    with one_thread():
        yield


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)
