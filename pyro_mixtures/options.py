"""Checks of options: each error names the option, what was given, and what is possible."""

import math
from numbers import Integral, Real
from typing import Any

import torch

from pyro_mixtures.errors import OptionError


def check_whole(*, minimum: int = 1, **options: Any) -> None:
    """Refuse ``options`` that are not whole numbers of at least ``minimum``.

    :raises OptionError: which names the first such option.

    >>> check_whole(components=3, features=2)
    >>> check_whole(components=3.0)
    Traceback (most recent call last):
    ...
    pyro_mixtures.errors.OptionError: components=3.0 must be a whole number, an int
    """
    for name, value in options.items():
        # True is an int to Python, and never meant as one.
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise OptionError(f"{name}={value!r} must be a whole number, an int")
        if int(value) < minimum:
            raise OptionError(f"{name}={value} must {_bound(minimum)}")


def check_number(*, positive: bool = False, **options: Any) -> None:
    """Refuse ``options`` that are not finite numbers of zero or more, or above zero where they are to be ``positive``.

    :raises OptionError: which names the first such option.

    >>> check_number(ridge=0, input_density=0.5)
    >>> check_number(positive=True, scale=float("nan"))
    Traceback (most recent call last):
    ...
    pyro_mixtures.errors.OptionError: scale=nan must be a finite number
    """
    for name, value in options.items():
        check_finite(**{name: value})
        if value < 0 or (positive and value == 0):
            raise OptionError(
                f"{name}={value} must {'be positive' if positive else 'not be negative'}"
            )


def check_finite(**options: Any) -> None:
    """Refuse ``options`` that are not finite numbers, of either sign.

    :raises OptionError: which names the first such option.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise OptionError(f"{name}={value!r} must be a number, a float")
        if not math.isfinite(value):
            raise OptionError(f"{name}={value} must be a finite number")


def check_generator(generator: Any) -> None:
    """Refuse what is no source of randomness.

    :raises OptionError: for anything but a ``torch.Generator`` on the CPU, or None.
    """
    if generator is not None and not (
        isinstance(generator, torch.Generator) and generator.device.type == "cpu"
    ):
        raise OptionError(
            f"generator={generator!r}: give a torch.Generator on the CPU, or None for torch's own"
        )


def check_flag(**options: Any) -> None:
    """Refuse ``options`` that are neither True nor False: any string is true to Python, "no" included.

    :raises OptionError: which names the first such option.
    """
    for name, value in options.items():
        if value not in (True, False):
            raise OptionError(f"{name}={value!r} must be True or False")


def _bound(minimum: int) -> str:
    return {0: "not be negative", 1: "be positive"}.get(minimum, f"be at least {minimum}")
