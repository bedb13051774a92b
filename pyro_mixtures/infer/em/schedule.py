"""When an E-step of a fit searches for better candidates, and when it only re-weighs those it has."""

import math

# What a row costs besides its density evaluations (statistics, sums, bookkeeping), in evaluations.
_OVERHEAD = 6.0
_MOST_BETWEEN = 4


class SearchSchedule:
    """Chooses the kind of the next epoch: the one that has gained more ELBO for its cost, the last time each was run.

    A search costs C' G + E evaluations a row and re-weighing C'. An epoch that only re-weighs
    raises the ELBO by its M-step alone; a search adds what better candidates bring, which is the
    more the longer ago the last one was. So no more than four epochs lie between searches, and
    where re-weighing has stopped paying the next epoch searches.

    :param every: search every so many epochs instead, from the first.
    """

    def __init__(self, every: int | None = None):
        self.every = every
        self._since = math.inf  # epochs since the last search
        self._rates: dict[bool, float] = {}
        self._must = True

    def next(self) -> bool:
        """Whether the next epoch is to search."""
        if self.every is not None:
            return self._since + 1 >= self.every
        if self._must or self._since >= _MOST_BETWEEN or False not in self._rates:
            return self._must or self._since >= 1
        return self._rates[True] > self._rates[False]

    def record(
        self, searched: bool, gain: float, evaluations_a_row: float, tolerance: float
    ) -> None:
        """An epoch raised the ELBO by ``gain`` nats a row; below ``tolerance`` it does not pay to go on like it."""
        self._since = 0 if searched else self._since + 1
        self._rates[searched] = gain / (evaluations_a_row + _OVERHEAD)
        self._must = gain < tolerance
