"""What the lazily selected families share: shapes they refuse, dtypes, numbering, tied arguments."""

import pytest
import torch
from pyro import distributions as dist

from pyro_mixtures.distributions import (
    Categoricals,
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
    MixtureWeights,
)
from pyro_mixtures.distributions.indexing import flat_index
from pyro_mixtures.distributions.statistics import (
    FactorStatistics,
    NormalStatistics,
    add,
    blend,
    scaled,
)
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError
from pyro_mixtures.ops import Moments, Pairs, pair_moments

F64 = torch.float64
ONES = torch.ones(3, 2, dtype=F64)


@pytest.mark.parametrize("z", [torch.tensor(1), torch.tensor([1])])
def test_one_component_is_selected_by_a_single_number(z):
    normals = DiagonalNormals(torch.randn(3, 2, dtype=F64), ONES)
    x = torch.randn(2, dtype=F64)
    expected = dist.Normal(normals.loc[z], ONES[z]).to_event(1)
    assert normals[z].batch_shape == z.shape
    torch.testing.assert_close(normals[z].log_prob(x), expected.log_prob(x))
    assert normals[z].sample().shape == (*z.shape, 2)


def test_a_single_component_is_a_mixture_of_one():
    normals = IsotropicNormals(torch.zeros(1, 2), torch.ones(1))
    torch.testing.assert_close(
        normals[torch.zeros(4, dtype=torch.int64)].log_prob(torch.zeros(4, 2)).exp(),
        torch.full((4,), 0.15915494),
    )


def test_no_rows_give_no_densities():
    assert DiagonalNormals(ONES, ONES)[torch.zeros(0, dtype=torch.int64)].log_prob(
        ONES[:0]
    ).shape == (0,)


def axis_aligned(loc, scale):
    return dist.Normal(loc.expand(3, 2), scale.expand(3, 2)).to_event(1)


def full(loc, scale_tril):
    return dist.MultivariateNormal(loc, scale_tril=scale_tril.expand(3, 2, 2))


def low_rank(loc, factor, noise):
    covariance = (factor @ factor.mT).expand(3, 2, 2) + noise.expand(3, 2).diag_embed()
    return dist.MultivariateNormal(loc, covariance)


TIED = [
    (IsotropicNormals, axis_aligned, [(3, 2), ()]),
    (IsotropicNormals, lambda loc, scale: axis_aligned(loc, scale.unsqueeze(-1)), [(2,), (3,)]),
    (DiagonalNormals, axis_aligned, [(3, 2), (2,)]),
    (DiagonalNormals, axis_aligned, [(3, 2), (3, 1)]),
    (DiagonalNormals, axis_aligned, [(2,), (3, 2)]),
    (FullNormals, full, [(3, 2), (2, 2)]),
    (FullNormals, full, [(2,), (3, 2, 2)]),
    (FactorAnalyzers, low_rank, [(3, 2), (3, 2, 1), (2,)]),
    (FactorAnalyzers, low_rank, [(3, 2), (3, 2, 1), (1,)]),
    (FactorAnalyzers, low_rank, [(3, 2), (3, 2, 1), (3, 1)]),
    (FactorAnalyzers, low_rank, [(3, 2), (2, 1), (2,)]),
    (FactorAnalyzers, low_rank, [(3, 2), (3, 2, 0), (3, 2)]),  # no factors at all
]


@pytest.mark.parametrize(
    ("family", "oracle", "shapes"), TIED, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_shared_arguments_have_the_density_and_gradient_of_the_oracle(family, oracle, shapes):
    args = [0.5 + torch.rand(shape, dtype=F64) for shape in shapes]
    if family is FullNormals:
        args[1] = args[1].tril()
    mine, theirs = ([arg.clone().requires_grad_() for arg in args] for _ in range(2))
    x, z = torch.randn(6, 2, dtype=F64), torch.randint(3, (4, 6))
    expected = oracle(*theirs).log_prob(x.unsqueeze(1)).gather(1, z.T).T
    normals = family(*mine)
    assert normals.batch_shape == (3,)
    found = normals[z].log_prob(x)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    for left, right in zip(mine, theirs, strict=True):
        if left.numel():
            torch.testing.assert_close(left.grad, right.grad)


def test_own_and_tied_arguments_are_told_apart():
    assert DiagonalNormals(ONES, ONES).is_per_component("scale")
    assert not DiagonalNormals(ONES, ONES[0]).is_per_component("scale")
    assert not IsotropicNormals(ONES, torch.tensor(1.0)).is_per_component("scale")
    assert FactorAnalyzers(ONES, ONES.unsqueeze(-1), ONES[:, :1]).is_per_component("noise")
    assert not FullNormals(ONES, torch.eye(2, dtype=F64)).is_per_component("scale_tril")


def test_narrow_rows_are_widened_and_wide_rows_refused():
    double = DiagonalNormals(ONES, ONES)[torch.tensor([0])]
    assert double.log_prob(torch.zeros(1, 2)).dtype == F64
    single = DiagonalNormals(ONES.float(), ONES.float())[torch.tensor([0])]
    with pytest.raises(DataError, match=r"rows are torch.float64 but the parameters torch.float32"):
        single.log_prob(torch.zeros(1, 2, dtype=F64))


def test_rows_of_the_wrong_width_are_refused():
    with pytest.raises(DataError, match=r"rows of shape \(5, 3\)"):
        DiagonalNormals(ONES, ONES)[torch.tensor([0])].log_prob(torch.zeros(5, 3, dtype=F64))


def test_components_are_selected_by_integers():
    with pytest.raises(DataError, match="by integers"):
        DiagonalNormals(ONES, ONES)[torch.tensor([0.0])]


@pytest.mark.parametrize(
    "build",
    [
        lambda: DiagonalNormals(ONES, torch.ones(3, 4, dtype=F64)),
        lambda: DiagonalNormals(torch.tensor(1.0), torch.tensor(1.0)),
        lambda: FullNormals(ONES, torch.eye(3, dtype=F64)),
        lambda: FactorAnalyzers(ONES, torch.ones(3, 4, 1, dtype=F64), ONES),
        lambda: FactorAnalyzers(ONES, ONES.unsqueeze(-1), torch.tensor(1.0, dtype=F64)),
        lambda: DiagonalNormals(ONES.long(), ONES),
        lambda: IsotropicNormals(ONES.half(), ONES[:, 0].half()),
    ],
)
def test_arguments_that_do_not_fit_are_refused(build):
    with pytest.raises(OptionError):
        build()


def test_shared_means_and_loadings_have_no_closed_form():
    x, z, q = torch.randn(9, 2, dtype=F64), torch.randint(3, (9,)), torch.ones(9, dtype=F64)
    normals = DiagonalNormals(ONES[0], ONES)
    with pytest.raises(ClosedFormError, match="loc of shape"):
        normals.maximize(normals[z].statistics(x, q), frozenset(["loc"]), floor=None)
    analyzers = FactorAnalyzers(ONES, ONES[:2, :1], ONES)
    with pytest.raises(ClosedFormError, match=r"factor .* is shared by components"):
        analyzers.maximize(
            analyzers.finish(analyzers[z].statistics(x, q)), frozenset(["factor"]), floor=None
        )


def test_flat_index_numbers_batches_and_leaves_padding():
    z = torch.tensor([0, 2, -1])
    assert flat_index(z, torch.Size(), 3) is z
    assert flat_index(z, torch.Size([1]), 3) is z
    assert flat_index(z, torch.Size([2, 1]), 3).tolist() == [[0, 2, -1], [3, 5, -1]]
    assert flat_index(z[0], torch.Size([1, 1]), 3).tolist() == [[0]]


# Statistics add up.


def statistics_about(center, x, q, z):
    """NormalStatistics with outer products, about any center."""
    eye = torch.eye(2, dtype=F64).expand(3, 2, 2)
    moments = pair_moments(x, center, eye, q.reshape(-1), Pairs(z.reshape(-1, len(x)), 3))
    assert isinstance(moments, Moments)
    return NormalStatistics(center, *moments)


def assert_equal(mine, theirs):
    for left, right in zip(mine, theirs, strict=True):
        torch.testing.assert_close(left, right)


@pytest.fixture
def rows():
    return torch.randn(20, 2, dtype=F64), torch.rand(20, dtype=F64), torch.randint(3, (20,))


def test_recentered_statistics_are_those_about_the_new_center(rows):
    old, new = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    assert_equal(statistics_about(old, *rows).recentered(new), statistics_about(new, *rows))


def test_recentered_factor_statistics_are_those_about_the_new_center(rows):
    x, q, z = rows
    old, new = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    f = torch.randn(20, 1, dtype=F64)  # any factors: here they do not depend on the center

    def about(center):
        s = statistics_about(center, x, q, z)
        hot = torch.nn.functional.one_hot(z, 3) * q.unsqueeze(-1)
        away = x - center[z]
        sums = [
            torch.einsum(e, hot, *t)
            for e, t in (
                ("nc,nh->ch", [f]),
                ("nc,nh,ng->chg", [f, f]),
                ("nc,nh,nd->chd", [f, away]),
            )
        ]
        return FactorStatistics(center, s.count, s.first, s.second, *sums)

    assert_equal(about(old).recentered(new), about(new))


def test_statistics_add_over_disjoint_rows_and_blend_about_the_new_center(rows):
    x, q, z = rows
    old, new = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    whole = statistics_about(new, x, q, z)
    parts = [statistics_about(new, x[part], q[part], z[part]) for part in torch.arange(20).split(7)]
    assert_equal(add(add(parts[0], parts[1]), parts[2]), whole)
    assert_equal(scaled(whole, 2.0), statistics_about(new, x, 2 * q, z))
    mixed = blend(statistics_about(old, x, q, z), statistics_about(new, x, 3 * q, z), 0.25)
    assert_equal(mixed, statistics_about(new, x, 1.5 * q, z))


def test_weights_and_labels_blend_without_a_center():
    counts = MixtureWeights(torch.full((2,), 0.5)).statistics(
        torch.tensor([0, 0, 1]), torch.ones(3)
    )
    assert blend(counts, scaled(counts, 3.0), 0.5).counts.tolist() == [4.0, 2.0]
    labels = Categoricals(torch.full((2, 2), 0.5))[torch.tensor([0, 1])].statistics(
        torch.tensor([1, 0]), torch.ones(2)
    )
    assert blend(labels, labels, 0.5).counts.tolist() == [[0.0, 1.0], [1.0, 0.0]]
