"""Errors and warnings of this package.

The message of an error says what was given, what is expected, and what to do.
"""


class MixtureError(ValueError):
    """Base class of all errors that this package raises on purpose."""


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
