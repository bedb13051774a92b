"""Linear regressions: precision in float32 and far from zero."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from tests.distributions.regression.linear_rows import FEATURES, ROWS, build, normal, rows_of

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.mark.parametrize("offset", [1e3, 1e4])
def test_float32_keeps_its_digits_far_from_zero(offset):
    """The fit in float32 is that in float64 of the same rounded rows."""
    x = (offset + normal(2000, FEATURES, seed=1)).float()
    q = torch.rand(2, 2000, generator=torch.Generator().manual_seed(0))
    y = (
        offset + (x.double() - offset) @ normal(FEATURES, seed=7) + 0.1 * normal(2000, seed=8)
    ).float()
    found = []
    for dtype in (torch.float32, torch.float64):
        family = build(x.to(dtype), components=2)
        z = torch.arange(2).unsqueeze(-1)
        sums = family[z].statistics(y.to(dtype), q.to(dtype))
        found.append(family.maximize(sums, frozenset(["weight", "bias", "scale"]), floor=None))
    for name in ("weight", "scale"):
        torch.testing.assert_close(found[0][name].double(), found[1][name], rtol=1e-5, atol=1e-6)
    known = Ridge(alpha=1e-9).fit(
        x.double() - offset, y.double() - offset, sample_weight=q[0].double()
    )
    torch.testing.assert_close(
        found[1]["weight"][0], torch.from_numpy(known.coef_), rtol=0, atol=1e-6
    )
    left = (known.predict(x.double() - offset) - y.double().numpy() + offset) ** 2
    assert float(found[1]["scale"][0]) == pytest.approx(
        np.sqrt(np.average(left, weights=q[0])), rel=1e-5
    )


@pytest.mark.parametrize("units", [1e-9, 1e9])
def test_units_of_covariates_do_not_matter(units):
    x, y = rows_of(None)
    scales = torch.tensor([units, 1.0, 1.0], dtype=torch.float64)
    free, weights = frozenset(["weight", "bias"]), torch.ones(1, ROWS, dtype=torch.float64)
    found = []
    for rows in (x, x * scales):
        family = build(rows, components=1)
        found.append(
            family.maximize(
                family[torch.zeros(1, ROWS).long()].statistics(y, weights), free, floor=None
            )
        )
    torch.testing.assert_close(found[1]["weight"] * scales, found[0]["weight"])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_constant_and_repeated_covariates_leave_the_fit_alone(offset):
    x, y = rows_of(None)
    x = offset + x
    wide = torch.cat([x, x[:, :1], torch.full((ROWS, 1), 1e4, dtype=torch.float64)], -1)
    family = build(wide, components=1)
    sums = family[torch.zeros(1, ROWS).long()].statistics(
        y, torch.ones(1, ROWS, dtype=torch.float64)
    )
    found = family.maximize(sums, frozenset(["weight", "bias"]), floor=None)
    known = Ridge(alpha=1e-9).fit(x - offset, y)
    fitted = wide @ found["weight"][0] + found["bias"][0]
    torch.testing.assert_close(
        fitted, torch.from_numpy(known.predict(x - offset)), rtol=1e-6, atol=1e-6
    )
    assert float(found["weight"].abs().max()) < 10
