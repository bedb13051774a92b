"""Mixtures of linear SVMs classify new rows that no single SVM can separate."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

from pyro_mixtures.guides import HardPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models import MixtureOfSVMs
from tests.benchmarks.svm_mixture import COMPONENTS, DATA, linear, mixture, one_split, split_of

pytestmark = pytest.mark.usefixtures("on_one_thread")


def test_four_lines_solve_exclusive_or():
    split = split_of("xor", 0)  # 5% of the labels are flipped
    found = mixture(split, 0, input_density=0.5)
    assert linear(split, 1e-3) < 0.6
    assert found["softmax mixed"] > 0.9
    assert found["center"] > 0.9


def test_partition_with_locations_lowers_the_joint_objective():
    """The objective has two observed sites, the labels' loss and the covariates' distance."""
    x, y = make_moons(200, noise=0.2, random_state=0)
    rows, labels = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)
    model = MixtureOfSVMs(components=COMPONENTS, input_density=0.5, features=2)
    guide = HardPartition(model, components=COMPONENTS)
    em = EM(model, guide, empty="keep")
    guide.set_labels(torch.arange(200) % COMPONENTS)
    losses = torch.tensor([em.step(rows, labels) for _ in range(8)])[
        1:
    ]  # the first loss is that before any fit
    assert (losses.diff() <= 1e-4 * losses[0].abs()).all()
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_mixture_is_near_the_rbf_svm(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gates between clusters of few rows
        found = [one_split(name, seed) for seed in range(3)]
    mine, rbf, one = (
        np.mean([f[of] for f in found]) for of in ("joint, softmax mixed", "RBF SVM", "linear SVM")
    )
    assert mine > rbf - 0.025
    assert mine > one - 0.02
    if name in ("moons", "xor"):
        assert mine > one + 0.05
