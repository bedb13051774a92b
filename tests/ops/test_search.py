"""Search spaces and divergence sums: numba and torch against Python sets and dictionaries."""

from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.ops import use_backend
from pyro_mixtures.ops.lookup import count_weights, take
from pyro_mixtures.ops.search import (
    Divergences,
    add_with_best,
    divergence_sums,
    keep_best,
    merge,
    search_space,
)

BACKENDS = ["auto", "torch"]
few = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def searches(draw):
    """Draw candidates (B, C'), a neighbor graph (C, G), and components to explore (B, E)."""
    components = draw(st.integers(1, 9))
    rows, kept = draw(st.integers(1, 12)), draw(st.integers(1, components))
    width, explore = draw(st.integers(1, components)), draw(st.integers(0, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    orders = torch.rand(rows + components, components, generator=generator)
    graph = orders[rows:].fill_diagonal_(-1).argsort(-1)[:, :width]
    random = torch.randint(components, (rows, explore), generator=generator)
    return orders[:rows].argsort(-1)[:, :kept].to(dtype), graph.to(dtype), random.to(dtype)


def expected_space(candidates, graph, explore):
    return [
        {k for c in start for k in graph[c].tolist()} | set(random)
        for start, random in zip(candidates.tolist(), explore.tolist(), strict=True)
    ]


@few
@given(searches(), st.sampled_from(BACKENDS))
def test_search_space_is_the_union_without_repetition(search, backend):
    expected = expected_space(*search)
    with use_backend(backend):
        found = search_space(*search)
    assert found.dtype == torch.int64
    assert max(map(len, expected)) <= len(found) <= len(search[1])
    for column, members in zip(found.T.tolist(), expected, strict=True):
        assert set(column[: len(members)]) == members
        assert set(column[len(members) :]) <= {-1}


def rows_of(sums):
    """The component c of each entry."""
    return torch.repeat_interleave(torch.arange(len(sums.starts) - 1), sums.starts.diff()).tolist()


@few
@given(searches(), st.sampled_from(BACKENDS), st.sampled_from([torch.float32, torch.float64]))
def test_divergence_sums_are_over_the_rows_whose_best_component_it_is(search, backend, dtype):
    space = search_space(*search)
    components = len(search[1])
    density = torch.randn(space.shape, dtype=dtype).masked_fill(
        space < 0, torch.nan
    )  # padding is never read
    best = density.nan_to_num(-torch.inf).argmax(0, keepdim=True)
    winner = space.gather(0, best)[0]
    total, count = defaultdict(float), defaultdict(int)
    for n, c in enumerate(winner.tolist()):
        own = float(density[best[0, n], n])
        for k, value in zip(space[:, n].tolist(), density[:, n].tolist(), strict=True):
            if k >= 0:
                total[c, k] += own - value
                count[c, k] += 1
    with use_backend(backend):
        found = divergence_sums(winner, space, density, components)
    keys = list(zip(rows_of(found), found.column.tolist(), strict=True))
    assert len(keys) == len(set(keys))
    assert dict(zip(keys, found.count.tolist(), strict=True)) == count
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert dict(zip(keys, found.total.tolist(), strict=True)) == pytest.approx(
        total, rel=tolerance, abs=tolerance
    )


def test_results_do_not_depend_on_the_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    components, rows = 100, 2000  # several chunks of both kernels
    candidates = torch.rand(rows, components, generator=generator).argsort(-1)[:, :3]
    graph = (
        torch.rand(components, components, generator=generator)
        .fill_diagonal_(-1)
        .argsort(-1)[:, :5]
    )
    explore = torch.randint(components, (rows, 2), generator=generator)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        space = search_space(candidates, graph, explore)
        density = torch.randn(space.shape, generator=torch.Generator().manual_seed(1))
        found.append((space, *divergence_sums(space[0], space, density, components)))
    torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_many_rows_and_components_agree_between_backends():
    """There are several chunks, in which scratch memory is reused."""
    generator = torch.Generator().manual_seed(0)
    candidates = torch.rand(1500, 60, generator=generator).argsort(-1)[:, :2].int()
    graph = torch.rand(60, 60, generator=generator).fill_diagonal_(-1).argsort(-1)[:, :4].int()
    explore = torch.randint(60, (1500, 1), generator=generator, dtype=torch.int32)
    table = torch.randn(60, 1500, generator=generator, dtype=torch.float64)
    found = []
    for backend in BACKENDS:
        with use_backend(backend):
            space = search_space(candidates, graph, explore)
            density = table.gather(0, space.clamp_min(0))
            sums = divergence_sums(candidates[:, 0].long(), space, density, 60)
        order = torch.argsort(torch.tensor(rows_of(sums)) * 60 + sums.column)
        found.append((space.sort(0).values, sums.starts, *(part[order] for part in sums[1:])))
    for auto, reference in zip(*found, strict=True):
        torch.testing.assert_close(auto, reference)


@few
@given(searches(), st.integers(1, 5), st.sampled_from(BACKENDS))
def test_the_best_are_kept_best_first(search, keep, backend):
    space = search_space(*search)
    log_joint = torch.randn(space.shape).masked_fill(space < 0, torch.nan)  # padding is never read
    log_joint[:, 0] = -torch.inf  # components of zero weight stay preferable to padding
    log_joint, keep = log_joint.masked_fill(space < 0, -torch.inf), min(keep, len(space))
    with use_backend(backend):
        found = keep_best(space, log_joint, keep)
    assert found.evaluations == int((space >= 0).sum())
    for n in range(space.shape[1]):
        known = {
            k: v
            for k, v in zip(space[:, n].tolist(), log_joint[:, n].tolist(), strict=True)
            if k >= 0
        }
        kept = [k for k in found.candidates[:, n].tolist() if k >= 0]
        assert len(set(kept)) == len(kept) == min(keep, len(known))
        assert (
            found.log_joint[: len(kept), n].tolist()
            == sorted(known.values(), reverse=True)[: len(kept)]
        )
        assert [known[k] for k in kept] == found.log_joint[: len(kept), n].tolist()


def test_merged_sums_are_those_of_all_rows_together():
    generator = torch.Generator().manual_seed(0)
    parts = []
    dense = torch.zeros(2, 7, 7, dtype=torch.float64)
    for _ in range(3):
        key = torch.randperm(49, generator=generator)[:20]
        total, count = (
            torch.rand(20, generator=generator).double(),
            torch.randint(1, 5, (20,), generator=generator),
        )
        parts.append(Divergences.of_pairs(key // 7, key % 7, total, count, 7))
        dense[0].view(-1).index_add_(0, key, total)
        dense[1].view(-1).index_add_(0, key, count.double())
    found = merge(parts)
    where = torch.tensor(rows_of(found)), found.column.long()
    assert len(found.column) == int((dense[1] > 0).sum())
    torch.testing.assert_close(found.total, dense[0][where])
    torch.testing.assert_close(found.count.double(), dense[1][where])


@pytest.mark.meta
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_lie_on_the_cpu(backend):
    with torch.device("cpu"):
        candidates, graph = torch.tensor([[0], [2]]), torch.tensor([[0, 1], [1, 2], [2, 0]])
        explore, density = torch.tensor([[1], [1]]), torch.zeros(3, 2)
    with use_backend(backend):
        space = search_space(candidates, graph, explore)
        found = divergence_sums(candidates[:, 0], space, density, 3)
    assert {part.device.type for part in (space, *found)} == {"cpu"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(), (3,), (4, 50_000), (2, 1, 5)])
def test_take_looks_up_and_pads(backend, shape):
    table, index = torch.randn(7), torch.randint(-1, 7, shape)
    expected = torch.where(index < 0, -torch.inf, table[index.clamp_min(0)])
    with use_backend(backend):
        assert torch.equal(take(table, index), expected)
        for turned in (index.movedim(0, -1), index.expand(2, *shape)) if shape else ():
            assert torch.equal(
                take(table, turned), torch.where(turned < 0, -torch.inf, table[turned.clamp_min(0)])
            )


def test_take_refuses_components_out_of_range():
    with pytest.raises(PartitionError, match=r"lie in \[0, 2\], not in \[0, 2\)"):
        take(torch.zeros(2), torch.tensor([0, 2]))


# Sums by row and by component.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("by_row", [True, False], ids=["as the kernels lay it out", "otherwise"])
def test_sums_come_with_the_largest_of_each_row_or_its_nan(backend, by_row):
    a, b = torch.randn(2, 300, 4)
    a[5] = -torch.inf
    a[7, 1], b[7, 2], b[8, 3], a[9] = torch.nan, torch.inf, torch.inf, torch.nan
    a, b = (a.T, b.T) if by_row else (a.T.contiguous(), b.T.contiguous())
    with use_backend(backend):
        total, best = add_with_best(a, b)
    torch.testing.assert_close(total, a + b, equal_nan=True)
    torch.testing.assert_close(best, (a + b).amax(0), equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_log_evidence_is_the_log_of_the_sum_of_the_best(backend):
    search = torch.tensor([[0, 1, 2, 4], [1, 2, -1, 3], [3, 4, -1, 0]])
    joint = torch.tensor(
        [[-1.0, -800.0, -3.0, -torch.inf], [-2.0, -801.0, 9.0, -torch.inf], [0.5, -805.0, 9.0, 1.0]]
    )
    with use_backend(backend):
        best = keep_best(search, joint, 2)
    torch.testing.assert_close(best.log_evidence, best.log_joint.logsumexp(0))
    assert best.log_joint[:, 2].tolist() == [-3.0, -torch.inf]


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_are_counted_by_component(backend):
    index, weight = torch.tensor([2, -1, 0, 2]), torch.tensor([1.5, 4.0, 0.25, 1.0])
    with use_backend(backend):
        assert count_weights(index, weight, 4).tolist() == [0.25, 0.0, 2.5, 0.0]
