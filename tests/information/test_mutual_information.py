"""Mutual information against known values, brute force, pycit and scikit-learn; labels, ties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.information import mutual_information


def half_gaussian(rng, n):
    """Half a Gaussian pair of correlation .9, half atoms at +-1 that agree with probability .9."""
    gauss = rng.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], n)
    sign = rng.choice([-1.0, 1.0], n)
    atoms = np.stack([sign, np.where(rng.random(n) < 0.9, sign, -sign)], 1)
    return np.where(rng.random((n, 1)) < 0.5, gauss, atoms).T


def discrete_uniform(rng, n):
    x = rng.integers(0, 5, n)
    return x, x + 2 * rng.random(n)


def zero_inflated(rng, n):
    x = rng.exponential(size=n)
    return x, (rng.random(n) < 0.85) * rng.poisson(x)


def sample_entropy(*variables):
    """The smallest entropy of the variables; infinity if none of them has ties."""
    entropies = [np.inf]
    for values in variables:
        counts = np.unique(values, axis=0, return_counts=True)[1]
        if counts.max() > 1:
            entropies.append(-(counts / len(values) * np.log(counts / len(values))).sum())
    return min(entropies)


def brute_force(x, y, k, form=digamma):
    """The definition, evaluated row by row over all distances."""
    n = len(x)
    d_x, d_y = (np.abs(v.reshape(n, 1, -1) - v.reshape(1, n, -1)).max(-1) for v in (x, y))
    total = 0.0
    for a, b in zip(d_x, d_y, strict=True):
        joint = np.maximum(a, b)
        rho = np.sort(joint)[k]
        ties = (joint == 0).sum() if rho == 0 else (joint < rho).sum()
        n_x, n_y = (
            ((a == 0).sum(), (b == 0).sum()) if rho == 0 else ((a < rho).sum(), (b < rho).sum())
        )
        total += digamma(ties) + np.log(n) - form(n_x) - form(n_y)
    return min(total / n, sample_entropy(x, y))


def brute_force_nominal(labels, y, k):
    """Distance 0 between equal labels and infinity between others."""
    n, total = len(labels), 0.0
    for i in range(n):
        same = labels == labels[i]
        distance = np.abs(y - y[i])
        others = np.sort(distance[same])[1 : k + 1]
        if not len(others):
            continue
        rho = others[-1]
        ties = (distance[same] == 0).sum() if rho == 0 else (distance[same] < rho).sum()
        n_y = (distance == 0).sum() if rho == 0 else (distance < rho).sum()
        total += digamma(ties) + np.log(n) - digamma(same.sum()) - digamma(n_y)
    return min(total / n, sample_entropy(labels, y))


@pytest.mark.parametrize(
    ("process", "psi", "log"),
    [
        (half_gaussian, 1.075, 1.029),
        (discrete_uniform, 1.052, 0.866),
        (zero_inflated, 0.231, 0.068),
    ],
)
def test_means_over_seeds_agree_with_the_paper(process, psi, log):
    estimates = {"digamma": [], "log": []}
    for seed in range(20):
        x, y = process(np.random.default_rng(seed), 1600)
        for form, values in estimates.items():
            values.append(mutual_information(x, y, form=form).nats)
    assert np.mean(estimates["digamma"]) == pytest.approx(psi, abs=0.02)
    assert np.mean(estimates["log"]) == pytest.approx(log, abs=0.02)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(8, 60),
    shape=st.sampled_from([(1, 1), (1, 2), (3, 1), (2, 2)]),
    levels=st.sampled_from([2, 5, 40, None]),
    k=st.integers(1, 7),
)
def test_equals_its_definition(seed, n, shape, levels, k):
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(n, d)) for d in shape)
    if levels:  # tenths are not exact in binary: ties must survive rounding
        x, y = (
            np.round(x * levels / 4) / 10,
            np.where(rng.random((n, 1)) < 0.5, y, np.round(y * levels / 4) / 10),
        )
    x[0], y[0] = 9.0, -9.0  # neither is constant
    for form, function in (("digamma", digamma), ("log", lambda m: np.log(m + 1))):
        assert mutual_information(x, y, neighbors=k, form=form).nats == pytest.approx(
            brute_force(x, y, k, function), abs=1e-12
        )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(8, 60),
    labels=st.integers(2, 30),
    k=st.integers(1, 7),
    tied=st.booleans(),
)
def test_nominal_labels_equal_their_definition(seed, n, labels, k, tied):
    rng = np.random.default_rng(seed)
    z = rng.integers(0, labels, n)
    z[:2] = 0, 1
    y = rng.normal(size=n) + z % 3
    y = np.round(y) / 10 if tied else y
    y[0] = 7.0
    expected = brute_force_nominal(z, y, k)
    assert mutual_information(z, y, discrete="x", neighbors=k).nats == pytest.approx(
        expected, abs=1e-12
    )
    assert mutual_information(y, z, discrete="y", neighbors=k).nats == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("decimals", [8, 2, 1, 0])
@pytest.mark.parametrize("columns", [1, 2])
def test_rounded_independent_variables_share_no_information(decimals, columns):
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(5):
        x, y = rng.normal(size=(1000, columns)), rng.normal(size=1000)
        estimates.append(mutual_information(x.round(decimals), y.round(decimals)).nats)
    assert np.mean(estimates) == pytest.approx(0, abs=0.05)


def test_rounding_changes_the_information_little():
    rng = np.random.default_rng(0)
    x, y = gaussian(rng, 2000)
    exact = mutual_information(x, y).nats
    assert exact == pytest.approx(-0.5 * np.log(0.36), abs=0.05)
    for decimals in (3, 2, 1):
        rounded = mutual_information(x.round(decimals), y.round(decimals)).nats
        assert rounded == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("feature", range(4))
def test_rounded_features_and_labels(feature):
    datasets = pytest.importorskip("sklearn.datasets")
    x, labels = datasets.load_iris(return_X_y=True)
    rng = np.random.default_rng(0)
    unrounded = [
        mutual_information(labels, x[:, feature] + rng.uniform(-0.05, 0.05, 150), discrete="x").nats
        for _ in range(20)
    ]
    estimate = mutual_information(labels, x[:, feature], discrete="x").nats
    assert estimate == pytest.approx(np.mean(unrounded), abs=0.06)
    shuffled = [
        mutual_information(rng.permutation(labels), x[:, feature], discrete="x").nats
        for _ in range(50)
    ]
    assert np.mean(shuffled) == pytest.approx(0, abs=0.03)


def test_a_rare_label_has_little_information():
    rng = np.random.default_rng(0)
    rare = np.arange(1000) < 10
    for decimals in (2, 1):
        estimates = [
            mutual_information(rare, rng.normal(size=1000).round(decimals), discrete="x").nats
            for _ in range(10)
        ]
        assert np.mean(estimates) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("discrete", ["", "x", "y", "xy"])
@pytest.mark.parametrize("size", [6, 20, 500])
@pytest.mark.parametrize("form", ["digamma", "log"])
def test_is_at_most_the_entropy_of_a_discrete_variable(discrete, size, form):
    z = np.repeat([0.0, 1.0, 5.0], size)
    for y in (z, 3 * z + 1e-3 * np.random.default_rng(0).normal(size=len(z))):
        for pair in ((z, y), (y, z)):
            estimate = mutual_information(*pair, discrete=discrete, form=form).nats
            assert estimate <= np.log(3) + 1e-12
            if form == "digamma" and not discrete:
                assert estimate == pytest.approx(np.log(3), abs=1e-12)


def test_the_information_of_a_continuous_variable_about_itself_is_not_bounded():
    x = np.random.default_rng(0).normal(size=1000)
    assert mutual_information(x, x, neighbors=1).nats > np.log(1000)


def test_does_not_depend_on_the_values_of_labels():
    rng = np.random.default_rng(0)
    z = rng.integers(0, 20, 300)
    y = rng.normal(size=(300, 2)) + (z % 2)[:, None]
    first = mutual_information(z, y, discrete="x").nats
    renamed = rng.permutation(1000)[z]
    assert mutual_information(renamed, y, discrete="x").nats == pytest.approx(first, abs=1e-12)
    assert mutual_information(renamed.astype(str), 1e6 * y, discrete="x").nats == pytest.approx(
        first, abs=1e-12
    )
    assert first > mutual_information(z, rng.permutation(y), discrete="x").nats + 0.05


def test_two_nominal_variables_count_ties():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, 4000)
    y = np.where(rng.random(4000) < 0.8, x, rng.integers(0, 3, 4000))
    table = np.histogram2d(x, y, bins=3)[0] / 4000
    plug_in = (table * np.log(table / table.sum(0) / table.sum(1, keepdims=True))).sum()
    assert mutual_information(x, y, discrete="xy").nats == pytest.approx(plug_in, abs=3e-3)


def gaussian(rng, n):
    x = rng.normal(size=n)
    return x, 0.8 * x + 0.6 * rng.normal(size=n)


# Without ties at a positive distance, which pycit does not count as the marginals do.
@pytest.mark.parametrize("process", [gaussian, discrete_uniform])
def test_equals_pycit_up_to_psi_of_n(process):
    estimators = pytest.importorskip("pycit.estimators.mixed_mi")
    x, y = process(np.random.default_rng(0), 500)
    reference = estimators.mixed_mi(1.0 * x, 1.0 * y, 5) + np.log(500) - digamma(500)
    assert mutual_information(x, y).nats == pytest.approx(reference, abs=1e-12)


def test_agrees_with_scikit_learn():
    selection = pytest.importorskip("sklearn.feature_selection")
    rng = np.random.default_rng(0)
    x = rng.normal(size=2000)
    y = 0.8 * x + 0.6 * rng.normal(size=2000)
    reference = selection.mutual_info_regression(x[:, None], y, n_neighbors=5, random_state=0)[0]
    assert mutual_information(x / x.std(), y / y.std()).nats == pytest.approx(reference, abs=0.03)
    z = rng.integers(0, 10, 2000)
    y = rng.normal(size=2000) + z
    reference = selection.mutual_info_classif(y[:, None], z, n_neighbors=5, random_state=0)[0]
    assert mutual_information(z, y, discrete="x").nats == pytest.approx(
        reference + np.log(2000) - digamma(2000), abs=1e-9
    )


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_and_arrays_give_the_same(dtype):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, generator=g, dtype=dtype, device="cpu")
    y = torch.stack([x, torch.randn(200, generator=g, dtype=dtype, device="cpu")], 1)
    options = {"subsamples": 5, "permutations": 19}
    first = mutual_information(x, y, generator=torch.Generator().manual_seed(1), **options)
    assert first == mutual_information(
        x.numpy(), y.numpy(), generator=torch.Generator().manual_seed(1), **options
    )
    assert first.p_value == 0.05


def test_does_not_depend_on_the_order_of_rows_or_threads():
    x, y = half_gaussian(np.random.default_rng(0), 12_000)
    first = mutual_information(x, y, workers=1).nats
    assert mutual_information(x, y, workers=2).nats == first
    assert mutual_information(x[::-1], y[::-1]).nats == pytest.approx(first, abs=1e-12)


@pytest.mark.parametrize("process", [half_gaussian, discrete_uniform, zero_inflated])
def test_standard_error_is_the_spread_over_samples(process):
    generator = torch.Generator().manual_seed(0)
    samples = [process(np.random.default_rng(seed), 300) for seed in range(60)]
    spread = np.std([mutual_information(x, y).nats for x, y in samples], ddof=1)
    errors = [
        mutual_information(x, y, subsamples=20, generator=generator).standard_error
        for x, y in samples[:20]
    ]
    assert 0.7 < np.mean(errors) / spread < 1.4


def test_interval_is_normal():
    x, y = half_gaussian(np.random.default_rng(0), 200)
    estimate = mutual_information(x, y, subsamples=10)
    low, high = estimate.interval()
    assert (high - low) / estimate.standard_error == pytest.approx(2 * 1.959964, abs=1e-5)
    assert (low + high) / 2 == pytest.approx(estimate.nats)
    with pytest.raises(OptionError, match="subsamples"):
        mutual_information(x, y).interval()


def test_accepts_half_precision_and_lists():
    x = torch.arange(60.0, device="cpu")
    y = x * (x % 7)
    for low in (torch.bfloat16, torch.float16):
        expected = mutual_information(x.to(low).float(), y.to(low).float())
        assert mutual_information(x.to(low), y.to(low)) == expected
    assert mutual_information(x.tolist(), y.tolist()) == mutual_information(x, y)


def test_labels_of_any_type():
    rng = np.random.default_rng(0)
    z, y = rng.integers(0, 4, 100), rng.normal(size=100)
    names = np.array(["a", 1, ("b", 2), 2.5], dtype=object)[z]  # these have no order
    expected = mutual_information(z, y + z, discrete="x").nats
    assert mutual_information(names, y + z, discrete="x").nats == pytest.approx(expected, abs=1e-12)
    pairs = np.stack([names, names], 1)
    assert mutual_information(pairs, y + z, discrete="x").nats == pytest.approx(expected, abs=1e-12)


def labels_with(value):
    """Labels of 50 rows, one of which is ``value``."""
    names = np.array(["a", "b"] * 25, dtype=object)
    names[3] = value
    return names


NAN = np.where(np.arange(50) == 3, np.nan, np.arange(50.0))


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (NAN, np.arange(50), {}, DataError, "row 3 of x contains NaN"),
        (np.arange(50), NAN, {}, DataError, "row 3 of y contains NaN"),
        (np.arange(50), np.ones(50), {}, DataError, "y is constant"),
        (np.zeros(50), np.arange(50), {"discrete": "x"}, DataError, "x is constant"),
        (np.arange(50), np.arange(49), {}, DataError, "50 rows and y 49"),
        (np.arange(5), np.arange(5), {}, DataError, "5 rows are too few"),
        (np.arange(10), np.arange(10), {"subsamples": 5}, DataError, "10 rows are too few"),
        (np.ones((2, 3, 4)), np.arange(2), {}, DataError, "shape"),
        (np.array(list("abcdefgh")), np.arange(8), {}, DataError, "discrete="),
        (labels_with(None), np.arange(50), {"discrete": "x"}, DataError, "row 3 of x"),
        (labels_with(np.nan), np.arange(50), {"discrete": "x"}, DataError, "row 3 of x"),
        (
            labels_with(np.datetime64("NaT")),
            np.arange(50),
            {"discrete": "x"},
            DataError,
            "row 3 of x",
        ),
        (labels_with([1]), np.arange(50), {"discrete": "x"}, DataError, "x"),
        (np.arange(50), ["a", [1, 2]], {}, DataError, "y"),
        (torch.eye(50).to_sparse(), np.arange(50), {}, DataError, "to_dense"),
        (np.arange(50), np.arange(50), {"neighbors": 2.5}, OptionError, "neighbors=2.5"),
        (np.arange(50), np.arange(50), {"neighbors": True}, OptionError, "neighbors=True"),
        (np.arange(50), np.arange(50), {"subsamples": 2.5}, OptionError, "subsamples=2.5"),
        (np.arange(50), np.arange(50), {"permutations": 2.5}, OptionError, "permutations=2.5"),
        (np.arange(50), np.arange(50), {"workers": 0}, OptionError, "workers=0"),
        (np.arange(50), np.arange(50), {"workers": -3}, OptionError, "workers=-3"),
        (np.arange(50), np.arange(50), {"workers": 1.5}, OptionError, "workers=1.5"),
        (np.arange(50), np.arange(50), {"neighbors": 0}, OptionError, "neighbors=0"),
        (np.arange(50), np.arange(50), {"form": "psi"}, OptionError, "form='psi'"),
        (np.arange(50), np.arange(50), {"discrete": "z"}, OptionError, "discrete='z'"),
        (np.arange(50), np.arange(50), {"subsamples": 1}, OptionError, "subsamples=1"),
        (np.arange(50), np.arange(50), {"permutations": -1}, OptionError, "permutations=-1"),
    ],
)
def test_bad_input(x, y, options, error, message):
    with pytest.raises(error, match=message):
        mutual_information(x, y, **options)
