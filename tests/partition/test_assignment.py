"""Assignment under bounds: the least total cost, against SciPy's solvers and other labels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import eye_array, kron, vstack

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.partition.assignment import METHODS, assign

DTYPES = (torch.float32, torch.float64)
many = settings(max_examples=100, deadline=None, derandomize=True)


def tensor(values, dtype=torch.float64):
    return torch.as_tensor(values, dtype=dtype, device="cpu")


def drawn(seed, rows, clusters, kind="ties"):
    """Draw costs (N, K): small integers with exact and often equal sums, or normal numbers."""
    generator = np.random.default_rng(seed)
    if kind == "ties":
        return generator.integers(-3, 4, (rows, clusters)).astype(float)
    return generator.normal(size=(rows, clusters)) + generator.normal(scale=2.0, size=clusters)


def total(cost, labels):
    return float(
        np.asarray(cost, dtype=np.float64)[np.arange(len(labels)), np.asarray(labels)].sum()
    )


def sizes(labels, clusters):
    return np.bincount(np.asarray(labels), minlength=clusters)


def by_duplicated_columns(cost, capacity):
    """Return the least total cost by the assignment of ``capacity`` copies of each cluster."""
    wide = np.repeat(cost, capacity, axis=1)
    rows, columns = linear_sum_assignment(wide)
    return wide[rows, columns].sum()


def by_linear_program(cost, capacity, min_size):
    """Return the least total cost by a linear program, whose vertices are integral, or None."""
    rows, clusters = cost.shape
    of_row = kron(eye_array(rows), np.ones((1, clusters)), format="csr")
    of_cluster = kron(np.ones((1, rows)), eye_array(clusters), format="csr")
    limits = np.concatenate([np.full(clusters, capacity), np.full(clusters, -min_size)])
    upper = np.where(np.isinf(cost), 0.0, 1.0).ravel()
    found = linprog(
        np.where(np.isinf(cost), 0.0, cost).ravel(),
        A_ub=vstack([of_cluster, -of_cluster]),
        b_ub=limits,
        A_eq=of_row,
        b_eq=np.ones(rows),
        bounds=np.stack([np.zeros_like(upper), upper], axis=1),
    )
    return found.fun if found.success else None


@st.composite
def shapes(draw, most_rows=40):
    """Draw (rows, clusters, capacity, min_size) that are feasible."""
    rows, clusters = draw(st.integers(1, most_rows)), draw(st.integers(1, 6))
    min_size = draw(st.integers(0, rows // clusters))
    capacity = draw(st.integers(max(1, min_size, -(-rows // clusters)), rows))
    return rows, clusters, capacity, min_size


seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(["ties", "normal"])


@many
@given(shapes(), seeds, kinds)
def test_optimal_equals_the_assignment_of_duplicated_columns(shape, seed, kind):
    rows, clusters, capacity, _ = shape
    cost = drawn(seed, rows, clusters, kind)
    labels = assign(tensor(cost), capacity=capacity)
    assert sizes(labels, clusters).max() <= capacity
    assert total(cost, labels) == pytest.approx(by_duplicated_columns(cost, capacity), abs=1e-9)


@many
@given(shapes(20), seeds, kinds, st.sampled_from([0.0, 0.2, 0.5]))
def test_optimal_equals_the_linear_program(shape, seed, kind, forbidden):
    """Also with lower bounds and forbidden pairs; both agree on infeasible problems."""
    rows, clusters, capacity, min_size = shape
    cost = drawn(seed, rows, clusters, kind)
    cost[np.random.default_rng(seed + 1).random(cost.shape) < forbidden] = np.inf
    least_total = by_linear_program(cost, capacity, min_size)
    if least_total is None:
        with pytest.raises(DataError, match=r"finite cost|every cluster"):
            assign(tensor(cost), capacity=capacity, min_size=min_size)
        return
    labels = assign(tensor(cost), capacity=capacity, min_size=min_size)
    assert sizes(labels, clusters).max() <= capacity
    assert sizes(labels, clusters).min() >= min_size
    assert total(cost, labels) == pytest.approx(least_total, abs=1e-7)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(shapes(), seeds, st.sampled_from(DTYPES), st.booleans())
def test_no_feasible_labels_cost_less(shape, seed, dtype, spoilt):
    """The total never rises from any start, so that alternating minimization descends."""
    rows, clusters, capacity, min_size = shape
    generator = np.random.default_rng(seed)
    slots = generator.permutation(np.repeat(np.arange(clusters), capacity - min_size))[
        : rows - min_size * clusters
    ]
    start = generator.permutation(np.concatenate([np.repeat(np.arange(clusters), min_size), slots]))
    cost = tensor(drawn(seed, rows, clusters), dtype)
    # A start that is nearly optimal is the harder one to beat.
    cost[torch.arange(rows, device="cpu"), tensor(start, torch.int64)] -= 2.0 * (not spoilt)
    labels = assign(cost, capacity=capacity, min_size=min_size)
    assert sizes(labels, clusters).max() <= capacity
    assert sizes(labels, clusters).min() >= min_size
    assert total(cost, labels) <= total(cost, start)


@many
@given(shapes(), seeds)
def test_optimal_never_costs_more_than_greedy(shape, seed):
    rows, clusters, capacity, min_size = shape
    cost = drawn(seed, rows, clusters)
    found = {
        method: assign(tensor(cost), capacity=capacity, min_size=min_size, method=method)
        for method in METHODS
    }
    for labels in found.values():
        assert (
            min_size <= sizes(labels, clusters).min() <= sizes(labels, clusters).max() <= capacity
        )
    assert total(cost, found["optimal"]) <= total(cost, found["greedy"])


def test_greedy_may_cost_more():
    cost = tensor([[0.0, 1.0], [1.0, 9.0]])
    assert assign(cost, capacity=1, method="greedy").tolist() == [0, 1]
    assert assign(cost, capacity=1).tolist() == [1, 0]


def by_hand(cost, capacity, min_size):
    """Fill greedily as documented, with sorted tuples."""
    rows, clusters = cost.shape
    labels, held = {}, [0] * clusters
    for _, i, c in sorted((cost[i, c], i, c) for i in range(rows) for c in range(clusters)):
        spare = rows - len(labels) - sum(max(0, min_size - h) for h in held)
        if i not in labels and held[c] < capacity and (held[c] < min_size or spare > 0):
            labels[i] = c
            held[c] += 1
    return [labels[i] for i in range(rows)]


@many
@given(shapes(), seeds, kinds)
def test_greedy_accepts_pairs_in_order(shape, seed, kind):
    rows, clusters, capacity, min_size = shape
    cost = drawn(seed, rows, clusters, kind)
    assert assign(
        tensor(cost), capacity=capacity, min_size=min_size, method="greedy"
    ).tolist() == by_hand(cost, capacity, min_size)


@pytest.mark.parametrize("method", METHODS)
@given(shape=shapes(), seed=seeds)
@settings(many)
def test_without_bounds_it_is_the_argmin(method, shape, seed):
    rows, clusters, _, _ = shape
    cost = drawn(seed, rows, clusters)
    assert assign(tensor(cost), method=method).tolist() == cost.argmin(1).tolist()
    slack = {
        "capacity": max(sizes(cost.argmin(1), clusters)),
        "min_size": min(sizes(cost.argmin(1), clusters)),
    }
    assert assign(tensor(cost), method=method, **slack).tolist() == cost.argmin(1).tolist()


@pytest.mark.parametrize(
    ("min_size", "capacity"), [(0, 210), (190, None), (195, 205), (200, 200), (0, 1000)]
)
@pytest.mark.parametrize("tilt", [0.5, 4.0])
def test_large_imbalance_starts_from_prices_of_a_sample(tilt, min_size, capacity):
    """Most rows have the same cheapest clusters, so that the search starts from samples."""
    generator = np.random.default_rng(0)
    cost = generator.random((2000, 10)) + tilt * np.linspace(0.0, 1.0, 10)
    labels = assign(tensor(cost), capacity=capacity, min_size=min_size)
    assert min_size <= sizes(labels, 10).min() <= sizes(labels, 10).max() <= (capacity or 2000)
    assert total(cost, labels) == pytest.approx(
        by_linear_program(cost, capacity or 2000, min_size), rel=1e-10
    )


def test_sample_without_solution_is_only_a_start():
    """Every fourth row is allowed one cluster only, which holds all rows but not the sample."""
    cost = np.random.default_rng(0).random((400, 4)) + np.array([0.0, 1.0, 1.0, 1.0])
    cost[::4, 1:] = np.inf
    labels = assign(tensor(cost), capacity=100)
    assert total(cost, labels) == pytest.approx(by_linear_program(cost, 100, 0), rel=1e-10)
    assert sizes(labels, 4).tolist() == [100] * 4


@pytest.mark.meta
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_any_dtype_and_layout(method, dtype):
    cost = tensor(drawn(3, 60, 4), dtype)
    labels = assign(cost, capacity=16, min_size=14, method=method)
    assert labels.device.type == "cpu"
    assert labels.dtype == torch.int64
    for same in (cost.double(), cost.T.contiguous().T, cost.clone().requires_grad_()):
        assert torch.equal(assign(same, capacity=16, min_size=14, method=method), labels)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_offsets_of_rows_do_not_matter(dtype):
    """Costs that are equal for all clusters change no decision: differences are in float64."""
    cost = tensor(drawn(5, 80, 5), dtype)
    offset = tensor(2.0 ** np.random.default_rng(5).integers(0, 18, (80, 1)), dtype)
    assert torch.equal(assign(cost + offset, capacity=16), assign(cost, capacity=16))


def test_differences_in_the_last_bit_of_float32_count():
    """Two rows compete for one place; their other costs differ in the last bit only."""
    step = torch.finfo(torch.float32).eps
    cost = tensor([[-100.0, 1.0 + step], [-100.0, 1.0]], torch.float32)
    assert assign(cost, capacity=1).tolist() == [0, 1]
    assert assign(cost.flip(0), capacity=1).tolist() == [1, 0]


@pytest.mark.parametrize("method", METHODS)
def test_equal_input_gives_equal_output(method):
    cost = tensor(drawn(7, 500, 6), torch.float32)
    first = assign(cost, capacity=85, min_size=80, method=method)
    assert all(
        torch.equal(assign(cost.clone(), capacity=85, min_size=80, method=method), first)
        for _ in range(3)
    )


@pytest.mark.parametrize("method", METHODS)
def test_input_is_not_changed(method):
    cost = tensor(drawn(8, 30, 3)).T.contiguous().T
    before = cost.clone()
    assign(cost, capacity=10, method=method)
    assert torch.equal(cost, before)


def test_no_rows_give_no_labels():
    assert assign(torch.empty(0, 3, device="cpu"), capacity=2).tolist() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hungarian"}, r"unknown method 'hungarian'.*optimal.*greedy"),
        ({"min_size": -1}, "min_size=-1"),
        ({"capacity": 1, "min_size": 2}, "capacity=1 and min_size=2"),
        ({"capacity": 0}, "capacity=0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        assign(torch.zeros(4, 2, device="cpu"), **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 3}, "capacity=3 rows hold 6, not 7"),
        ({"min_size": 4}, "min_size=4 rows need 8, not 7"),
    ],
)
def test_rows_that_do_not_fit_are_refused(method, options, message):
    with pytest.raises(DataError, match=message):
        assign(torch.zeros(7, 2, device="cpu"), method=method, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "row 2 is NaN in cluster 1"), (-np.inf, "row 2 is -inf in cluster 1")],
)
def test_invalid_costs_are_refused(method, value, message):
    cost = torch.zeros(4, 3, device="cpu")
    cost[2, 1] = value
    for capacity in (None, 2):
        with pytest.raises(DataError, match=message):
            assign(cost, capacity=capacity, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_rows_without_any_cluster_are_refused(method):
    cost = torch.zeros(4, 3, device="cpu")
    cost[1] = torch.inf
    with pytest.raises(DataError, match=r"row 1 is \+inf in every cluster"):
        assign(cost, method=method)


@pytest.mark.parametrize(
    "cost", [torch.zeros(3), torch.zeros(3, 0), torch.zeros(3, 2, dtype=torch.int64)]
)
def test_invalid_shapes_and_dtypes_are_refused(cost):
    with pytest.raises(DataError, match=r"\(N, K\), not torch"):
        assign(cost)


def test_forbidden_pairs_that_overfill_a_cluster():
    cost = torch.zeros(6, 3, device="cpu")
    cost[:5, 1:] = torch.inf
    with pytest.raises(
        DataError,
        match=r"5 rows have finite costs in clusters \[0\] only, which hold 3.*capacity=3",
    ):
        assign(cost, capacity=3)


def test_forbidden_pairs_that_leave_a_cluster_too_small():
    cost = torch.zeros(6, 3, device="cpu")
    cost[:5, 1:] = torch.inf
    with pytest.raises(
        DataError, match=r"clusters \[1, 2\] need 2 rows, min_size=1 each, but at most 1 rows"
    ):
        assign(cost, min_size=1)


def test_greedy_filling_without_a_result_is_an_error():
    cost = tensor([[0.0, 1.0], [2.0, np.inf]])
    with pytest.raises(DataError, match=r"greedy.*1 of 2 rows.*method=.optimal"):
        assign(cost, capacity=1, method="greedy")
    assert assign(cost, capacity=1).tolist() == [1, 0]
