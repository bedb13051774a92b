"""Families given by formulas: vector rows, frozen arguments, blocks, splits, refusals."""

from typing import NamedTuple

import pytest
import torch
from pyro import distributions as dist
from torch.distributions import constraints

from pyro_mixtures.distributions import DiagonalNormals, GatheredComponents
from pyro_mixtures.distributions import gathered_components as module
from pyro_mixtures.errors import ClosedFormError, DataError
from pyro_mixtures.testing import NormalConformance

F64 = torch.float64


class Moments(NamedTuple):
    count: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor


class PlainNormals(GatheredComponents):
    """Diagonal normals by formulas."""

    argument_names = ("loc", "scale")
    arg_constraints = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True
    min_rows = 2
    freezable = ("loc",)

    def __init__(self, loc, scale, *, validate_args=None):
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def log_density(self, value, loc, scale):
        return dist.Normal(loc, scale, validate_args=False).log_prob(value).sum(-1)

    def draw(self, loc, scale):
        return loc + scale * torch.randn_like(loc)

    def expectation(self, loc, scale):
        return loc

    def row_statistics(self, value, loc, scale):
        return Moments(torch.ones_like(value[..., :1]), value, value.square())

    def best_arguments(self, statistics, loc=None):
        mean, square = (total / statistics.count for total in statistics[1:])
        loc = mean if loc is None else loc
        return {"loc": loc, "scale": (square - 2 * loc * mean + loc.square()).sqrt()}


class TestPlainNormals(NormalConformance):
    family = PlainNormals

    def arguments(self, components, lead=()):
        loc = torch.randn(*lead, components, 3, dtype=F64)
        return {"loc": loc, "scale": 0.5 + torch.rand_like(loc)}

    def oracle(self, loc, scale):
        return dist.Normal(loc, scale).to_event(1)

    def maximizer(self, x, q, loc, scale):
        loc = (q @ x) / q.sum()
        return loc, ((q @ (x - loc) ** 2) / q.sum()).sqrt()


def statistics_of(family, rows=40):
    z, q = torch.arange(2 * rows).reshape(2, rows) % 3, torch.rand(2, rows, dtype=F64)
    x = torch.randn(rows, 2, dtype=F64)
    return family[z].statistics(x, q), family[z], x, q


@pytest.fixture
def plain():
    return PlainNormals(torch.randn(3, 2, dtype=F64), torch.rand(3, 2, dtype=F64) + 0.5)


@pytest.mark.parametrize("free", [{"loc", "scale"}, {"scale"}])
def test_maximizers_are_those_of_the_fast_family(plain, free):
    fast = DiagonalNormals(plain.loc, plain.scale)
    sums, selected, x, q = statistics_of(plain)
    new = plain.maximize(sums, frozenset(free))
    fast_sums = fast[selected.z].statistics(x, q)
    expected = fast.maximize(fast_sums, frozenset(free))
    assert new.keys() == free
    for name in free:
        torch.testing.assert_close(new[name], expected[name])


def test_a_frozen_argument_that_the_maximizer_cannot_hold_is_refused(plain):
    sums, *_ = statistics_of(plain)
    with pytest.raises(ClosedFormError, match="scale is frozen: freeze all of them or none"):
        plain.maximize(sums, frozenset({"loc"}))


def test_a_shared_argument_has_no_closed_form():
    shared = PlainNormals(torch.randn(3, 2, dtype=F64), torch.ones(2, dtype=F64))
    sums, *_ = statistics_of(shared)
    with pytest.raises(ClosedFormError, match="components share scale"):
        shared.maximize(sums, frozenset({"loc", "scale"}))


def test_statistics_do_not_depend_on_the_size_of_blocks(plain, monkeypatch):
    sums, selected, x, q = statistics_of(plain)
    monkeypatch.setattr(module, "_NUMBERS", 50)
    for block, whole in zip(selected.statistics(x, q), sums, strict=True):
        torch.testing.assert_close(block, whole)


def test_a_split_goes_halfway_to_the_row(plain):
    row = torch.tensor([5.0, -1.0], dtype=F64)
    split = plain.split(1, row, None)
    torch.testing.assert_close(split["loc"], (plain.loc[1] + row) / 2)
    torch.testing.assert_close(split["scale"], plain.scale[1] / 2)
    assert plain.split(1, None, None) == {}


def test_wide_rows_are_refused():
    narrow = PlainNormals(torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(DataError, match=r"cast one"):
        narrow[torch.tensor([0])].log_prob(torch.zeros(1, 2, dtype=F64))
