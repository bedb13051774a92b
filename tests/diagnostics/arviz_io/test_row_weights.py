"""Row weights in ArviZ."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.errors import OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.infer.uncertainty.criteria import criteria
from pyro_mixtures.models.bregman import BregmanMixture
from pyro_mixtures.poutine import data_plate
from tests.diagnostics.arviz_io.two_clusters import (
    mean_field,
    two_clusters,
)

pytestmark = pytest.mark.arviz


class TestRowWeights:
    """A row of weight w stands for w rows, one of weight zero for none."""

    COUNTS = torch.tensor([2.0, 0.0, 1.0, 9.0, 3.0, 0.0, 1.0, 4.0], device="cpu")

    @pytest.fixture
    def weighted(self):
        x = torch.poisson(
            torch.full((8, 2), 5.0, device="cpu"), generator=torch.Generator("cpu").manual_seed(0)
        )
        model = BregmanMixture(components=2, features=2, divergence="kl")
        return fit(
            EM(model, FullPartition(model, components=2)), x, self.COUNTS, epochs=3, progress=False
        ), x

    def test_lp_is_the_log_likelihood_of_the_fit(self, weighted):
        result, x = weighted
        data = to_arviz(result, x, self.COUNTS)
        lp = float(data.sample_stats["lp"].values[0, 0])
        expected = criteria(result.model, x, self.COUNTS).log_likelihood
        repeated = to_arviz(result, x.repeat_interleave(self.COUNTS.long(), 0))
        assert lp == pytest.approx(expected, rel=1e-6)
        assert lp == pytest.approx(float(repeated.sample_stats["lp"].values[0, 0]), rel=1e-6)

    def test_pointwise_values_count_a_row_by_its_weight(self, weighted):
        result, x = weighted
        data = to_arviz(result, x, self.COUNTS)
        counted = self.COUNTS > 0
        each = to_arviz(result, x[counted]).log_likelihood["x"].values
        pointwise = data.log_likelihood["x"]
        np.testing.assert_allclose(pointwise.values, each * self.COUNTS[counted].numpy(), rtol=1e-5)
        assert pointwise.coords["row"].values.tolist() == [0, 2, 3, 4, 6, 7]
        assert (
            data.observed_data["x"].sizes["row"]
            == 8
            == data.constant_data["row_weight"].sizes["row"]
        )
        np.testing.assert_array_equal(
            data.observed_data["x"].sel(row=pointwise.coords["row"]).values, x[counted]
        )

    @pytest.mark.parametrize("observed_data", [True, False])
    def test_rows_keep_their_labels(self, weighted, observed_data):
        names = list("abcdefgh")
        data = to_arviz(
            weighted[0],
            weighted[1],
            self.COUNTS,
            coords={"row": names},
            observed_data=observed_data,
        )
        assert data.log_likelihood.coords["row"].values.tolist() == list("acdegh")
        with pytest.raises(OptionError, match="labels of shape"):
            to_arviz(
                weighted[0],
                weighted[1],
                self.COUNTS,
                coords={"row": names[:6]},
                observed_data=observed_data,
            )

    # Only the existence of a result is tested; with these few draws it is noisy.
    @pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
    def test_loo_counts_only_rows_of_positive_weight(self):
        def model(x, row_weight, index=None, size=None):
            with pyro.plate("components", 2):
                loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
            with data_plate(x, index, size), pyro.poutine.mask(mask=row_weight > 0):
                z = pyro.sample("z", dist.Categorical(torch.full((2,), 0.5)))
                pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)

        x, seen = two_clusters(), torch.arange(80, device="cpu") % 4 > 0
        guide = FullPartition(model, components=2, global_guide=mean_field(model))
        loo = az.loo(to_arviz(guide, x, seen.float(), draws=50), pointwise=True)
        assert loo.n_data_points == 60
        assert np.isfinite(np.asarray(loo.pareto_k)).all()
