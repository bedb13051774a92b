"""Reports of models with other latent sites: one value for all numbers, and no side effects."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoNormal
from pyro.optim import Adam
from pyro.util import get_rng_state
from torch.distributions import constraints

from pyro_mixtures.diagnostics.reports.partition_report import partition_report
from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import Fit, fit
from pyro_mixtures.poutine import data_plate
from tests.diagnostics.reports.fitted_mixtures import D, rows, truncated

pytestmark = pytest.mark.usefixtures("on_one_thread")


def guide_without_median(x, index=None, size=None):
    """A guide of the weights that has no median."""
    counts = pyro.param(
        "counts", torch.full((3,), 4.0, device="cpu"), constraint=constraints.positive
    )
    return {"weights": pyro.sample("weights", dist.Dirichlet(counts))}


def with_latent_weights(x: torch.Tensor, kind=None, epochs: int = 1) -> Fit:
    """Overlapping components, so that many labels depend on the weights."""

    def model(x, index=None, size=None):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, device="cpu")))
        loc = pyro.param("loc", torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], device="cpu"))
        with data_plate(x, index, size):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", DiagonalNormals(loc, torch.ones(3, D, device="cpu"))[z], obs=x)

    global_guide = kind(poutine.block(model, expose=["weights"])) if kind else guide_without_median
    guide = FullPartition(model, components=3, global_guide=global_guide)
    svi = SVI(model, guide, Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))
    return fit(svi, x, epochs=epochs, progress=False)


class TestOtherLatentSites:
    """A report evaluates everything at one value of the other latent sites, which it names."""

    x = torch.randn(200, D, generator=torch.Generator("cpu").manual_seed(0), device="cpu")

    @pytest.mark.meta
    @pytest.mark.parametrize("median", [True, False])
    def test_a_fit_agrees_with_itself(self, median):
        result = with_latent_weights(self.x, AutoNormal if median else None)
        report = partition_report(result, self.x, sample=200, others=[result])
        assert report.stability == ((1.0, 1.0),)
        assert abs(report.gap.mean) < 1e-5
        assert report.latents == (
            "weights at the guide's median" if median else "weights at one draw of the guide"
        )
        assert report.latents in str(report)

    def test_a_guide_that_was_never_called_agrees_with_itself(self):
        """The first call of an autoguide draws random numbers for its setup, later ones do not."""
        result = with_latent_weights(self.x, AutoIAFNormal, epochs=0)
        assert partition_report(result, self.x, others=[result]).stability == ((1.0, 1.0),)

    @pytest.mark.parametrize("median", [True, False])
    def test_all_randomness_comes_from_the_generator(self, median):
        result = with_latent_weights(self.x, AutoNormal if median else None)

        def sizes(seed: int) -> list[int]:
            return partition_report(
                result, self.x, generator=torch.Generator("cpu").manual_seed(seed)
            ).sizes.tolist()

        one = sizes(1)
        torch.randn(3, device="cpu")
        assert sizes(1) == one
        assert (sizes(2) == one) == median

    def test_the_median_is_that_of_the_guide(self):
        result = with_latent_weights(self.x, AutoNormal)
        weights = result.guide.global_guide.median()["weights"]
        normal = torch.distributions.Normal(pyro.param("loc").detach(), 1.0)
        joint = weights.log() + normal.log_prob(self.x.unsqueeze(1)).sum(-1)
        expected = torch.bincount(joint.argmax(1), minlength=3)
        assert partition_report(result, self.x).sizes.tolist() == expected.tolist()

    @pytest.mark.parametrize("seeded", [True, False])
    def test_global_random_states_stay_unchanged(self, seeded):
        result = with_latent_weights(self.x)
        generator = torch.Generator("cpu").manual_seed(0) if seeded else None
        before = repr(get_rng_state()), torch.get_rng_state()
        partition_report(result, self.x, others=[result], generator=generator)
        assert repr(get_rng_state()) == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])

    def test_no_other_sites(self):
        x = rows()
        assert partition_report(truncated(x, epochs=1), x).latents == ""
