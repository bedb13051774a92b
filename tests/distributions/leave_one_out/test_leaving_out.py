"""Leave-one-out gains of weighted rows: closed forms against refits without the row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_mixtures.distributions.exponential.exponential_families import (
    Bernoullis,
    Exponentials,
    Multinomials,
    Poissons,
)
from pyro_mixtures.distributions.leave_one_out.leaving_out import leaving
from pyro_mixtures.distributions.normal.unit_normals import (
    DirectionalNormals,
    KnownPrecisionNormals,
    UnitNormals,
)
from pyro_mixtures.distributions.regression.generalized_regressions import (
    LogisticRegressions,
    PoissonRegressions,
)
from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.distributions.regression.support_vectors import SupportVectorMachines

pytestmark = pytest.mark.usefixtures("on_one_thread")

D, C, N = 3, 3, 22
SPREAD = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.5]], dtype=torch.float64)
BOTH = frozenset({"weight", "bias"})
few = settings(max_examples=10, deadline=None, derandomize=True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        *shape,
        generator=torch.Generator("cpu").manual_seed(seed),
        dtype=torch.float64,
        device="cpu",
    )


def weights(rows: int, seed: int = 0) -> Tensor:
    """Weights from 0.01 to above one, one of them zero."""
    out = (1.5 * draw(rows, seed=seed + 50)).exp()
    return out.index_fill(0, torch.tensor([rows // 2], device="cpu"), 0.0) if rows > 4 else out


def labels_of(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randint(C, (rows,), generator=generator, device="cpu")


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def mean_of(x: Tensor, w: Tensor) -> Tensor:
    return (w.unsqueeze(-1) * x).sum(0) / w.sum()


# By family: components, a map from normal draws to rows, and the best mean of weighted rows.
MEANS = {
    "euclidean": (UnitNormals, lambda x: 5 + x, mean_of),
    "mahalanobis": (lambda m: KnownPrecisionNormals(m, SPREAD), lambda x: x, mean_of),
    "cosines": (DirectionalNormals, unit, lambda x, w: unit((w.unsqueeze(-1) * x).sum(0))),
    "poisson": (Poissons, torch.exp, mean_of),
    "bernoulli": (Bernoullis, torch.sigmoid, mean_of),
    "exponential": (Exponentials, torch.exp, mean_of),
    "multinomial": (Multinomials, torch.exp, lambda x, w: mean_of(x, w) / mean_of(x, w).sum()),
}


def without_each(least, index: Tensor) -> Tensor:
    """f(S) - f(S without i), by minimal losses ``least(rows, cluster)`` of clusters."""
    gains = []
    for i, c in enumerate(index.tolist()):
        cluster = index == c
        rest = cluster.clone()
        rest[i] = False
        gains.append(least(cluster, c) - least(rest, c))
    return torch.tensor(gains, dtype=torch.float64, device="cpu")


def check(found: Tensor, exact: Tensor, weight: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(found.detach(), exact, rtol=tolerance, atol=tolerance)
    assert (found[weight == 0] == 0).all()


@pytest.mark.meta
@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("rows", [N, 5])
def test_gains_of_weighted_rows_about_means(name, rows):
    build, support, best = MEANS[name]
    x, index, weight = support(draw(rows, D)), labels_of(rows), weights(rows)
    family = build(
        support(draw(C, D, seed=1)) if name != "multinomial" else support(draw(C, D)).softmax(-1)
    )

    def least(cluster: Tensor, c: int) -> float:
        cluster = cluster & (weight > 0)
        if not cluster.any():
            return 0.0
        fitted = build(best(x[cluster], weight[cluster]).unsqueeze(0))
        one = torch.zeros(int(cluster.sum()), dtype=torch.int64, device="cpu")
        return -float((weight[cluster] * fitted[one].log_prob(x[cluster])).sum())

    statistics = family.partition_statistics_at(index, x, weight)
    check(family.leave_one_out_at(statistics, index, x, weight), without_each(least, index), weight)


@pytest.mark.meta
@pytest.mark.parametrize("ridge", [0.0, 0.05, 3.0])
@pytest.mark.parametrize("outputs", [None, 2])
def test_gains_of_weighted_regressions(outputs, ridge):
    check_regressions(30, outputs, ridge, 7, 1e-8)


@few
@given(rows=st.integers(1, 14), ridge=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 99))
def test_gains_of_few_weighted_rows(rows, ridge, seed):
    """Fewer rows than coefficients, clusters of one row, clusters without rows."""
    check_regressions(rows, None, ridge, seed, 1e-6)


def check_regressions(
    rows: int, outputs: int | None, ridge: float, seed: int, tolerance: float
) -> None:
    x, index, weight = draw(rows, D, seed=seed), labels_of(rows, seed), weights(rows, seed)
    shape = (rows,) if outputs is None else (rows, outputs)
    y, event = draw(*shape, seed=seed + 1), shape[1:]
    scale = (0.3 * draw(C, *event, seed=2)).exp()
    family = LinearRegressions(x, draw(C, *event, D), draw(C, *event), scale, ridge=ridge)

    def least(cluster: Tensor, c: int) -> float:
        cluster = cluster & (weight > 0)
        n, sd = float(weight[cluster].sum()), scale[c].reshape(-1)
        constant = n * float((sd.log() + 0.5 * math.log(2 * math.pi)).sum())
        if not cluster.any():
            return 0.0
        a, b = (
            x[cluster] - mean_of(x[cluster], weight[cluster]),
            y[cluster].reshape(int(cluster.sum()), -1),
        )
        b, root = b - mean_of(b, weight[cluster]), weight[cluster].sqrt().unsqueeze(-1)
        a = torch.cat([root * a, math.sqrt(n * ridge) * torch.eye(D, dtype=x.dtype, device="cpu")])
        b = torch.cat([root * b, torch.zeros(D, b.shape[1], dtype=x.dtype, device="cpu")])
        left = b - a @ (torch.linalg.pinv(a, rtol=1e-11) @ b)
        return constant + 0.5 * float((left.square().sum(0) / sd.square()).sum())

    statistics = family.partition_statistics_at(index, y, weight)
    check(
        family.leave_one_out_at(statistics, index, y, weight),
        without_each(least, index),
        weight,
        tolerance,
    )


def test_rows_of_any_weight_share_one_basis_of_float32():
    """In float32, the gain of a row of small weight is close to its loss."""
    x, y = draw(40, D).float(), draw(40, seed=1).float()
    index, weight = (
        torch.zeros(40, dtype=torch.int64),
        torch.ones(40).index_fill(0, torch.tensor([7]), 1e-6),
    )
    family = LinearRegressions(x, torch.zeros(1, D), torch.zeros(1), torch.ones(1), ridge=0.1)
    statistics = family.partition_statistics_at(index, y, weight)
    family = family.with_arguments(
        {**family.maximize(statistics, BOTH, floor=None), "scale": family.scale}
    )
    gain = family.leave_one_out_at(statistics, index, y, weight)
    assert gain.dtype == torch.float32
    assert float(gain[7]) == pytest.approx(-1e-6 * float(family[index].log_prob(y)[7]), rel=1e-4)


def linear(kind: str, rows: int = 40):
    """A family of two components, outcomes, clusters and weights, by kind."""
    x, signal = (
        draw(rows, D, seed=3),
        draw(rows, D, seed=3) @ draw(D, seed=4) + 0.5 * draw(rows, seed=5),
    )
    y = (signal.exp() + 0.5).floor() if kind == "poisson" else (signal > 0).double()
    build = {
        "logistic": lambda rows, **own: LogisticRegressions(x[rows], **own, ridge=0.02),
        "poisson": lambda rows, **own: PoissonRegressions(x[rows], **own, ridge=0.02),
        "squared_hinge": lambda rows, **own: SupportVectorMachines(x[rows], **own, ridge=0.02),
        "hinge": lambda rows, **own: SupportVectorMachines(
            x[rows], **own, ridge=0.02, loss="hinge", solver="liblinear"
        ),
    }[kind]
    return build, y, (torch.arange(rows, device="cpu") >= 15).long()


def fitted(build, y: Tensor, index: Tensor, weight: Tensor, rows):
    zeros = torch.zeros(2, D + 1, dtype=torch.float64, device="cpu")
    family = build(rows, weight=zeros[:, :D], bias=zeros[:, D])
    statistics = family.statistics_at(index[rows], y[rows], weight[rows])
    return family.with_arguments(family.maximize(statistics, BOTH, floor=None)), statistics


def gains_and_refits(kind: str, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gains, gains by refits, and the weighted losses of rows."""
    build, y, index = linear(kind, len(weight))
    family, statistics = fitted(build, y, index, weight, slice(None))

    def least(cluster: Tensor, c: int) -> float:
        new = fitted(build, y, index, weight, cluster)[0]
        return -float((weight[cluster] * new[index[cluster]].log_prob(y[cluster])).sum())

    gains = family.leave_one_out_at(statistics, index, y, weight)
    return gains, without_each(least, index), -weight * family[index].log_prob(y)


@pytest.mark.meta
@pytest.mark.parametrize("kind", ["logistic", "poisson", "squared_hinge"])
def test_newton_gains_of_weighted_rows_are_near_those_of_refits(kind):
    gains, exact, own = gains_and_refits(kind, 0.2 + 2 * torch.rand(40, device="cpu").double())
    assert ((gains - exact).abs() / exact).median() < 0.01
    assert (gains - exact).abs().sum() < 0.25 * (own - exact).abs().sum()
    assert (gains >= own - 1e-12).all()


@pytest.mark.parametrize("kind", ["logistic", "squared_hinge"])
def test_newton_gains_of_light_rows_are_exact(kind):
    """Exact to third order in the weight."""
    weight = torch.ones(40).double().index_fill(0, torch.arange(0, 40, 4), 1e-3)
    gains, exact, own = gains_and_refits(kind, weight)
    light = (weight < 1) & (own > 1e-5)
    assert light.any()
    second = (exact - own)[light]
    assert ((gains - exact)[light].abs() < 0.02 * second + 1e-9).all()


@pytest.mark.meta
@pytest.mark.parametrize("given", ["one", "two weights", "all different"])
def test_hinge_gains_are_those_of_refits(given):
    weight = {
        "one": torch.ones(40, device="cpu"),
        "two weights": 1.0 + torch.arange(40, device="cpu") % 2,
        "all different": 0.2
        + 2 * torch.rand(40, generator=torch.Generator("cpu").manual_seed(0), device="cpu"),
    }[given].double()
    gains, exact, own = gains_and_refits("hinge", weight)
    assert (own - exact).abs().max() > 0.3
    torch.testing.assert_close(gains, exact, rtol=0, atol=5e-4)  # error of rounding the kink
    assert (gains >= own).all()


def test_clusters_of_one_light_row_have_no_other_rows_in_float32():
    """In float32, 3 * 0.1 != 0.3, but a cluster of one row has no other rows."""
    weight = torch.tensor([0.1, 0.7])
    gone = leaving(torch.tensor([0.1 + 1e-8, 1.4]), torch.tensor([0, 1]), weight)
    assert gone.others.tolist() == [False, True]
    assert gone.ratio.tolist() == [0.0, pytest.approx(1.0, abs=1e-6)]
