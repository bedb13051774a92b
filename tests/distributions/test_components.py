"""Selection of components, and the dtypes, shapes and arguments that families refuse."""

import pytest
import torch
from pyro import distributions as dist

from pyro_mixtures.distributions import (
    Categoricals,
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
    UnitNormals,
)
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError

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


def test_arguments_of_each_component_are_told_from_tied_ones():
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


@pytest.mark.parametrize("family", [Categoricals(torch.full((2, 3), 1 / 3)), UnitNormals(ONES)])
def test_an_optional_capability_that_is_missing_raises_a_typed_error(family):
    index, rows = torch.tensor([0]), torch.zeros(1, 2)
    for call in (
        lambda: family.signal_at(index, rows, None),
        lambda: family.marginal(torch.tensor([0])),
        lambda: family.conditional_mean_at(index, rows, torch.tensor([0])),
    ):
        with pytest.raises(ClosedFormError, match=r"use IsotropicNormals, .* or FactorAnalyzers"):
            call()


def test_a_family_without_leave_one_out_gains_says_so():
    family = Categoricals(torch.full((2, 3), 1 / 3))
    with pytest.raises(
        ClosedFormError, match="Categoricals does not implement leave-one-out gains"
    ):
        family.leave_one_out_at(None, torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ClosedFormError, match="use score='loss'"):
        family.alone_at(torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ClosedFormError, match="split_loc"):
        family.split_loc(0, torch.tensor([0.0]))


def test_arguments_are_validated_once_until_they_change():
    loc, scale = torch.zeros(2, 1), torch.ones(2, 1)
    DiagonalNormals(loc, scale, validate_args=True)
    DiagonalNormals(loc, scale, validate_args=True)
    scale[0] = -1.0
    with pytest.raises(ValueError, match="scale"):
        DiagonalNormals(loc, scale, validate_args=True)
    with pytest.raises(ValueError, match="scale"):
        DiagonalNormals(loc, scale.clone(), validate_args=True)
    assert vars(loc) == vars(scale) == {}
