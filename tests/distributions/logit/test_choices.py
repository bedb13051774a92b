"""Multinomial logits: densities by brute force, Newton's M-step against scipy, errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.autograd import gradcheck, gradgradcheck

from pyro_mixtures.distributions.logit.choices import ChoiceLogits
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, OptionError
from pyro_mixtures.ops import choices as choice_ops
from pyro_mixtures.ops import tiles
from pyro_mixtures.testing import TOLERANCE, assert_near

pytestmark = pytest.mark.usefixtures("on_one_thread")

B, T, J, L, C = 20, 3, 4, 2, 3
THETA = frozenset({"theta"})


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request) -> torch.dtype:
    return request.param


def problem(rows=B, situations=T, components=C, dtype=torch.float64, seed=0):
    """Attributes (NaN where not available), availability, choices (some padded), coefficients."""
    with torch.device("cpu"):
        g = torch.Generator().manual_seed(seed)
        design = torch.randn(rows, situations, J, L, generator=g, dtype=torch.float64)
        available = torch.rand(rows, situations, J, generator=g) < 0.7
        theta = torch.randn(components, L, generator=g, dtype=torch.float64)
        noisy = torch.rand(rows, situations, J, generator=g).log().where(available, -torch.inf)
        padded = (torch.rand(rows, situations, generator=g) < 0.2) | ~available.any(-1)
        chosen = noisy.argmax(-1).masked_fill(padded, -1)
        design = design.masked_fill(~available.unsqueeze(-1), torch.nan)
    return design.to(dtype), available, chosen, theta.to(dtype)


def brute(design, available, chosen, theta, ridge=0.0):
    """Log probabilities (C, B) by loops."""
    rows = []
    for coefficients in theta:
        for x, a, y in zip(design, available, chosen, strict=True):
            total = -ridge * coefficients.square().sum()
            for t in (y >= 0).nonzero()[:, 0].tolist():
                utility = torch.stack(
                    [x[t, j] @ coefficients for j in a[t].nonzero()[:, 0].tolist()]
                )
                total = total + x[t, y[t]] @ coefficients - utility.logsumexp(0)
            rows.append(total)
    return torch.stack(rows).reshape(len(theta), len(design))


@pytest.fixture(params=["one block", "many blocks"])
def several_blocks(request, monkeypatch):
    if request.param == "many blocks":
        monkeypatch.setattr(choice_ops, "_BLOCK_ELEMENTS", C * T * J * L * 6)
        monkeypatch.setattr(tiles, "_TILE_ELEMENTS", 32 * T * J * L)


@pytest.mark.meta
@pytest.mark.parametrize("shape", ["rows", "candidates", "all components", "padded"])
def test_log_prob_and_gradients_equal_brute_force(dtype, shape, several_blocks):
    design, available, chosen, theta = problem(dtype=dtype)
    mine = [design.clone().requires_grad_(), theta.clone().requires_grad_()]
    theirs = [design.double().requires_grad_(), theta.double().requires_grad_()]
    z = torch.randint(C, (4, B), generator=torch.Generator("cpu").manual_seed(2), device="cpu")
    if shape == "padded":
        z[1, ::3], z[3] = -1, -1
    z = {"rows": z[0], "all components": torch.arange(C, device="cpu").unsqueeze(-1)}.get(shape, z)
    full = z.expand(*z.shape[:-1], B)
    expected = brute(theirs[0], available, chosen, theirs[1], 0.1).gather(
        0, full.clamp_min(0).reshape(-1, B)
    )
    expected = torch.where(full < 0, -torch.inf, expected.reshape(full.shape))

    actual = ChoiceLogits(mine[0], available, mine[1], ridge=0.1)[z].log_prob(chosen)
    assert actual.dtype == dtype
    assert_near(actual, expected, TOLERANCE[dtype])

    slope = torch.randn(full.shape, dtype=torch.float64, device="cpu")
    (slope * expected)[full >= 0].sum().backward()
    (slope.to(dtype) * actual)[full >= 0].sum().backward()
    for ours, reference in zip(mine, theirs, strict=True):
        assert ours.grad.isfinite().all()
        assert_near(ours.grad, reference.grad, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("all_components", [True, False])
def test_derivatives_are_right_to_second_order(all_components):
    design, available, chosen, theta = problem(4, 2)
    design = design.nan_to_num()
    z = torch.arange(C).unsqueeze(-1) if all_components else torch.tensor([0, 2, 2, 1])
    given = design.requires_grad_(), theta.requires_grad_()

    def log_prob(x, theta):
        return ChoiceLogits(x, available, theta)[z].log_prob(chosen)

    assert gradcheck(log_prob, given)
    assert gradgradcheck(log_prob, given)


def test_panel_is_the_sum_of_its_situations():
    design, available, chosen, theta = problem()
    z = torch.arange(B) % C
    whole = ChoiceLogits(design, available, theta)[z].log_prob(chosen)
    each = ChoiceLogits(
        design.flatten(0, 1).unsqueeze(1), available.flatten(0, 1).unsqueeze(1), theta
    )
    parts = each[z.repeat_interleave(T)].log_prob(chosen.reshape(-1, 1))
    assert_near(whole, parts.reshape(B, T).sum(-1), 1e-12)


def test_row_of_padding_alone_has_probability_one():
    design, available, _, theta = problem()
    found = ChoiceLogits(design, available, theta)[torch.zeros(B).long()].log_prob(
        torch.full((B, T), -1)
    )
    assert torch.equal(found, torch.zeros(B).double())


def test_missing_attribute_of_an_available_alternative_spoils_its_own_row_alone():
    design, available, chosen, theta = problem()
    clean = design.clone()
    design[5, 0, available[5, 0].nonzero()[0, 0]] = torch.nan
    theta.requires_grad_()
    z = torch.zeros(B).long()
    found = ChoiceLogits(design, available, theta)[z].log_prob(chosen)
    expected = ChoiceLogits(clean, available, theta)[z].log_prob(chosen)
    others = torch.arange(B) != 5
    assert found[5].isnan()
    assert torch.equal(found[others], expected[others])
    slopes = [
        torch.autograd.grad(log_prob[others].sum(), theta)[0] for log_prob in (found, expected)
    ]
    assert torch.equal(*slopes)


def test_draws_have_the_choice_probabilities():
    design, available, _, theta = problem(6)
    available[2, 1] = False
    family, z = ChoiceLogits(design, available, theta), torch.tensor([0, 1, 2, 0, 1, 2])
    probs = family.probabilities_at(z)
    draws = family[z].sample((4000,))
    assert draws.shape == (4000, 6, T)
    assert (draws[:, 2, 1] == -1).all()
    some = available.any(-1)
    assert torch.equal(draws[0] >= 0, some)
    assert_near(probs.sum(-1), some.double(), 1e-12)
    shares = torch.stack([(draws == j).double().mean(0) for j in range(J)], -1)
    assert ((shares - probs).abs() / (probs * (1 - probs) / 4000).sqrt().clamp_min(1e-9)).max() < 5
    for j in range(J):
        y = torch.where(available[..., j], j, -1)
        log_prob = torch.where(available[..., j], probs[..., j], 1.0).log().sum(-1)
        assert_near(family[z].log_prob(y), log_prob, 1e-10)


def fitted(family, index, chosen, q):
    return family.with_arguments(
        family.maximize(family.statistics_at(index, chosen, q), THETA, floor=None)
    )


@pytest.mark.meta
@pytest.mark.parametrize("all_components", [True, False])
def test_maximum_of_each_component_is_that_of_scipy(dtype, all_components, several_blocks):
    design, available, chosen, theta = problem(60, dtype=dtype)
    index = torch.arange(C, device="cpu").unsqueeze(-1).expand(C, 60)
    q = torch.rand(C, 60, generator=torch.Generator("cpu").manual_seed(1), device="cpu").to(dtype)
    if not all_components:
        index, q = torch.where(q > 0.3, index, -1), torch.where(q > 0.3, q, 0.0)
    new = fitted(ChoiceLogits(design, available, theta, ridge=0.01), index, chosen, q)
    assert new.theta.dtype == dtype
    x = torch.nan_to_num(design.double())
    for c in range(C):

        def loss(numbers, c=c):
            at = torch.tensor(numbers, dtype=torch.float64, device="cpu").requires_grad_()
            utility = (x @ at).masked_fill(~available, -torch.inf)
            each = utility.gather(-1, chosen.clamp_min(0).unsqueeze(-1)).squeeze(
                -1
            ) - utility.logsumexp(-1)
            total = torch.where(chosen >= 0, each, 0.0).sum(-1) - 0.01 * at.square().sum()
            value = -(q[c].double() * total).sum()
            value.backward()
            return value.item(), at.grad.numpy()

        peer = minimize(loss, np.zeros(L), jac=True, options={"gtol": 1e-9})
        assert_near(new.theta[c], torch.tensor(peer.x, device="cpu"), 1e-6)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 12),
    start=st.sampled_from([0.0, 1.0, 1e3, 1e6]),
    ridge=st.sampled_from([0.0, 1e-3, 1.0]),
    twin=st.booleans(),
)
def test_maximum_is_never_worse_and_stays_finite(seed, rows, start, ridge, twin):
    """Few choosers, certain choices, collinear attributes, and starts without curvature."""
    design, available, chosen, theta = problem(rows, seed=seed)
    if twin:
        design = torch.cat([design, design[..., :1]], -1)
        theta = torch.cat([theta, theta[:, :1]], -1)
    family = ChoiceLogits(design, available, start * theta, ridge=ridge)
    index = torch.randint(C, (rows,))
    q = torch.rand(rows, dtype=torch.float64)
    new = fitted(family, index, chosen, q)
    before, after = (
        torch.zeros(C).double().index_add(0, index, q * f[index].log_prob(chosen))
        for f in (family, new)
    )
    assert new.theta.isfinite().all()
    assert (after >= before - 1e-9 * before.abs()).all()
    zero = torch.zeros_like(theta)
    assert (
        after
        >= torch.zeros(C)
        .double()
        .index_add(0, index, q * family.with_arguments({"theta": zero})[index].log_prob(chosen))
        - 1e-9
    ).all()


def test_attributes_that_cannot_be_told_apart_do_not_keep_the_maximum_from_being_found():
    design, available, chosen, theta = problem(60)
    index, q = torch.arange(60) % C, torch.ones(60).double()
    plain = fitted(ChoiceLogits(design, available, theta), index, chosen, q)
    twins = torch.cat([design, design[..., :1], torch.ones_like(design[..., :1])], -1)
    wide = fitted(ChoiceLogits(twins, available, torch.zeros(C, L + 2).double()), index, chosen, q)
    assert_near(wide[index].log_prob(chosen), plain[index].log_prob(chosen), 1e-6)
    assert_near(wide.theta[:, 0] + wide.theta[:, 2], plain.theta[:, 0], 1e-5)


def test_component_without_choosers_stays_as_it_is():
    design, available, chosen, theta = problem()
    new = fitted(
        ChoiceLogits(design, available, theta), torch.arange(B) % 2, chosen, torch.ones(B).double()
    )
    assert torch.equal(new.theta[2], theta[2])
    assert not torch.equal(new.theta[0], theta[0])


def test_statistics_of_batches_are_those_of_all_rows():
    design, available, chosen, theta = problem()
    index = torch.arange(3 * B).reshape(3, B) * 5 % (C + 1) - 1
    q = torch.rand(3, B, dtype=torch.float64)
    whole, sums = fitted(ChoiceLogits(design, available, theta), index, chosen, q), None
    for rows in torch.arange(B).split(9):
        batch = ChoiceLogits(design[rows], available[rows], theta)
        sums = batch[index[:, rows]].statistics(chosen[rows], q[:, rows], sums)
    assert_near(batch.maximize(sums, THETA, floor=None)["theta"], whole.theta, 1e-8)
    with pytest.raises(ClosedFormError, match="stepwise"):
        sums._fields  # noqa: B018


def test_frozen_coefficients_have_no_update():
    design, available, chosen, theta = problem()
    family = ChoiceLogits(design, available, theta)
    sums = family.statistics_at(torch.zeros(B).long(), chosen, torch.ones(B).double())
    assert family.maximize(sums, frozenset(), floor=None) == {}


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([[3]]), r"row 0 chose alternative 3 .* where \[0, 1\]"),
        (torch.tensor([[-2]]), "alternative -2"),
        (torch.tensor([[2]]), "alternative 2"),
        (torch.tensor([[0.0]]), "integers"),
        (torch.tensor([[0, 0]]), r"\(1, 2\)"),
    ],
)
def test_impossible_choices_are_refused(y, message):
    available = torch.tensor([[[True, True, False]]])
    with pytest.raises(DataError, match=message):
        ChoiceLogits(torch.zeros(1, 1, 3, 2), available, torch.zeros(2, 2)).log_prob_at(
            torch.zeros(1).long(), y
        )


def test_choice_where_nothing_is_available_is_refused():
    family = ChoiceLogits(
        torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, dtype=torch.bool), torch.zeros(2, 2)
    )
    with pytest.raises(DataError, match=r"where \[\] are available"):
        family[torch.tensor([0])].log_prob(torch.tensor([[0]]))


def test_impossible_arguments_are_refused():
    x, a = torch.zeros(2, 1, 3, 4), torch.ones(2, 1, 3, dtype=torch.bool)
    with pytest.raises(DataError, match=r"\(B, T, J, L\)"):
        ChoiceLogits(x[:, 0], a, torch.zeros(1, 4))
    with pytest.raises(DataError, match="bool per alternative"):
        ChoiceLogits(x, a.float(), torch.zeros(1, 4))
    with pytest.raises(OptionError, match="4 attributes"):
        ChoiceLogits(x, a, torch.zeros(1, 3))
    with pytest.raises(OptionError, match="ridge"):
        ChoiceLogits(x, a, torch.zeros(1, 4), ridge=-1.0)
    with pytest.raises(ValueError, match="theta"):
        ChoiceLogits(x, a, torch.full((1, 4), torch.nan), validate_args=True)
    with pytest.raises(DataError, match="float64"):
        ChoiceLogits(x.double(), a, torch.zeros(1, 4))[torch.zeros(2).long()].log_prob(
            torch.zeros(2, 1).long()
        )
    with pytest.raises(ModelError, match="probabilities_at"):
        ChoiceLogits(x, a, torch.zeros(1, 4))[torch.zeros(2).long()].mean  # noqa: B018


def test_shapes_are_those_of_a_pyro_distribution():
    design, available, chosen, theta = problem()
    selected = ChoiceLogits(design, available, theta)[torch.arange(2 * B).reshape(2, B) % C]
    assert (selected.batch_shape, selected.event_shape) == ((2, B), (T,))
    assert selected.expand((5, 2, B)).sample().shape == (5, 2, B, T)
    assert selected.support.check(chosen).all()
    assert not selected.support.check(chosen + J).any()


def test_coefficients_need_rows_enough_unless_they_are_penalized():
    x, a = torch.zeros(9, 1, 3, 5), torch.ones(9, 1, 3, dtype=torch.bool)
    assert ChoiceLogits(x, a, torch.zeros(2, 5)).min_rows == 3
    assert ChoiceLogits(x, a, torch.zeros(2, 5), ridge=0.1).min_rows == 1
