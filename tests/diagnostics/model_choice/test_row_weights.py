"""Row weights in comparisons: a row of weight w counts as w rows in every score."""

import numpy as np
import pyro
import pytest
import torch

from pyro_mixtures.diagnostics.model_choice.compare import compare_fits
from pyro_mixtures.diagnostics.model_choice.predictive import Predictive
from pyro_mixtures.errors import ModelError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models import BregmanMixture

pytestmark = pytest.mark.usefixtures("on_one_thread")

WEIGHT = torch.tensor([3.0, 0.0, 1.0, 2.0] * 6, device="cpu")


def rows(seed, dtype=torch.float32):
    generator = torch.Generator("cpu").manual_seed(seed)
    centers = 6.0 * (torch.arange(24, device="cpu", dtype=dtype) % 2).unsqueeze(-1)
    return centers + torch.randn(24, 2, generator=generator, device="cpu", dtype=dtype)


def builder(dtype=torch.float32):
    def build(components):
        with torch.device("cpu"):
            model = BregmanMixture(components=components, features=2).to(dtype)
            return EM(model, FullPartition(model, components=components))

    return build


def seeded(model, x, *weight):
    with torch.no_grad():
        model.mean = x[: model.components].clone()


def compare(*data, dtype=torch.float32, **options):
    options = {
        "components": [1, 2],
        "start": seeded,
        "warm_start": False,
        "progress": False,
    } | options
    return compare_fits(
        {"normal": builder(dtype)},
        *data,
        generator=torch.Generator("cpu").manual_seed(0),
        **options,
    )


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_heldout_rows_are_weighted(dtype):
    x, new = rows(0, dtype), rows(1, dtype)
    times = WEIGHT.long()
    ones = torch.ones(int(WEIGHT.sum()), device="cpu")
    weighted = compare(x, WEIGHT, heldout=(new, WEIGHT), dtype=dtype)
    repeated = (x.repeat_interleave(times, 0), ones), (new.repeat_interleave(times, 0), ones)
    # The fits are equal; only the form of the scored rows differs.
    plain = compare(
        *repeated[0], heldout=repeated[1], start=lambda model, *_: seeded(model, x), dtype=dtype
    )
    for one, other in zip(weighted.scores, plain.scores, strict=True):
        assert one.criteria.log_likelihood == pytest.approx(other.criteria.log_likelihood, rel=1e-5)
        assert one.heldout.total == pytest.approx(other.heldout.total, rel=1e-5)
        assert one.heldout.standard_error == pytest.approx(other.heldout.standard_error, rel=1e-4)
    error, expected = (
        r.scores[0].heldout.error_against(r.scores[1].heldout) for r in (weighted, plain)
    )
    assert error == pytest.approx(expected, rel=1e-4)


def test_folds_weight_rows():
    x = rows(0)
    options = {"components": [1], "folds": 4}
    double, single = (
        compare(x, torch.full((24,), w), **options).scores[0].heldout for w in (2.0, 1.0)
    )
    np.testing.assert_allclose(double.values, single.values, rtol=1e-5)
    assert double.total == pytest.approx(2 * single.total, rel=1e-5)
    np.testing.assert_array_equal(double.weight, np.full(24, 2.0))


def test_rows_of_weight_zero_may_have_no_density():
    result = Predictive(np.array([-1.0, 0.0, -2.0]), np.array([2.0, 0.0, 1.0]))
    assert result.total == -4.0
    assert result.standard_error == pytest.approx(np.sqrt(3) * np.std([-1.0, -1.0, -2.0], ddof=1))
    assert np.isnan(Predictive(np.zeros(1)).standard_error)


def test_draws_with_row_weights_are_refused_before_any_fit():
    def never(*_):
        raise AssertionError("fitted")

    with pytest.raises(ModelError, match="weights other than one"):
        compare(rows(0), WEIGHT, draws=30, start=never)
    assert not pyro.get_param_store().keys()
    ones = torch.ones(24)
    (score,) = compare(rows(0), ones, components=[1], draws=30, epochs=2).scores
    assert np.isfinite(score.loo.predictive.total)
    np.testing.assert_array_equal(score.loo.predictive.weight, ones)
