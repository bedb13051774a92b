"""What a row adds to its cluster, for families given by their means."""

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from pyro_mixtures.distributions import Bernoullis, Exponentials, Multinomials, Poissons
from pyro_mixtures.distributions.exponential.bregman import MeanStatistics
from tests.distributions.mean_families import CASES, FEATURES, Case

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=list(CASES))
def case(request) -> Case:
    return CASES[request.param]


def minimal_loss(case: Case, x: Tensor) -> float:
    """The minimal loss f of a cluster, by a refit without a floor."""
    if not len(x):
        return 0.0
    family = case.build(1)
    z = torch.zeros(len(x), dtype=torch.int64)
    sums = family[z].statistics(x, torch.ones(len(x), dtype=torch.float64))
    floor = torch.zeros(FEATURES, dtype=torch.float64)
    fitted = case.at(family.maximize(sums, frozenset({"mean"}), floor=floor)["mean"])
    return -float(fitted[z].log_prob(x).sum().detach())


@pytest.mark.parametrize("seed", [1, 2])
def test_leave_one_out_gains_equal_refits(case, seed):
    x = case.draw(24, seed)
    # Among them are clusters of one, two and three rows, and one with a feature of a single row.
    labels = torch.tensor([0, 1, 1, 2, 2, 2] + [3, 4] * 9)
    if case.family in (Poissons, Bernoullis, Multinomials):
        x[labels == 4, 1] = 0.0
        x[7, 1] = 1.0
    family = case.build(5)
    sums = family[labels].statistics(x, torch.ones(24, dtype=torch.float64))
    gains = family.leave_one_out_at(sums, labels, x)
    for row, label in enumerate(labels.tolist()):
        others = labels == label
        whole = minimal_loss(case, x[others])
        others[row] = False
        assert float(gains[row].detach()) == pytest.approx(
            whole - minimal_loss(case, x[others]), rel=1e-8, abs=1e-8
        )
    all_components = torch.arange(5).unsqueeze(-1).expand(5, 24)
    alone = family.alone_at(all_components, x)
    expected = torch.tensor(
        [minimal_loss(case, x[n : n + 1]) for n in range(24)], dtype=torch.float64
    )
    torch.testing.assert_close(alone, expected.expand(5, 24), rtol=1e-8, atol=1e-8)


def test_gains_of_very_large_clusters_keep_their_digits():
    """Compare with 40 decimal digits: n phi(m) of 10^9 rows would leave six digits of float64."""
    mp.dps = 40
    n, mean, x = 10**9, 3.25, 7.0
    statistics = MeanStatistics(
        *(torch.tensor(v, dtype=torch.float64) for v in ([n], [[n * mean]]))
    )
    exact, without = mpf(mean), (n * mpf(mean) - mpf(x)) / (n - 1)
    row = torch.tensor([[x]], dtype=torch.float64)
    for family, phi, base in (
        (Poissons, lambda m: m * mp.log(m) - m, -mp.loggamma(x + 1)),
        (Exponentials, lambda m: -1 - mp.log(m), 0),
    ):
        expected = -n * phi(exact) + (n - 1) * phi(without) - base
        gain = family(row).leave_one_out_at(statistics, torch.tensor([0]), row)
        assert float(gain) == pytest.approx(float(expected), rel=1e-13)
