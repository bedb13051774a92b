"""Arguments of normal families that components or features share."""

import pytest
import torch
from pyro import distributions as dist

from pyro_mixtures.distributions import (
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
)
from pyro_mixtures.errors import ClosedFormError

F64 = torch.float64
ONES = torch.ones(3, 2, dtype=F64)


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
