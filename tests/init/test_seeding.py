"""Seeding: distinct rows, spread over clusters by AFK-MC2."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.init import seed_rows
from pyro_mixtures.init.seeding import METHODS

few = settings(max_examples=25, deadline=None, derandomize=True)


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


@few
@given(st.data(), st.integers(1, 25), st.sampled_from(METHODS), st.integers(1, 12))
def test_seeds_are_distinct_rows_of_the_data(data, rows, method, chain):
    components = data.draw(st.integers(1, rows))
    x = torch.randn(rows, 2, generator=generator(rows))
    seeds = seed_rows(x, components, method=method, chain=chain, generator=generator())
    assert seeds.index.shape == (components,)
    assert len(set(seeds.index.tolist())) == components
    assert torch.equal(seeds.loc, x[seeds.index])
    torch.testing.assert_close(
        seeds.variance, x.var(0, unbiased=False) if rows > 1 else torch.ones(2)
    )


@pytest.mark.parametrize("method", METHODS)
def test_as_many_components_as_rows_take_every_row(method):
    x = torch.randn(12, 3)
    assert sorted(seed_rows(x, 12, method=method).index.tolist()) == list(range(12))


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_in_the_data_are_still_distinct_rows(method):
    x = torch.tensor([[0.0, 1.0]]).repeat(10, 1)
    x[7] = 5.0
    seeds = seed_rows(x, 8, method=method, generator=generator())
    assert len(set(seeds.index.tolist())) == 8


def test_afkmc2_prefers_a_new_value_to_a_duplicate():
    """Nine rows in ten are one point: a second mean there would be an empty component."""
    x = torch.zeros(200, 2)
    x[:20] = torch.tensor([3.0, 4.0])
    found = [seed_rows(x, 2, generator=generator(seed)).loc for seed in range(20)]
    assert sum(not torch.equal(loc[0], loc[1]) for loc in found) >= 19


def test_afkmc2_covers_separated_clusters_far_more_often_than_random():
    centers = 100 * torch.eye(8)
    x = centers.repeat_interleave(15, 0) + torch.randn(120, 8)
    covered = {
        method: sum(
            len(
                set(
                    (
                        seed_rows(x, 8, method=method, chain=40, generator=generator(seed)).index
                        // 15
                    ).tolist()
                )
            )
            == 8
            for seed in range(20)
        )
        for method in METHODS
    }
    # A random choice covers all of them with probability 8! / 8^8 = 0.0024; a chain misses the
    # last one with probability (7/8)^40 = 0.005.
    assert covered["random"] <= 2
    assert covered["afkmc2"] >= 18


def test_long_chains_draw_by_squared_distance_as_kmeans_plus_plus_does():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    pairs = torch.stack(
        [seed_rows(x, 2, chain=40, generator=generator(seed)).index for seed in range(600)]
    )
    for first in range(4):
        second = pairs[pairs[:, 0] == first, 1]
        weight = (x - x[first]).square()[:, 0]
        expected = weight / weight.sum()
        spread = (expected * (1 - expected) / len(second)).sqrt().clamp_min(1e-9)
        frequency = torch.bincount(second, minlength=4) / len(second)
        assert ((frequency - expected) / spread).abs().max() < 4.5


def test_chains_avoid_all_earlier_means_far_from_the_origin():
    """With a hundred tight groups and several blocks of means, hardly a group is left out."""
    groups = 1e4 + 10 * torch.rand(100, 4, generator=generator(0))
    x = groups.repeat(20, 1) + 1e-2 * torch.randn(2000, 4, generator=generator(1))
    found = seed_rows(x, 100, chain=100, generator=generator(2)).index % 100
    assert len(found.unique()) >= 95


@pytest.mark.parametrize("method", METHODS)
def test_seeds_depend_on_the_generator_alone(method):
    x, found = torch.randn(50, 2), []
    for noise in (1, 2):
        torch.manual_seed(noise)
        found.append(seed_rows(x, 6, method=method, generator=generator(3)).index)
    assert torch.equal(*found)
    assert not torch.equal(found[0], seed_rows(x, 6, method=method, generator=generator(4)).index)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_generator_torchs_seed_decides(method):
    x, found = torch.randn(50, 2), []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(seed_rows(x, 6, method=method).index)
    assert torch.equal(*found)


def test_a_constant_feature_gets_the_variance_of_a_typical_one():
    x = torch.cat([torch.randn(40, 2), torch.full((40, 1), 7.0)], 1)
    variance = seed_rows(x, 2).variance
    torch.testing.assert_close(
        variance[2], variance.new_tensor(float(x.var(0, unbiased=False).mean()))
    )
    assert seed_rows(torch.ones(5, 2), 2).variance.tolist() == [1.0, 1.0]


def test_variance_is_right_far_from_the_origin():
    x = torch.randn(1000, 1) + 1e4
    torch.testing.assert_close(
        seed_rows(x, 1).variance, x.double().var(0, unbiased=False).float(), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_rows_may_be_arrays(dtype):
    x = np.arange(12).reshape(6, 2).astype(dtype)
    seeds = seed_rows(x, 3, generator=generator())
    assert seeds.loc.dtype == (torch.float64 if dtype is np.float64 else torch.float32)
    assert torch.equal(seeds.loc, torch.from_numpy(x)[seeds.index].to(seeds.loc.dtype))


@pytest.mark.parametrize(
    ("x", "components", "message"),
    [
        (torch.zeros(3, 2), 4, "4 components for 3 rows"),
        (torch.zeros(3, 2), 0, "0 components"),
        (torch.zeros(3), 1, r"must be \(N, D\)"),
        (torch.tensor([[0.0], [torch.nan]]), 1, "row 1 contains NaN"),
        (torch.tensor([[torch.inf], [0.0]]), 1, "row 0 contains NaN or infinity"),
    ],
)
def test_data_that_cannot_be_seeded_are_refused(x, components, message):
    with pytest.raises(DataError, match=message):
        seed_rows(x, components)


def test_an_unknown_method_is_refused():
    with pytest.raises(OptionError, match=r"'kmeans'.*choose one of"):
        seed_rows(torch.zeros(3, 2), 2, method="kmeans")


@pytest.mark.parametrize("chain", [0, -1])
def test_a_chain_without_steps_is_refused(chain):
    with pytest.raises(OptionError, match="chain"):
        seed_rows(torch.randn(9, 2), 3, chain=chain)


@pytest.mark.meta
@pytest.mark.parametrize("method", METHODS)
def test_seeds_lie_on_the_device_of_the_rows(method):
    x = torch.randn(30, 2, device="cpu")
    assert {part.device.type for part in seed_rows(x, 5, method=method)} == {"cpu"}
