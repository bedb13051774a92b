"""Bounds on the sizes of hard clusters."""

import pytest

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer import fit
from tests.guides.hard_regressions import N, losses, rows_of, started

pytestmark = pytest.mark.usefixtures("on_one_thread")


def test_bounds_on_sizes_are_kept():
    x, y, _ = rows_of()
    for options in (
        {"capacity": 32},
        {"min_size": 28},
        {"capacity": 31, "min_size": 29},
        {"capacity": 30},
    ):
        for assignment in ("optimal", "greedy"):
            _, guide, em = started(assignment=assignment, **options)
            for _ in range(3):
                em.step(x, y)
                assert guide.sizes.max() <= options.get("capacity", N)
                assert guide.sizes.min() >= options.get("min_size", 0)


def test_a_bounded_step_has_the_least_total_cost():
    from scipy.optimize import linear_sum_assignment

    x, y, _ = rows_of()
    model, guide, em = started(capacity=30)
    cost = losses(model, x, y).repeat_interleave(30, 1).numpy()
    em.step(x, y)
    rows, places = linear_sum_assignment(cost)
    mine = cost[range(N), 30 * guide.labels.numpy()].sum()
    assert mine == pytest.approx(cost[rows, places].sum(), rel=1e-10)


def test_bounds_need_all_rows_and_room():
    x, y, _ = rows_of()
    _, _, em = started(capacity=40)
    with pytest.raises(OptionError, match="need all 90 rows"):
        fit(em, x, y, batch_size=30, progress=False)
    with pytest.raises(DataError, match="cannot hold 90 rows"):
        started(capacity=29)[2].step(x, y)
    with pytest.raises(DataError, match="too few"):
        started(min_size=31)[2].step(x, y)
