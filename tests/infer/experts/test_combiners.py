"""Combiners of experts against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.experts.combiners import fit_combiner
from tests.infer.experts.programs import DTYPES, labeled, randn

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inner", "outer"), [((), ()), ((2,), ()), ((2,), (3,)), ((), (2, 2))])
@pytest.mark.parametrize("penalty", [0.3, 20.0])
def test_combiner_is_ridge_regression_on_the_concatenated_predictions(inner, outer, penalty, dtype):
    predictions = randn(60, 4, *inner, dtype=dtype) + 5
    y = randn(60, *outer, dtype=dtype, seed=1) + predictions.flatten(1).square().sum(-1).view(
        -1, *(1,) * len(outer)
    )
    result = fit_combiner(predictions, y, penalty)(predictions[:20])
    rows = predictions.flatten(1).double().numpy()
    sklearn = Ridge(alpha=penalty).fit(rows, y.reshape(60, -1).double().numpy())
    expected = sklearn.predict(rows[:20]).reshape(20, *outer)
    assert result.dtype == dtype
    np.testing.assert_allclose(
        result.numpy(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-9
    )


def test_combiner_reads_rows_in_chunks_and_allows_collinear_experts(monkeypatch):
    predictions, y = randn(50, 3), randn(50, seed=1)
    predictions = torch.cat([predictions, predictions], 1)
    whole = fit_combiner(predictions, y, 0.0)(predictions)
    monkeypatch.setattr("pyro_mixtures.infer.experts.combiners._NUMBERS", 30)
    torch.testing.assert_close(fit_combiner(predictions, y, 0.0)(predictions), whole)
    design = np.c_[predictions.numpy(), np.ones(50)]
    np.testing.assert_allclose(
        whole.numpy(), design @ np.linalg.lstsq(design, y.numpy(), rcond=None)[0], atol=1e-9
    )


def test_combiner_of_classes_is_multinomial_logistic_regression():
    scores, labels = randn(150, 4, 3), torch.tensor([0, 1, 3])[labeled(150, 2, 3)[1]]
    scores[torch.arange(150), 0, labels.clamp_max(2)] += 1.5
    combiner = fit_combiner(scores, labels, 0.7)
    rows = scores.flatten(1).numpy()
    sklearn = LogisticRegression(C=1 / 0.7, tol=1e-10, max_iter=9999).fit(rows, labels.numpy())
    probs = combiner(scores)
    assert probs.shape == (150, 4)
    assert (probs[:, 2] == 0).all()
    np.testing.assert_allclose(probs[:, [0, 1, 3]].numpy(), sklearn.predict_proba(rows), atol=1e-4)


def test_combiner_refuses_invalid_input():
    predictions, y = randn(10, 3), randn(10, seed=1)
    with pytest.raises(DataError, match="for outcomes"):
        fit_combiner(predictions, y[:-1])
    with pytest.raises(DataError, match="for outcomes"):
        fit_combiner(predictions[:, 0], y)
    with pytest.raises(DataError, match="outcomes are not all finite"):
        fit_combiner(predictions, y / 0)
    with pytest.raises(OptionError, match="penalty=-1"):
        fit_combiner(predictions, y, -1.0)
    with pytest.raises(OptionError, match="penalty=0"):
        fit_combiner(predictions, torch.arange(10), 0.0)
    with pytest.raises(DataError, match="classes"):
        fit_combiner(predictions, torch.arange(10) - 1)
    with pytest.raises(DataError, match="4 predictions per row"):
        fit_combiner(predictions, y)(randn(5, 4))
