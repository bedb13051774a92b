"""The neighbor graph: self first, distinct, and the nearest once divergences are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.ops.search import Divergences
from pyro_mixtures.partition import NeighborGraph

few = settings(max_examples=40, deadline=None, derandomize=True)


def make(components, neighbors, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return NeighborGraph(components=components, neighbors=neighbors, generator=generator)


def assert_well_formed(graph, components, neighbors):
    assert graph.neighbors.dtype == torch.int32
    assert graph.neighbors.shape == (components, neighbors)
    for c, row in enumerate(graph.neighbors.tolist()):
        assert row[0] == c
        assert len(set(row)) == neighbors
        assert set(row) <= set(range(components))


sizes = st.integers(1, 10).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c)))


@st.composite
def measured(draw):
    """Draw sums of divergences over pairs (c, k), in any order, sometimes with c itself."""
    components, neighbors = draw(sizes)
    pairs = [(c, k) for c in range(components) for k in range(components)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=40))
    counts = draw(st.lists(st.integers(1, 5), min_size=len(chosen), max_size=len(chosen)))
    values = draw(st.permutations(range(len(chosen))))  # distinct means: one right order
    means = [0.0 if c == k else value - 3.0 for (c, k), value in zip(chosen, values, strict=True)]
    return components, neighbors, chosen, means, counts


def sums_of(pairs, means, counts, components):
    row = torch.tensor([c for c, _ in pairs], dtype=torch.int64, device="cpu")
    column = torch.tensor([k for _, k in pairs], dtype=torch.int64, device="cpu")
    count = torch.tensor(counts, dtype=torch.int64, device="cpu")
    total = torch.tensor(means, dtype=torch.float64, device="cpu") * count
    return Divergences.of_pairs(row, column, total, count, components)


@few
@given(sizes, st.integers(0, 5))
def test_a_new_graph_has_itself_first_and_distinct_others(size, seed):
    assert_well_formed(make(*size, seed=seed), *size)


def test_a_new_graph_is_reproducible_and_differs_by_seed():
    assert torch.equal(make(9, 4, seed=1).neighbors, make(9, 4, seed=1).neighbors)
    assert not torch.equal(make(9, 4, seed=1).neighbors, make(9, 4, seed=2).neighbors)


@few
@given(measured())
def test_rebuild_takes_the_nearest_measured_ones_then_old_neighbors(case):
    components, neighbors, pairs, means, counts = case
    graph = make(components, neighbors)
    old = graph.neighbors.tolist()
    graph.observe(sums_of(pairs, means, counts, components), rows=1, size=10)
    graph.rebuild()
    assert_well_formed(graph, components, neighbors)
    for c, row in enumerate(graph.neighbors.tolist()):
        nearest = [
            k
            for _, k in sorted(
                (mean, k) for (row_, k), mean in zip(pairs, means, strict=True) if row_ == c != k
            )
        ]
        width = min(neighbors - 1, len(nearest))
        assert row[1 : 1 + width] == nearest[:width]
        assert set(row[1 + width :]) <= set(old[c])


@few
@given(measured(), st.integers(2, 4))
def test_sums_of_minibatches_give_the_graph_of_the_full_batch(case, parts):
    components, neighbors, pairs, means, counts = case
    whole, batched = make(components, neighbors), make(components, neighbors)
    assert whole.observe(sums_of(pairs, means, counts, components), rows=parts, size=parts)
    for part in range(parts):
        # Each row of a pair falls into some batch; every batch has the same mean here.
        share = [len(range(part, n, parts)) for n in counts]
        kept = [i for i, n in enumerate(share) if n]
        sums = sums_of(
            [pairs[i] for i in kept], [means[i] for i in kept], [share[i] for i in kept], components
        )
        assert batched.observe(sums, rows=1, size=parts) == (part == parts - 1)
    assert torch.equal(batched.neighbors, whole.neighbors)


def test_the_graph_is_rebuilt_when_every_row_was_seen_and_then_starts_afresh():
    graph = make(4, 2)
    near = sums_of([(0, 3), (0, 1), (0, 2)], [1.0, 2.0, 3.0], [1, 1, 1], 4)
    far = sums_of([(0, 3), (0, 1), (0, 2)], [3.0, 1.0, 2.0], [1, 1, 1], 4)
    before = graph.neighbors.clone()
    assert not graph.observe(near, rows=5, size=10)
    assert torch.equal(graph.neighbors, before)
    assert graph.observe(near, rows=5, size=10)
    assert graph.neighbors[0].tolist() == [0, 3]
    assert graph.observe(far, rows=10, size=10)
    assert graph.neighbors[0].tolist() == [0, 1]


def test_many_minibatches_are_merged_without_loss():
    graph = make(4, 2)
    for batch in range(200):
        graph.observe(
            sums_of([(0, 1), (0, 2)], [1.0 + (batch == 0), 1.001], [1, 1], 4), rows=1, size=200
        )
    assert graph.neighbors[0].tolist() == [0, 2]  # 201 / 200 against 1.001


def test_unreachable_components_come_last():
    graph = make(4, 4)
    graph.observe(
        sums_of([(0, 1), (0, 2), (0, 3)], [torch.inf, 5.0, 1.0], [1, 1, 1], 4), rows=1, size=1
    )
    assert graph.neighbors[0].tolist() == [0, 3, 2, 1]


@few
@given(
    st.integers(2, 8).flatmap(
        lambda c: st.tuples(st.just(c), st.integers(1, c), st.permutations(range(c)))
    )
)
def test_replace_gives_the_neighborhood_and_keeps_rows_distinct(case):
    components, neighbors, order = case
    component, like = order[:2]
    graph = make(components, neighbors)
    others = graph.neighbors[like, 1:].tolist()
    untouched = [c for c in range(components) if c not in (component, like)]
    before = graph.neighbors[untouched].clone()
    graph.replace(component, like)
    assert_well_formed(graph, components, neighbors)
    assert torch.equal(graph.neighbors[untouched], before)
    assert set(graph.neighbors[component].tolist()) <= {component, like, *others}
    if neighbors > 1:
        assert like in graph.neighbors[component].tolist()
        assert component in graph.neighbors[like].tolist()


@pytest.mark.meta
def test_the_graph_stays_on_the_cpu():
    graph = make(4, 3)
    graph.observe(sums_of([(0, 1), (2, 3)], [1.0, 2.0], [1, 1], 4), rows=1, size=1)
    graph.replace(1, 2)
    assert graph.neighbors.device.type == "cpu"


# The order of the components.


def depth_first(neighbors):
    """Return the components in the order of a textbook depth-first search."""
    seen = []

    def visit(c):
        if c not in seen:
            seen.append(c)
            for k in neighbors[c]:
                visit(k)

    for c in range(len(neighbors)):
        visit(c)
    return seen


@few
@given(sizes, st.integers(0, 5))
def test_the_order_is_a_depth_first_search_by_nearest_unseen_neighbors(size, seed):
    graph = make(*size, seed=seed)
    place = graph.component_order()
    assert place.dtype == torch.int64
    assert sorted(place.tolist()) == list(range(size[0]))
    assert place.argsort().tolist() == depth_first(graph.neighbors.tolist())


@few
@given(st.integers(2, 12).flatmap(lambda c: st.permutations(range(c))))
def test_the_order_follows_a_chain_of_neighbors(chain):
    """The chain is a ring, so that the search sees all of it from any start."""
    graph = make(len(chain), 2)
    for c, following in zip(chain, [*chain[1:], chain[0]], strict=True):
        graph.neighbors[c] = torch.tensor([c, following], device="cpu")
    first = chain.index(0)
    assert graph.component_order().argsort().tolist() == [*chain[first:], *chain[:first]]


def test_components_without_neighbors_keep_their_order():
    assert make(5, 1).component_order().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.meta
def test_the_order_stays_on_the_cpu():
    assert make(5, 2).component_order().device.type == "cpu"
