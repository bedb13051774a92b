"""Typed errors: each says what was given, what was expected, and what to do."""


class MixtureError(ValueError):
    """Base of every error that this package raises on purpose."""


class OptionError(MixtureError):
    """An option has an impossible value (an unknown name, C' > C, G > C, ...)."""


class DataError(MixtureError):
    """The data cannot be used: NaN or infinite rows, a wrong shape, an unsupported dtype."""


class ModelError(MixtureError):
    """The Pyro program is not a mixture that the strategy can read (no such site, two of them, ...)."""


class PartitionError(MixtureError):
    """Row state and data do not belong together (another N, another model, duplicate candidates)."""


class ClosedFormError(MixtureError):
    """A site or argument has no closed-form maximiser; gradient-based strategies remain open."""


class NumericalError(MixtureError):
    """A density became NaN or vanished everywhere although the data are finite."""


class SharedParamsWarning(UserWarning):
    """A model takes its values from params of the same names that are in Pyro's store already."""


class IdentificationWarning(UserWarning):
    """Data that do not tell the parameters of a mixture apart."""


class MomentWarning(UserWarning):
    """A start from moments that is not to be trusted, because sampling noise hides what it needs."""
