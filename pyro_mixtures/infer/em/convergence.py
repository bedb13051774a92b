"""When a fit has converged."""

import math


class Convergence:
    """Tells when the ELBO has settled.

    A fit has converged when, in ``patience`` epochs in succession, the ELBO gained at most
    ``tolerance`` over its best value so far.

    >>> convergence = Convergence(tolerance=0.1, patience=2)
    >>> for elbo in (-3.0, -2.0, -1.95, -1.92):
    ...     gain = convergence.record(elbo, searched=True)
    >>> convergence.reached
    True
    """

    def __init__(self, tolerance: float, patience: int):
        self.tolerance = tolerance  # nats per row
        self.patience = patience
        self._best = -math.inf
        self._epochs_without_gain = 0

    @property
    def reached(self) -> bool:
        """Whether the ELBO has settled."""
        return self._epochs_without_gain >= self.patience

    def record(self, elbo: float, *, searched: bool) -> float:
        """Note the ELBO of an epoch, in nats per row, and return its gain over the best so far.

        :param searched: False for an epoch that only re-weighs candidates. It cannot end a fit,
            because a search may still find better candidates.
        """
        gain = elbo - self._best
        if gain > self.tolerance:  # not >=: with a tolerance of zero a fit can come to rest
            self._epochs_without_gain = 0
        elif searched:
            self._epochs_without_gain += 1
        self._best = max(self._best, elbo)
        return gain
