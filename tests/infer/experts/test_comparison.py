"""Comparisons of routing and combiners on new rows."""

import warnings

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score

from pyro_mixtures.errors import DataError, OptionError, PartitionError
from pyro_mixtures.guides import FullPartition, HardPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.infer.experts.combiners import fit_combiner
from pyro_mixtures.infer.experts.comparison import accuracy, compare_routing, r2
from pyro_mixtures.infer.experts.gates import fit_gate
from pyro_mixtures.infer.experts.predictions import expert_predictions, mix_experts, select_experts
from pyro_mixtures.infer.experts.routing import route
from pyro_mixtures.models import MixtureOfRegressions
from tests.infer.experts.programs import brute, labeled, randn, regressions, with_labels

pytestmark = pytest.mark.usefixtures("on_one_thread")


def three_regressions(n, seed):
    """Three clusters of covariates, each with its own regression."""
    cluster = torch.arange(n) % 3
    centers = 6 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    x = centers[cluster] + randn(n, 2, seed=seed)
    weight = torch.tensor([[2.0, -1.0], [-3.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    bias = torch.tensor([0.0, 20.0, -30.0], dtype=torch.float64)
    return x, (weight[cluster] * x).sum(-1) + bias[cluster] + 0.1 * randn(n, seed=seed + 1), cluster


def test_routing_predicts_new_rows_where_one_regression_does_not():
    x, y, cluster = three_regressions(300, 1)
    new_x, new_y, _ = three_regressions(150, 3)
    model = MixtureOfRegressions(
        components=3, features=2, ridge=1e-4, scale=1.0, equal_weights=True
    ).double()
    guide = HardPartition(model, components=3)
    guide.set_labels(cluster)
    em = EM(model, guide, empty="keep")
    for _ in range(3):
        em.step(x, y)
    assert (guide.labels == cluster).double().mean() > 0.95  # except where two regressions meet
    result = compare_routing(model, guide, (x, y), (new_x, new_y))
    alone = Ridge().fit(x.numpy(), y.numpy()).score(new_x.numpy(), new_y.numpy())
    assert alone < 0.8
    assert result["hard"] > 0.95
    assert result["soft"] > 0.95
    # Linear in outputs that are linear in x: no better than one regression.
    assert result["combiner"] == pytest.approx(alone, abs=0.02)
    assert list(result) == ["hard", "soft", "combiner", "oracle_unattainable"]
    assert result["oracle_unattainable"] >= max(result.values())
    gate = fit_gate(x, guide.labels, 3)
    assert result["hard"] == pytest.approx(
        r2_score(new_y.numpy(), route(model, gate, new_x).numpy())
    )
    assert result["soft"] == pytest.approx(
        r2_score(new_y.numpy(), route(model, gate, new_x, "soft").numpy())
    )
    combiner = fit_combiner(expert_predictions(model, x), y)
    expected = r2_score(new_y.numpy(), combiner(expert_predictions(model, new_x)).numpy())
    assert result["combiner"] == pytest.approx(expected)


def test_comparison_with_a_given_gate_and_metric():
    x, y, cluster = three_regressions(60, 5)
    model = regressions(randn(3, 2), randn(3, seed=1))
    gate = fit_gate(x, cluster.flip(0), 3)
    result = compare_routing(
        model,
        with_labels(cluster, 3),
        (x, y),
        (x, y),
        gate=gate,
        metric=lambda p, y: (p - y).abs().max(),
    )
    all_components = expert_predictions(model, x)
    assert result["hard"] == pytest.approx(
        float((select_experts(all_components, gate(x)) - y).abs().max())
    )
    best = (all_components - y.unsqueeze(-1)).abs().amin(-1)
    assert result["oracle_unattainable"] == pytest.approx(float(best.max()))


def test_comparison_of_several_outputs_averages_r2():
    x, cluster = labeled(50, 2, 2)
    weight, bias = randn(2, 3, 2), randn(2, 3, seed=1)
    y = select_experts(brute(weight, bias, x), cluster) + randn(50, 3, seed=2)
    result = compare_routing(regressions(weight, bias), with_labels(cluster, 2), (x, y), (x, y))
    prediction = route(regressions(weight, bias), fit_gate(x, cluster, 2), x, "soft")
    assert result["soft"] == pytest.approx(r2_score(y.numpy(), prediction.numpy()))
    best = (brute(weight, bias, x) - y.unsqueeze(1)).square().sum(-1).argmin(-1)
    assert result["oracle_unattainable"] == pytest.approx(
        r2_score(y.numpy(), select_experts(brute(weight, bias, x), best))
    )


def test_comparison_of_classes_takes_their_scores():
    """Experts predict scores of three classes; the oracle prefers an expert that is right."""
    x, cluster = labeled(80, 2, 2)
    weight, bias = randn(2, 3, 2), randn(2, 3, seed=1)
    scores = brute(weight, bias, x)
    y = select_experts(scores, cluster).argmax(-1)
    result = compare_routing(regressions(weight, bias), with_labels(cluster, 2), (x, y), (x, y))
    gate = fit_gate(x, cluster, 2)
    expected = (select_experts(scores, gate(x)).argmax(-1) == y).double().mean()
    assert result["hard"] == pytest.approx(float(expected))
    assert result["soft"] == pytest.approx(
        float((mix_experts(scores, gate.log_prob(x)).argmax(-1) == y).double().mean())
    )
    sklearn = LogisticRegression(C=1.0, tol=1e-9, max_iter=9999).fit(
        scores.flatten(1).numpy(), y.numpy()
    )
    assert result["combiner"] == pytest.approx(sklearn.score(scores.flatten(1).numpy(), y.numpy()))
    assert result["oracle_unattainable"] == 1.0  # the expert of a row's cluster is always right


def test_the_oracle_prefers_correct_experts_to_confident_ones():
    bias = torch.tensor([[0.46, 0.45, 0.09], [0.30, 0.40, 0.30]], dtype=torch.float64)
    model = regressions(torch.zeros(2, 3, 1, dtype=torch.float64), bias)
    x, y = randn(4, 1), torch.ones(4, dtype=torch.int64)
    assert (
        compare_routing(model, with_labels(torch.arange(4) % 2, 2), (x, y), (x, y))[
            "oracle_unattainable"
        ]
        == 1.0
    )


def test_comparison_refuses_invalid_input():
    x, y, cluster = three_regressions(30, 1)
    model = regressions(randn(3, 2), randn(3, seed=1))
    with pytest.raises(PartitionError, match="no labels"):
        compare_routing(model, with_labels(None, 3), (x, y), (x, y))
    with pytest.raises(
        PartitionError, match="FullPartition does not have one label per row: pass the Hard"
    ):
        compare_routing(model, FullPartition(model, components=3), (x, y), (x, y))
    with pytest.raises(PartitionError, match="labels of 29 rows"):
        compare_routing(model, with_labels(cluster[1:], 3), (x, y), (x, y))
    with pytest.raises(PartitionError, match="-1 marks rows"):
        compare_routing(model, with_labels(cluster - 1, 3), (x, y), (x, y))
    with pytest.raises(DataError, match="29 outcomes"):
        compare_routing(model, with_labels(cluster, 3), (x, y[1:]), (x, y))
    with pytest.raises(DataError, match="metric="):
        compare_routing(model, with_labels(cluster, 3), (x, cluster), (x, cluster))
    with pytest.raises(DataError, match="R2 is not defined"):
        compare_routing(model, with_labels(cluster, 3), (x, y), (x[:1], y[:1]))
    with pytest.raises(DataError, match="outcomes have shape"):
        compare_routing(model, with_labels(cluster, 3), (x, y.unsqueeze(-1)), (x, y.unsqueeze(-1)))
    with pytest.raises(OptionError, match="2 clusters"):
        compare_routing(
            model, with_labels(cluster, 3), (x, y), (x, y), gate=fit_gate(x, cluster % 2, 2)
        )


def test_one_new_row_with_a_metric():
    x, y, cluster = three_regressions(30, 1)
    model = regressions(randn(3, 2), randn(3, seed=1))
    result = compare_routing(
        model,
        with_labels(cluster, 3),
        (x, y),
        (x[:1], y[:1]),
        metric=lambda p, y: (p - y).abs().sum(),
    )
    best = (expert_predictions(model, x[:1]) - y[0]).abs().min()
    assert result["oracle_unattainable"] == pytest.approx(float(best))


def test_metrics():
    y, prediction = randn(20, 2), randn(20, 2, seed=1)
    assert r2(prediction, y) == pytest.approx(r2_score(y.numpy(), prediction.numpy()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])) == 0.5
