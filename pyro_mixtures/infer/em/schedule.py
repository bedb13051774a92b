"""Which epochs of a fit search for candidates, and which only re-weigh those that rows have."""

import math

# Cost of a row in addition to its density evaluations (statistics, sums, bookkeeping), in
# evaluations.
_OVERHEAD = 6.0
_MAX_EPOCHS_BETWEEN = 4


class SearchSchedule:
    """Chooses the kind of the next epoch: the one that gained more ELBO per cost when it last ran.

    A search costs C' G + E evaluations per row, and re-weighing costs C'. An epoch that only
    re-weighs raises the ELBO by its M-step. A search adds what better candidates bring, which is
    more the longer ago the last search was. So at most four epochs lie between searches, and the
    next epoch searches when re-weighing gains less than the tolerance.

    :param every: search in every ``every``-th epoch instead, beginning with the first.
    """

    def __init__(self, every: int | None = None):
        self.every = every
        self._epochs_since_search = math.inf
        self._rates: dict[bool, float] = {}  # gain per cost, by whether the epoch searched
        self._must_search = True

    def next(self) -> bool:
        """Return whether the next epoch is to search."""
        if self.every is not None:
            return self._epochs_since_search + 1 >= self.every
        if self._must_search:
            return True
        if self._epochs_since_search >= _MAX_EPOCHS_BETWEEN or False not in self._rates:
            return self._epochs_since_search >= 1
        return self._rates[True] > self._rates[False]

    def record(
        self, searched: bool, gain: float, evaluations_per_row: float, tolerance: float
    ) -> None:
        """Note that an epoch raised the ELBO by ``gain``, in nats per row."""
        self._epochs_since_search = 0 if searched else self._epochs_since_search + 1
        self._rates[searched] = gain / (evaluations_per_row + _OVERHEAD)
        self._must_search = gain < tolerance
