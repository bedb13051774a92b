"""What tests of mixtures need besides test classes: tolerances, comparisons, rows, exact losses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Check equality up to ``tolerance`` times the largest expected entry.

    Entries that result from cancellation have lost digits of their own.

    :raises AssertionError: when the tensors differ.

    >>> assert_near(torch.tensor([1e3, 1e-3]), torch.tensor([1e3, 0.0]), 1e-5)
    """
    expected = expected.detach().to(actual)
    finite = expected.isfinite()
    size = float(expected[finite].abs().max()) if bool(finite.any()) else 1.0
    torch.testing.assert_close(
        actual.detach(), expected, rtol=tolerance, atol=tolerance * max(size, 1e-300)
    )


def normal_rows(
    rows: int, features: int, dtype: torch.dtype = torch.float32, seed: int = 1
) -> Tensor:
    """Return rows (N, D) on the CPU, normal with standard deviation 2.

    >>> normal_rows(5, 3).shape
    torch.Size([5, 3])
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (rows, features)
    return (2 * torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")).to(
        dtype
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: on tiny problems a second one costs more than it saves.

    :returns: a context manager.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def exact_loss(model: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """Return minus the log evidence as stock Pyro computes it, by enumeration of the model.

    >>> from pyro_mixtures.models import GaussianMixture
    >>> exact_loss(GaussianMixture(components=2, features=1), torch.zeros(4, 1)) > 0
    True
    """
    return TraceEnum_ELBO(max_plate_nesting=1).loss(
        config_enumerate(model), lambda *_, **__: None, *args, **kwargs
    )
