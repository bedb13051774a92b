"""Hypercontractivity of finite tables: closed forms, brute force over a grid, invariances."""

import math

import pytest
import torch

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.information import hypercontractivity_of_table, tables


def table(rows):
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def random_table(a, b, seed, concentration):
    g = torch.Generator().manual_seed(seed)
    return torch._sample_dirichlet(
        torch.full((1, a * b), concentration, dtype=torch.float64), g
    ).view(a, b)


def over_a_grid(joint, points):
    """The definition of the supremum, over a grid of the simplex and of small balls around p."""
    p = joint / joint.sum()
    p_x, p_y = p.sum(1), p.sum(0)
    a = len(p)
    axes = torch.cartesian_prod(*[torch.arange(points + 1)] * (a - 1)).view(-1, a - 1)
    axes = axes[axes.sum(1) <= points]
    grid = torch.cat([axes, points - axes.sum(1, keepdim=True)], 1).double() / points
    r = torch.cat([grid, p_x + 1e-2 * (grid - p_x), p_x + 1e-1 * (grid - p_x)])
    input_divergence = torch.special.xlogy(r, r / p_x).sum(1)
    output_divergence = torch.special.xlogy(
        r @ (p / p_x[:, None]), r @ (p / p_x[:, None]) / p_y
    ).sum(1)
    return float((output_divergence / input_divergence)[input_divergence > 1e-9].max())


@pytest.mark.meta
@pytest.mark.parametrize("flip", [0.05, 0.1, 0.3])
def test_binary_symmetric_channel(flip):
    joint = table([[1 - flip, flip], [flip, 1 - flip]])
    assert hypercontractivity_of_table(joint) == pytest.approx((1 - 2 * flip) ** 2, abs=1e-6)


@pytest.mark.meta
@pytest.mark.parametrize("erased", [0.05, 0.3, 0.9])
def test_binary_erasure_channel(erased):
    joint = table([[1 - erased, erased, 0.0], [0.0, erased, 1 - erased]])
    assert hypercontractivity_of_table(joint) == pytest.approx(1 - erased, abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("shape", "points"), [((2, 2), 20_000), ((2, 3), 20_000), ((3, 2), 300), ((3, 3), 300)]
)
def test_random_tables_against_a_grid(shape, points, seed):
    joint = random_table(*shape, seed, 0.5 if seed % 2 else 0.2)
    exact, on_grid = hypercontractivity_of_table(joint), over_a_grid(joint, points)
    assert on_grid <= exact + 2e-5
    assert exact == pytest.approx(on_grid, abs=3e-4 if points == 300 else 1e-4)


def test_more_effort_finds_no_more():
    for seed in range(2):
        joint = random_table(8, 6, seed, 0.3)
        more = hypercontractivity_of_table(joint, steps=600, starts=20)
        assert hypercontractivity_of_table(joint) == pytest.approx(more, abs=5e-5)


def test_arrays_and_lists():
    joint = random_table(3, 4, 0, 0.5)
    assert hypercontractivity_of_table(joint.numpy()) == hypercontractivity_of_table(joint)
    assert hypercontractivity_of_table([[3, 1], [0, 2]]) == hypercontractivity_of_table(
        table([[3, 1], [0, 2]])
    )


def test_wide_tables_start_from_their_best_symbols(monkeypatch):
    """The supremum, here at one rare symbol of many, is found without a start at each symbol."""
    joint = random_table(150, 5, 0, 0.5)
    joint[77] = 1e-5 * torch.eye(5, dtype=torch.float64)[3]
    started = []

    def record_starts(p, r, ratio):
        started.append(r.shape[1])
        return r, ratio

    monkeypatch.setattr(tables, "_ascend", record_starts)
    coefficient = hypercontractivity_of_table(joint, steps=1)
    assert started[0] < 300
    p = joint / joint.sum()
    at_the_vertex = -math.log(p.sum(0)[3]) / -math.log(p.sum(1)[77])
    assert coefficient >= at_the_vertex - 1e-9


def test_independent_identical_and_constant_variables():
    independent = table([0.2, 0.3, 0.5])[:, None] * table([0.6, 0.4])
    assert hypercontractivity_of_table(independent) == pytest.approx(0, abs=1e-9)
    assert hypercontractivity_of_table(torch.eye(3, dtype=torch.float64)) == pytest.approx(
        1, abs=1e-9
    )
    assert hypercontractivity_of_table(table([[0.4, 0.6]])) == 0.0


def test_does_not_depend_on_empty_symbols_or_scale():
    joint = random_table(3, 3, 0, 0.5)
    padded = torch.zeros(5, 4, dtype=torch.float64)
    padded[1:4, :3] = 37 * joint
    assert hypercontractivity_of_table(padded) == pytest.approx(
        hypercontractivity_of_table(joint), abs=1e-6
    )
    assert hypercontractivity_of_table(joint.float()) == pytest.approx(
        hypercontractivity_of_table(joint), abs=1e-5
    )


def test_data_processing_inequality():
    """Merging symbols of Y does not increase the coefficient."""
    joint = random_table(4, 4, 1, 0.4)
    merged = torch.cat([joint[:, :1] + joint[:, 1:2], joint[:, 2:]], 1)
    assert hypercontractivity_of_table(merged) <= hypercontractivity_of_table(joint) + 1e-9


def test_can_exceed_the_squared_maximal_correlation():
    joint = table([[0.009, 0.001], [0.099, 0.891]])
    p = joint / (joint.sum(1, keepdim=True) * joint.sum(0)).sqrt()
    assert hypercontractivity_of_table(joint) > 2 * float(torch.linalg.svdvals(p)[1]) ** 2


@pytest.mark.parametrize(
    ("joint", "message"),
    [
        (torch.ones(3), "not \\(3,\\)"),
        (torch.zeros(2, 2), "not all zero"),
        (torch.tensor([[1.0, -1.0]]), "not negative"),
        (torch.tensor([[1.0, math.nan]]), "finite"),
        ([["a", "b"]], "real numbers"),
        (torch.eye(2).to(torch.complex64), "complex"),
    ],
)
def test_bad_tables(joint, message):
    with pytest.raises(DataError, match=message):
        hypercontractivity_of_table(joint)


def test_bad_options():
    with pytest.raises(OptionError, match="steps=0"):
        hypercontractivity_of_table(torch.eye(2), steps=0)
    with pytest.raises(OptionError, match=r"starts=2\.5"):
        hypercontractivity_of_table(torch.eye(2), starts=2.5)
