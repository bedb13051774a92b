"""Comparisons recover planted mixtures; their tables and plots."""

import io
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from matplotlib.figure import Figure

from pyro_mixtures.diagnostics.model_choice.plots import plot_comparison
from pyro_mixtures.diagnostics.model_choice.score import Comparison
from pyro_mixtures.infer import log_evidence
from pyro_mixtures.testing import one_thread
from tests.diagnostics.model_choice.samples import (
    clusters,
    compare,
    gaussians,
    seeded,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(scope="module")
def planted():
    """Three clusters, scored by all criteria."""
    with one_thread():
        options = {"folds": 2, "draws": 30, "start": seeded, "patience": 1}
        return compare(gaussians(), clusters(3, 30), components=[2, 3, 4], **options)


@pytest.fixture(scope="module")
def families():
    """Two families on long clusters."""
    with one_thread():
        builds = {"isotropic": gaussians("isotropic"), "diagonal": gaussians()}
        x = clusters(2, 30) * torch.tensor([1.0, 3.0], device="cpu")
        return compare(builds, x, components=[1, 2, 3], start=seeded, patience=1)


@pytest.mark.parametrize("criterion", ["bic", "icl", "heldout", "loo"])
def test_the_planted_number_is_recovered(planted, criterion):
    assert planted.best_by(criterion).components == 3


def test_the_planted_family_is_recovered(families):
    assert (families.best.family, families.best.components) == ("diagonal", 2)


def test_scores_use_the_params_of_their_fit(planted):
    """Pyro's store is empty here, and no fit reads the params of another one."""
    for score in planted.scores:
        result = log_evidence(score.model, clusters(3, 30)).double().sum()
        assert float(result) == pytest.approx(score.criteria.log_likelihood)
        assert score.loo.predictive.total < score.criteria.log_likelihood
    assert not pyro.get_param_store().keys()


@pytest.mark.arviz
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")  # ArviZ 0.23 with pandas 3.1
def test_arviz_compares_the_same_estimates(planted):
    import arviz

    table = arviz.compare({str(score.components): score.loo.elpd for score in planted.scores})
    assert sorted(table.index) == ["2", "3", "4"]
    assert table.index[-1] == "2"


class TestReport:
    def test_frame(self, planted, families):
        pytest.importorskip("pandas")
        frame = planted.to_frame()
        assert frame.shape == (3, 13)
        assert frame["components"].tolist() == [2, 3, 4]
        assert frame["bic"].idxmin() == 1
        np.testing.assert_allclose(frame["loo"], [score.value("loo") for score in planted.scores])
        assert families.to_frame()["family"].tolist() == ["isotropic"] * 3 + ["diagonal"] * 3

    def test_text(self, planted):
        lines = str(planted).split("\n")
        assert len(lines) == 5
        assert len(set(map(len, lines[:4]))) == 1
        assert lines[2].split()[:2] == ["diagonal", "3"]
        assert lines[2].count("*") >= 4
        assert lines[-1].endswith("by bic: diagonal with 3 components")

    @pytest.mark.parametrize(("which", "criterion"), [("families", "bic"), ("planted", "loo")])
    def test_picture(self, request, which, criterion):
        result = request.getfixturevalue(which)
        ax = plot_comparison(result, criterion=criterion)
        for lines, scores in zip(ax.containers, result.families().values(), strict=True):
            x = lines[0].get_xdata().astype(float)
            np.testing.assert_array_equal(x.round(), [score.components for score in scores])
            np.testing.assert_allclose(
                lines[0].get_ydata().astype(float), [score.value(criterion) for score in scores]
            )
            assert lines.has_yerr == (criterion == "loo")
        best = result.best_by(criterion)
        place = ax.collections[-1].get_offsets()[0]
        assert place[1] == pytest.approx(best.value(criterion))
        own = ax.containers[list(result.families()).index(best.family)]
        assert (
            place[0] == own[0].get_xdata()[[1, 2, 3].index(best.components) - (which == "planted")]
        )
        ax.figure.savefig(io.BytesIO(), format="png", dpi=40)

    def test_picture_shows_families_with_equal_scores(self, families):
        twins = [
            replace(score, family="twin") for score in families.scores if score.family == "diagonal"
        ]
        ax = plot_comparison(Comparison([*families.scores, *twins], "bic"))
        x = [lines[0].get_xdata().astype(float) for lines in ax.containers]
        assert len(np.unique(np.concatenate(x))) == 9
        ax = plot_comparison(Comparison(twins, "bic"))
        np.testing.assert_array_equal(ax.containers[0][0].get_xdata().astype(float), [1, 2, 3])

    def test_picture_in_given_axes(self, planted):
        ax = Figure().subplots()
        assert plot_comparison(planted, ax=ax) is ax
        assert "BIC" in ax.get_ylabel()
