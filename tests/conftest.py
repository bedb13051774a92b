"""What every test starts from: an empty param store, fixed seeds, and the default device that the pass asks for."""

import os

import pyro
import pytest
import torch

from pyro_mixtures.testing import one_thread

DEFAULT_DEVICE = os.environ.get("PYRO_MIXTURES_TEST_DEVICE")


@pytest.fixture(autouse=True)
def _fresh_pyro():
    """Params of one test never reach the next; every test draws the same numbers whatever ran before it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)
    yield
    pyro.clear_param_store()


@pytest.fixture(autouse=True)
def _default_device():
    """In the meta pass a tensor that forgets to name its device holds no data, and the test fails.

    Tests marked ``meta`` therefore make their own inputs on the CPU by name.
    """
    if DEFAULT_DEVICE is None:
        yield
        return
    with torch.device(DEFAULT_DEVICE):
        yield


@pytest.fixture
def on_one_thread():
    """For files of many small problems: ``pytestmark = pytest.mark.usefixtures("on_one_thread")``."""
    with one_thread():
        yield


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)
