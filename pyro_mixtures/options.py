"""Checks of options: each error names the option, its value, and what is expected."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from pyro_mixtures.errors import OptionError


def check_whole(*, minimum: int = 1, **options: Any) -> None:
    """Check that all ``options`` are integers of at least ``minimum``.

    :raises OptionError: for the first option that is not.

    >>> check_whole(components=3, features=2)
    >>> check_whole(components=3.0)
    Traceback (most recent call last):
    ...
    pyro_mixtures.errors.OptionError: components=3.0 must be a whole number, an int
    """
    check_integer(**options)
    for name, value in options.items():
        if int(value) < minimum:
            raise OptionError(f"{name}={value} must {_bound(minimum)}")


def check_integer(**options: Any) -> None:
    """Check that all ``options`` are integers, of either sign.

    :raises OptionError: for the first option that is not.
    """
    for name, value in options.items():
        # True is an int in Python, but is never meant as one.
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise OptionError(f"{name}={value!r} must be a whole number, an int")


def check_number(*, positive: bool = False, **options: Any) -> None:
    """Check that all ``options`` are finite numbers that are not negative.

    :param positive: whether zero is refused, too.
    :raises OptionError: for the first option that is not.

    >>> check_number(ridge=0, input_density=0.5)
    >>> check_number(positive=True, scale=float("nan"))
    Traceback (most recent call last):
    ...
    pyro_mixtures.errors.OptionError: scale=nan must be a finite number
    """
    for name, value in options.items():
        check_finite(**{name: value})
        if value < 0 or (positive and value == 0):
            requirement = "be positive" if positive else "not be negative"
            raise OptionError(f"{name}={value} must {requirement}")


def check_finite(**options: Any) -> None:
    """Check that all ``options`` are finite numbers, of either sign.

    :raises OptionError: for the first option that is not.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise OptionError(f"{name}={value!r} must be a number, a float")
        if not math.isfinite(value):
            raise OptionError(f"{name}={value} must be a finite number")


def check_generator(generator: Any) -> None:
    """Check that ``generator`` is a ``torch.Generator`` on the CPU, or None.

    :raises OptionError: if it is not.
    """
    on_cpu = isinstance(generator, torch.Generator) and generator.device.type == "cpu"
    if generator is not None and not on_cpu:
        raise OptionError(
            f"generator={generator!r} must be a torch.Generator on the CPU, or None for torch's "
            "global one"
        )


def check_flag(**options: Any) -> None:
    """Check that all ``options`` are True or False.

    Python would take any string for true, ``"no"`` included. Numbers are refused, too.

    :raises OptionError: for the first option that is not.
    """
    for name, value in options.items():
        if not isinstance(value, bool | np.bool_):
            raise OptionError(f"{name}={value!r} must be True or False")


def _bound(minimum: int) -> str:
    return {0: "not be negative", 1: "be positive"}.get(minimum, f"be at least {minimum}")
