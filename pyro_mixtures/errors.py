"""Errors and warnings of this package.

The message of an error says what was given, what is expected, and what to do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self


class MixtureError(ValueError):
    """Base class of all errors that this package raises on purpose."""

    row: int | None = None  # number of the row at fault, if it is one row
    _message = ""

    @classmethod
    def at_row(cls, row: int, message: str) -> Self:
        """Return an error about ``row``, whose number stands for ``{row}`` in the message.

        :func:`row_numbers` can change the number on the way to the user.
        """
        error = cls()
        error._message = message
        error._set_row(row)
        return error

    def _set_row(self, row: int) -> None:
        self.row = row
        self.args = (self._message.replace("{row}", str(row)),)


@contextmanager
def row_numbers(number: Callable[[int], int]) -> Iterator[None]:
    """Restate the row of errors from inside by its number outside, for rows of a batch or chunk.

    >>> with row_numbers(lambda row: 1000 + row):
    ...     raise DataError.at_row(5, "row {row} has no features")
    Traceback (most recent call last):
        ...
    pyro_mixtures.errors.DataError: row 1005 has no features
    """
    try:
        yield
    except MixtureError as error:
        _adopt_row(error)
        if error.row is not None:
            error._set_row(number(error.row))
        raise


def _adopt_row(error: MixtureError) -> None:
    """Take the row from the error's cause: Pyro's traces raise errors anew, with more text."""
    cause = error.__cause__
    if error.row is not None or not isinstance(cause, MixtureError):
        return
    _adopt_row(cause)
    if cause.row is not None:
        error.row = cause.row
        error._message = str(error).replace(str(cause), cause._message, 1)


class OptionError(MixtureError):
    """Raised when an option has an impossible value: an unknown name, C' > C, G > C."""


class DataError(MixtureError):
    """Raised when data cannot be used: NaN or infinite rows, a wrong shape, another dtype."""


class ModelError(MixtureError):
    """Raised when a Pyro program is not a mixture that the strategy can read.

    For example, it has no assignment site, or more than one.
    """


class PartitionError(MixtureError):
    """Raised when the row state does not fit the data, the model or its own invariants.

    For example, it was made for another number of rows or another model, it lists a candidate
    twice, or a component number is out of range.
    """


class ClosedFormError(MixtureError):
    """Raised when a site or argument has no closed-form M-step; SVI may still be possible."""


class NumericalError(MixtureError):
    """Raised when finite data have a density that is NaN, or zero under all components."""


class SharedParamsWarning(UserWarning):
    """Issued when a new model takes its values from params of the same names in Pyro's store."""


class IdentificationWarning(UserWarning):
    """Issued when the data do not identify the parameters of a mixture."""


class MomentWarning(UserWarning):
    """Issued when start values from moments are unreliable, because sampling noise is too large."""
