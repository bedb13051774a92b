"""The line search: accepted steps decrease the loss enough, refused ones leave the point alone."""

import pytest
import torch

from pyro_mixtures.ops.optimize.line_search import backtrack, sufficient_decrease

F64 = torch.float64


def squares(trial, problems):
    return trial.square().sum(-1)


def test_each_problem_takes_its_longest_sufficient_step():
    point = torch.ones(4, 1, dtype=F64)
    step = torch.tensor([[-1.0], [-3.0], [-7.0], [1.0]], dtype=F64)  # the last one uphill
    slope = (2 * point * step).sum(-1)
    new_point, moved = backtrack(squares, point, step, slope, squares(point, None))
    assert moved.tolist() == [True, True, True, False]
    assert new_point.flatten().tolist() == [0.0, -0.5, -0.75, 1.0]
    assert (point == 1).all()  # arguments are not overwritten


def test_accepted_problems_are_not_evaluated_again():
    calls = []

    def losses(trial, problems):
        calls.append(problems.tolist())
        return squares(trial, problems)

    point = torch.ones(3, 1, dtype=F64)
    step = torch.tensor([[-3.0], [-1.0], [-7.0]], dtype=F64)
    backtrack(losses, point, step, (2 * point * step).sum(-1), squares(point, None))
    assert calls == [[0, 1, 2], [0, 2], [2]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_losses_that_overflow_are_refused(bad):
    def losses(trial, problems):
        loss = squares(trial, problems)
        return torch.where(trial[:, 0] < 0, bad, loss)

    point, step = torch.ones(1, 1, dtype=F64), torch.full((1, 1), -3.0, dtype=F64)
    new_point, moved = backtrack(losses, point, step, torch.tensor([-6.0]), torch.tensor([1.0]))
    assert moved.tolist() == [True]
    assert float(new_point) == 0.25


def test_the_shortest_step_limits_the_number_of_trials():
    calls = []

    def losses(trial, problems):
        calls.append(float(trial))
        return torch.full((len(trial),), 2.0)

    point, step = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    slope, loss = torch.tensor([-1.0]), torch.tensor([1.0])
    new_point, moved = backtrack(losses, point, step, slope, loss, shortest=0.25)
    assert calls == [1.0, 0.5]
    assert not moved
    assert float(new_point) == 0.0


def test_a_negligible_decrease_is_not_sufficient():
    loss, predicted = torch.ones(3, dtype=F64), torch.full((3,), -1.0, dtype=F64)
    trial_loss = torch.tensor([0.5, 1 - 1e-6, torch.nan], dtype=F64)
    assert sufficient_decrease(loss, trial_loss, predicted).tolist() == [True, False, False]
