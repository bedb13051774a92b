"""Start labels of hard partitions: clusters without empty ones, separated clusters, seeds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.init import labels as module
from pyro_mixtures.init import seed_rows
from pyro_mixtures.init.labels import METHODS, start_labels

pytestmark = pytest.mark.usefixtures("on_one_thread")

CLUSTERING = METHODS[1:]
few = settings(max_examples=20, deadline=None, derandomize=True)


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def blobs(components=5, rows=300, features=4, dtype=torch.float32, seed=0):
    """Rows (N, D) about distant centers, and the number of each row's center; equal sizes."""
    draw = generator(seed)
    centers = 200 * torch.eye(components, features, dtype=torch.float64, device="cpu")
    centers[features:] = -200 * torch.eye(
        max(0, components - features), features, dtype=torch.float64, device="cpu"
    )
    truth = torch.arange(rows, device="cpu") % components
    noise = torch.randn(rows, features, generator=draw, dtype=torch.float64, device="cpu")
    return (centers[truth] + noise).to(dtype), truth


def inertia(x, labels):
    """Return the sum of squared distances from the means of the clusters."""
    return sum(
        float((x[labels == c] - x[labels == c].mean(0)).square().sum()) for c in labels.unique()
    )


# All methods.


@few
@given(st.data(), st.integers(1, 25), st.sampled_from(METHODS), st.booleans())
def test_every_cluster_has_rows_and_every_row_a_cluster(data, rows, method, repeated):
    """Also with repeated rows, of which fewer than components are distinct."""
    components = data.draw(st.integers(1, rows))
    x = torch.randn(rows, 2, generator=generator(rows))
    x = x[torch.arange(rows) // 3] if repeated else x
    found = start_labels(x, components, method=method, generator=generator())
    assert (found.dtype, found.shape) == (torch.int64, (rows,))
    assert sorted(found.unique().tolist()) == list(range(components))


@pytest.mark.meta
@pytest.mark.parametrize("method", CLUSTERING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_separated_clusters_are_found(method, dtype):
    x, truth = blobs(dtype=dtype)
    for seed in range(3):
        found = start_labels(x, 5, method=method, generator=generator(seed))
        assert found.device.type == "cpu"
        assert adjusted_rand_score(truth, found) > 0.95


@pytest.mark.parametrize("method", CLUSTERING)
def test_position_and_unit_of_the_rows_do_not_matter(method):
    x, truth = blobs(dtype=torch.float64)
    for scale, shift in ((1e-12, 0.0), (1e25, 0.0), (1e-3, 1e5)):
        found = start_labels(scale * x + shift, 5, method=method, generator=generator())
        assert adjusted_rand_score(truth, found) > 0.95


@pytest.mark.parametrize("method", METHODS)
def test_labels_depend_on_the_generator_alone(method):
    x, found = torch.randn(200, 2), []
    for noise in (1, 2):
        torch.manual_seed(noise)
        found.append(start_labels(x, 6, method=method, generator=generator(3)))
    assert torch.equal(*found)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_generator_torchs_seed_decides(method):
    x, found = torch.randn(200, 2), []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(start_labels(x, 6, method=method))
    assert torch.equal(*found)


@pytest.mark.parametrize("method", ["uniform", "kmeans++", "gaussian"])
def test_other_seeds_give_other_labels(method):
    x = torch.randn(200, 2)
    assert not torch.equal(
        *(start_labels(x, 6, method=method, generator=generator(seed)) for seed in (1, 2))
    )


def test_rows_in_blocks_get_the_labels_of_rows_at_once(monkeypatch):
    x, _ = blobs(rows=200)
    for method in CLUSTERING:
        whole = start_labels(x, 5, method=method, generator=generator())
        with monkeypatch.context() as patch:
            patch.setattr(module, "_NUMBERS", 64)
            assert torch.equal(whole, start_labels(x, 5, method=method, generator=generator()))


def test_rows_may_be_arrays_and_integers():
    x, truth = blobs(dtype=torch.int64)
    for method in CLUSTERING:
        assert (
            adjusted_rand_score(
                truth, start_labels(x.numpy(), 5, method=method, generator=generator())
            )
            > 0.95
        )


# Single methods.


def test_sizes_of_uniform_clusters_differ_by_one_row_at_most():
    sizes = torch.bincount(start_labels(torch.zeros(23, 1), 5, generator=generator()))
    assert sorted(sizes.tolist()) == [4, 4, 5, 5, 5]


def test_uniform_labels_do_not_depend_on_the_rows():
    x, truth = blobs(rows=3000)
    assert abs(adjusted_rand_score(truth, start_labels(x, 5, generator=generator()))) < 0.02


def test_kmeans_plus_plus_labels_are_the_nearest_seeds():
    x = torch.randn(300, 3, dtype=torch.float64)
    loc = seed_rows(x, 7, chain=module._CHAIN, generator=generator()).loc
    expected = torch.cdist(x, loc).argmin(-1)
    assert torch.equal(start_labels(x, 7, method="kmeans++", generator=generator()), expected)


@pytest.mark.parametrize("capacity", [None, 30, 60])
def test_balanced_clusters_keep_the_capacity_and_are_compact(capacity):
    """One cluster has half of the rows and must be divided."""
    x = torch.cat([torch.randn(50, 2), torch.randn(25, 2) + 20, torch.randn(25, 2) - 20])
    found = start_labels(x, 4, method="balanced", capacity=capacity, generator=generator())
    assert torch.bincount(found, minlength=4).max() <= (capacity or 25)
    assert inertia(x, found) < 0.1 * inertia(x, start_labels(x, 4, generator=generator()))


def test_balanced_clusters_of_unequal_groups_have_equal_sizes():
    x = torch.cat([torch.randn(70, 2), torch.randn(30, 2) + 50])
    sizes = torch.bincount(start_labels(x, 2, method="balanced", generator=generator()))
    assert sizes.tolist() == [50, 50]


def test_agglomerative_is_wards_clustering():
    x = torch.randn(150, 3, dtype=torch.float64)
    expected = AgglomerativeClustering(6, linkage="ward").fit_predict(x.numpy())
    found = start_labels(x, 6, method="agglomerative", generator=generator())
    assert adjusted_rand_score(expected, found) == 1.0


def test_rows_outside_wards_sample_go_to_the_nearest_mean_of_its_clusters(monkeypatch):
    monkeypatch.setattr(module, "_WARD_ROWS", 40)
    x, truth = blobs(rows=500)
    assert (
        adjusted_rand_score(
            truth, start_labels(x, 5, method="agglomerative", generator=generator())
        )
        == 1.0
    )


def test_gaussian_separates_clusters_by_their_spread(monkeypatch):
    """By distance, rows of the wide cluster would belong to the narrow one next to it."""
    monkeypatch.setattr(module, "_EM_ROWS", 300)
    truth = torch.arange(600) % 2
    x = torch.where(truth.bool().unsqueeze(-1), 6.0, 0.3) * torch.randn(
        600, 2, generator=generator()
    )
    x[:, 0] += 12.0 * truth
    score = {
        m: adjusted_rand_score(truth, start_labels(x, 2, method=m, generator=generator(1)))
        for m in CLUSTERING
    }
    assert score["gaussian"] > 0.95 > 0.9 > max(score["kmeans++"], score["balanced"])


# Errors.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("x", "components", "message"),
    [
        (torch.zeros(3, 2), 4, "4 components for 3 rows"),
        (torch.zeros(3, 2), 0, "0 components"),
        (torch.zeros(3), 1, r"must be \(N, D\)"),
    ],
)
def test_rows_that_cannot_be_clustered_are_refused(method, x, components, message):
    with pytest.raises(DataError, match=message):
        start_labels(x, components, method=method)


@pytest.mark.parametrize("method", CLUSTERING)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_refused(method, bad):
    with pytest.raises(DataError, match="row 1 contains NaN or infinity"):
        start_labels(torch.tensor([[0.0], [bad], [2.0]]), 2, method=method)


def test_an_unknown_method_is_refused():
    with pytest.raises(OptionError, match=r"'kmeans'.*choose one of.*'kmeans\+\+'"):
        start_labels(torch.zeros(3, 2), 2, method="kmeans")


@pytest.mark.parametrize("method", ["uniform", "balanced"])
@pytest.mark.parametrize("capacity", [0, 3])
def test_a_capacity_that_is_too_small_is_refused(method, capacity):
    with pytest.raises(DataError, match=f"capacity={capacity} rows do not hold 10 rows"):
        start_labels(torch.randn(10, 2), 3, method=method, capacity=capacity)


@pytest.mark.parametrize("method", ["kmeans++", "agglomerative", "gaussian"])
def test_a_capacity_that_the_method_ignores_is_refused(method):
    with pytest.raises(OptionError, match="leave capacity= out"):
        start_labels(torch.randn(10, 2), 3, method=method, capacity=5)


def test_more_components_than_wards_sample_are_refused(monkeypatch):
    monkeypatch.setattr(module, "_WARD_ROWS", 5)
    with pytest.raises(OptionError, match="finds at most 5 clusters"):
        start_labels(torch.randn(10, 2), 6, method="agglomerative")
