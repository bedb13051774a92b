"""Bootstrap refits in ArviZ: draws with the labels of the fit."""

import numpy as np
import pytest
import torch

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer.uncertainty.bootstrap import bootstrap
from tests.diagnostics.arviz_io.three_clusters import (
    module_fit,
    three_clusters,
)

pytestmark = [pytest.mark.arviz, pytest.mark.usefixtures("on_one_thread")]


class TestBootstrapDraws:
    def test_refits_are_draws_with_the_labels_of_the_fit(self):
        whole = module_fit([1, 2, 0])
        bootstrapped = bootstrap(whole, three_clusters(), draws=4, progress=False, epochs=3)
        data = to_arviz(bootstrapped, three_clusters())
        assert data.posterior["loc"].values.shape == (1, 4, 3, 1)
        np.testing.assert_allclose(
            data.posterior["loc"].values[0],
            np.broadcast_to(whole.model.loc.detach(), (4, 3, 1)),
            atol=1.0,
        )
        assert len(np.unique(data.posterior["loc"].values[0, :, 0, 0])) == 4
        np.testing.assert_array_equal(data.sample_stats["elbo"].values[0], bootstrapped.elbos)
        with pytest.raises(OptionError, match="bootstrap has 4"):
            to_arviz(bootstrapped, three_clusters(), draws=3)

    def test_the_fit_is_the_reference_regardless_of_the_store(self):
        whole = module_fit([1, 2, 0])
        bootstrapped = bootstrap(whole, three_clusters(), draws=2, progress=False, epochs=1)
        module_fit([0, 1, 2])
        loc = to_arviz(bootstrapped, three_clusters()).posterior["loc"].values[0]
        np.testing.assert_allclose(
            loc, np.broadcast_to(whole.model.loc.detach(), loc.shape), atol=1.0
        )

    def test_refits_are_chains_and_single_sources_too(self):
        whole = module_fit([1, 2, 0])
        bootstrapped = bootstrap(whole, three_clusters(), draws=2, progress=False, epochs=1)
        chains = to_arviz(list(bootstrapped.refits), three_clusters())
        assert chains.posterior["loc"].values.shape == (2, 1, 3, 1)
        for refit in bootstrapped.refits:
            single = to_arviz(refit, three_clusters()).posterior["loc"].values[0, 0]
            np.testing.assert_array_equal(single, refit.values([three_clusters()])["loc"])

    def test_switched_labels_are_aligned(self):
        whole = module_fit([0, 1, 2])
        bootstrapped = bootstrap(whole, three_clusters(), draws=2, progress=False, epochs=1)
        switched = bootstrapped.refits[1].fit.model
        with torch.no_grad():
            for name in ("weights", "loc", "scale"):
                setattr(switched, name, getattr(switched, name)[[2, 0, 1]].clone())
        bootstrapped.refits[1].model.state["params"].clear()
        data, left = (
            to_arviz(bootstrapped, three_clusters(), align=align) for align in (True, False)
        )
        assert left.posterior["loc"].values[0, 1, :, 0].argsort().tolist() != [0, 1, 2]
        assert data.posterior["loc"].values[0, 1, :, 0].argsort().tolist() == [0, 1, 2]
