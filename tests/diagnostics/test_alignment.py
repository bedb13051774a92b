"""Alignment of labels: known permutations are inverted, and no other has a larger overlap."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.sparse import block_diag, csr_matrix, eye_array

from pyro_mixtures.diagnostics.alignment import align, overlap, relabel
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer import Responsibilities
from pyro_mixtures.partition.matching import match_components
from pyro_mixtures.partition.sparse_matching import match_nearest, match_overlap

few = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
ORDERS_OF_5 = list(itertools.permutations(range(5)))


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def orders(count, components, seed):
    one = generator(seed)
    return torch.stack(
        [torch.randperm(components, generator=one, device="cpu") for _ in range(count)]
    )


def rows_of_all(components, candidates, seed, rows=3) -> Responsibilities:
    """Top candidates of rows, each component at least ``rows`` times the most probable one."""
    one = generator(seed)
    winner = torch.arange(components, device="cpu").repeat_interleave(rows).unsqueeze(1)
    steps = torch.stack(
        [
            torch.randperm(components - 1, generator=one, device="cpu")[: candidates - 1] + 1
            for _ in winner
        ]
    )
    probs = (
        torch.rand(len(winner), candidates, generator=one, device="cpu")
        .sort(-1, descending=True)
        .values
    )
    probs[:, 0] += 1.0
    return Responsibilities(
        torch.cat([winner, (winner + steps) % components], 1), probs / probs.sum(-1, keepdim=True)
    )


def renumbered(responsibilities: Responsibilities, order) -> Responsibilities:
    """The same responsibilities with component k renumbered to ``order[k]``."""
    return responsibilities._replace(components=order[responsibilities.components])


class TestPlantedPermutations:
    @few
    @given(
        st.integers(1, 40),
        st.integers(1, 4),
        st.integers(1, 5),
        seeds,
        st.sampled_from([torch.float32, torch.float64]),
    )
    def test_by_parameters(self, components, features, fits, seed, dtype):
        loc = 10 * torch.randn(
            components, features, generator=generator(seed), dtype=dtype, device="cpu"
        )
        planted = orders(fits, components, seed)
        # Component k of the reference is number order[k] of the fit.
        shuffled = torch.stack([relabel({"loc": loc}, order.argsort())["loc"] for order in planted])
        assert torch.equal(align(shuffled, loc), planted)
        for order, params in zip(planted, shuffled, strict=True):
            assert torch.equal(relabel({"loc": params}, order)["loc"], loc)

    @few
    @given(st.integers(2, 40), st.integers(1, 3), st.integers(1, 5), seeds)
    def test_by_responsibilities(self, components, candidates, fits, seed):
        reference, planted = (
            rows_of_all(components, min(candidates, components), seed),
            orders(fits, components, seed),
        )
        found = align(
            [renumbered(reference, order) for order in planted], reference, components=components
        )
        assert torch.equal(found, planted)

    @few
    @given(st.integers(3, 60), seeds)
    def test_sparse_matchings(self, components, seed):
        order = orders(1, components, seed)[0]
        reference = rows_of_all(components, 2, seed)
        sums = overlap(renumbered(reference, order), reference, components)
        np.testing.assert_array_equal(match_overlap(sums, dense=0), order)
        loc = torch.randn(components, 2, generator=generator(seed), device="cpu")
        assert torch.equal(match_nearest(loc[order.argsort()], loc, neighbors=2, dense=0), order)

    @pytest.mark.meta
    def test_of_thousands_of_components(self):
        order = orders(1, 3000, 0)[0]
        reference = rows_of_all(3000, 3, 1)
        assert torch.equal(
            align([renumbered(reference, order)], reference, components=3000)[0], order
        )
        loc = torch.randn(3000, 4, generator=generator(2), device="cpu")
        nearly = loc[order.argsort()] + 1e-3 * torch.randn(
            3000, 4, generator=generator(3), device="cpu"
        )
        assert torch.equal(align([nearly], loc)[0], order)

    def test_the_first_fit_is_the_reference(self):
        loc = torch.tensor([[0.0], [5.0], [9.0]])
        assert align([loc, loc.flip(0)]).tolist() == [[0, 1, 2], [2, 1, 0]]


def total(overlaps, permutation):
    return overlaps[np.arange(len(overlaps)), list(permutation)].sum()


class TestBest:
    @few
    @given(st.integers(1, 6), st.floats(0.1, 1.0), seeds, st.booleans())
    def test_no_permutation_overlaps_more(self, components, density, seed, dense):
        rng = np.random.default_rng(seed)
        overlaps = rng.random((components, components)) * (
            rng.random((components, components)) < density
        )
        found = match_overlap(csr_matrix(overlaps), dense=1024 if dense else 0)
        assert sorted(found.tolist()) == list(range(components))
        best = max(total(overlaps, p) for p in itertools.permutations(range(components)))
        assert total(overlaps, found) == pytest.approx(best, abs=1e-9)

    def test_overlaps_of_very_different_sizes(self):
        overlaps = csr_matrix(
            np.array([[1e9, 1e9 - 1, 0.0], [1e9 - 1, 1e9, 0.0], [0.0, 0.0, 1e-3]])
        )
        assert match_overlap(overlaps, dense=0).tolist() == [0, 1, 2]

    @pytest.mark.meta
    @pytest.mark.parametrize("others", [0, 1095])
    def test_bidding_wars_end(self, others):
        """Bids that rise by 1e-9 at a time would take forever to reach 500."""
        overlaps = np.zeros((5, 5))
        overlaps[[1, 1, 2, 2, 4, 4], [0, 4, 2, 3, 3, 4]] = (
            2.559e-8,
            2.632e-8,
            1.780e-9,
            9.235e-9,
            517.2,
            60.89,
        )
        found = match_overlap(
            block_diag([csr_matrix(overlaps), eye_array(others)]), dense=5 if others else 0
        )
        assert total(overlaps, found[:5]) == pytest.approx(
            max(total(overlaps, p) for p in ORDERS_OF_5), rel=1e-15
        )
        assert found[5:].tolist() == list(range(5, 5 + others))

    @few
    @given(st.integers(2, 40), st.floats(0.1, 1.0), seeds)
    def test_finds_the_dense_optimum_for_rows_of_any_scale(self, components, density, seed):
        rng = np.random.default_rng(seed)
        overlaps = rng.random((components, components)) * (
            rng.random((components, components)) < density
        )
        overlaps *= 10.0 ** rng.uniform(-10, 3, (components, 1))
        sparse, dense = (match_overlap(csr_matrix(overlaps), dense=d) for d in (0, components))
        assert total(overlaps, sparse) == pytest.approx(total(overlaps, dense), rel=1e-12)

    @few
    @given(st.integers(4, 30), st.integers(1, 3), st.sampled_from([0.0, 12.0]), seeds)
    def test_the_best_of_near_pairs(self, components, neighbors, orders, seed):
        """For values of any order of magnitude."""
        a, b = (
            torch.randn(components, 2, generator=generator(seed + i), device="cpu").double()
            for i in range(2)
        )
        a, b = (
            t * 10 ** -torch.linspace(0, orders, components, dtype=torch.float64)[:, None]
            for t in (a, b)
        )
        cost = torch.cdist(b, a)
        near = torch.zeros_like(cost, dtype=torch.bool)
        near.scatter_(1, cost.topk(neighbors, largest=False).indices, True)
        near.scatter_(0, cost.topk(neighbors, dim=0, largest=False).indices, True)
        rows, columns = linear_sum_assignment(torch.where(near, cost, 1e6))
        expected = columns if bool(near[rows, columns].all()) else match_components(a, b)
        found = match_nearest(a, b, neighbors=neighbors, dense=0)
        assert sorted(found.tolist()) == list(range(components))
        assert float(cost[rows, found].sum()) == pytest.approx(
            float(cost[rows, expected].sum()), rel=1e-12
        )

    def test_without_a_full_matching_of_near_pairs_all_pairs_are_matched(self):
        a = torch.cat([torch.linspace(0, 1, 8), torch.linspace(100, 101, 2)]).unsqueeze(1)
        b = torch.cat([torch.linspace(0, 1, 2), torch.linspace(100, 101, 8)]).unsqueeze(1)
        found, best = match_nearest(a, b, neighbors=1, dense=0), match_components(a, b)
        assert torch.equal(found, best)

    def test_expected_agreement_is_what_counts(self):
        """The second candidates decide here, not the most probable components."""
        reference = Responsibilities(torch.tensor([[0, 1]] * 4), torch.tensor([[0.6, 0.4]] * 4))
        found = Responsibilities(torch.tensor([[1, 0]] * 4), torch.tensor([[0.9, 0.1]] * 4))
        sums = overlap(found, reference, 2).toarray()
        np.testing.assert_allclose(
            sums, 4 * np.array([[0.6 * 0.1, 0.6 * 0.9], [0.4 * 0.1, 0.4 * 0.9]]), rtol=1e-6
        )
        assert align([found], reference, components=2).tolist() == [[1, 0]]


class TestRelabel:
    def test_dimensions_by_name(self):
        params = {"loc": torch.tensor([[1.0], [2.0]]), "probs": torch.tensor([[0.1, 0.9]])}
        found = relabel(params, torch.tensor([1, 0]), dim={"loc": 0, "probs": -1})
        assert found["loc"].tolist() == [[2.0], [1.0]]
        assert torch.equal(found["probs"], torch.tensor([[0.9, 0.1]]))

    @pytest.mark.meta
    def test_labels_change_by_the_inverse(self):
        order, labels = orders(1, 5, 0)[0], torch.arange(5, device="cpu")
        loc = torch.randn(5, 2, generator=generator(), device="cpu")
        moved = relabel({"loc": loc}, order)["loc"]
        assert torch.equal(moved[order.argsort()[labels]], loc[labels])


class TestRefusals:
    def test_no_fits(self):
        with pytest.raises(OptionError, match="at least one"):
            align([])

    @pytest.mark.parametrize(
        ("fits", "options", "error", "message"),
        [
            (torch.zeros(3, 2).numpy(), {}, OptionError, "ndarray"),
            ([torch.zeros(3, 2).numpy()], {}, DataError, "ndarray"),
            ((torch.zeros(3, 2) for _ in range(2)), {}, OptionError, "generator"),
            (None, {}, OptionError, "NoneType"),
            ([None], {}, DataError, "NoneType"),
            (
                [rows_of_all(3, 2, 0)],
                {"components": 3.0},
                OptionError,
                "components=3.0 must be a whole number",
            ),
            (
                [rows_of_all(3, 2, 0)],
                {"components": "a"},
                OptionError,
                "components='a' must be a whole number",
            ),
            (
                [torch.zeros(3, 2)],
                {"neighbors": "a"},
                OptionError,
                "neighbors='a' must be a whole number",
            ),
            (
                [torch.zeros(3, 2)],
                {"neighbors": 2.0},
                OptionError,
                "neighbors=2.0 must be a whole number",
            ),
            (rows_of_all(3, 2, 0), {"components": 3}, OptionError, "a list"),
            ([torch.zeros(3, 2)], {"reference": 3}, DataError, "int"),
        ],
    )
    def test_invalid_arguments(self, fits, options, error, message):
        with pytest.raises(error, match=message):
            align(fits, **options)

    def test_components_are_needed(self):
        with pytest.raises(OptionError, match="number of components"):
            align([rows_of_all(3, 2, 0)])

    @pytest.mark.parametrize(
        ("found", "message"),
        [
            (rows_of_all(3, 2, 0, rows=2), "same rows"),
            (
                rows_of_all(5, 2, 0)._replace(
                    components=torch.full((9, 2), 7), probs=torch.ones(9, 2)
                ),
                "outside",
            ),
            (torch.zeros(3, 2), "same type for every fit"),
            (rows_of_all(3, 2, 0)._replace(probs=torch.full((9, 2), torch.nan)), "finite"),
        ],
    )
    def test_mismatched_fits(self, found, message):
        with pytest.raises(DataError, match=message):
            align([found], rows_of_all(3, 2, 0), components=3)

    def test_responsibilities_and_parameters_are_not_mixed(self):
        with pytest.raises(DataError, match="same type for every fit"):
            align([rows_of_all(3, 2, 0)], torch.zeros(3, 2))

    def test_nan_in_many_components(self):
        a = torch.zeros(5, 2)
        a[2, 0] = torch.nan
        with pytest.raises(DataError, match=r"\[2\] contains NaN"):
            match_nearest(a, torch.zeros(5, 2), neighbors=1, dense=0)

    def test_neighbors(self):
        with pytest.raises(OptionError, match="neighbors=0"):
            align([torch.zeros(3, 2)], neighbors=0)

    @pytest.mark.parametrize(
        "overlaps", [np.ones((2, 3)), -np.ones((2, 2)), np.full((2, 2), np.nan)]
    )
    def test_overlaps(self, overlaps):
        with pytest.raises(DataError, match="overlaps"):
            match_overlap(csr_matrix(overlaps))

    @pytest.mark.parametrize(
        "permutation", [[0, 0], [0, 1, 2], [[0, 1]], [0.0, 1.0], [0.5, 1.9], [False, True]]
    )
    def test_permutations(self, permutation):
        with pytest.raises(DataError, match=r"must contain each|does not have"):
            relabel({"loc": torch.zeros(2, 3)}, torch.tensor(permutation))

    @pytest.mark.parametrize("permutation", [[1, 0], np.array([1, 0]), None])
    def test_permutations_that_are_not_tensors(self, permutation):
        with pytest.raises(DataError, match=r"permutation is of type .*: pass a tensor \(C,\)"):
            relabel({"loc": torch.zeros(2, 3)}, permutation)

    @pytest.mark.parametrize(
        ("dim", "message"),
        [
            ({"scale": 0}, "dim= has no entry for 'loc'"),
            (1.0, "dim=1.0 must be"),
            ({"loc": "a"}, "dim='a' must be"),
        ],
    )
    def test_dimensions(self, dim, message):
        with pytest.raises(OptionError, match=message):
            relabel({"loc": torch.zeros(2, 3)}, torch.tensor([1, 0]), dim=dim)

    def test_params_that_are_not_tensors(self):
        with pytest.raises(DataError, match="'loc' is of type ndarray"):
            relabel({"loc": np.zeros(2)}, torch.tensor([1, 0]))
