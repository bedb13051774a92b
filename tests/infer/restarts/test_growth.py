"""Growth: each stage starts from the components of the previous one and splits the largest."""

import pyro
import pytest
import torch

from pyro_mixtures.errors import OptionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, log_evidence
from pyro_mixtures.infer.restarts.growth import grow
from pyro_mixtures.models import GaussianMixture, SoftmaxMixture

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture
def x():
    generator = torch.Generator("cpu").manual_seed(3)
    return torch.cat(
        [torch.randn(60, 2, generator=generator, device="cpu") + 9 * k for k in range(4)]
    )


def builder(make=FullPartition, **options):
    def build(components):
        with torch.device("cpu"):
            model = GaussianMixture(components=components, features=2)
            return EM(model, make(model, components=components), **options)

    return build


def truncated(model, components):
    c = min(components, 3)
    return TruncatedPartition(
        model, components=components, candidates=c, neighbors=c, explore=0, seed=0
    )


@pytest.mark.meta
@pytest.mark.parametrize("make", [FullPartition, truncated])
def test_growth_finds_separated_clusters(x, make):
    with torch.device("cpu"):
        stages = grow(builder(make), x, components=[1, 2, 4], progress=False)
    assert [stage.model.components for stage in stages] == [1, 2, 4]
    loc = stages[-1].model.loc.detach()
    centers = 9 * torch.arange(4.0, device="cpu")
    assert (
        torch.cdist(centers.unsqueeze(-1).expand(4, 2).contiguous(), loc).min(-1).values.max() < 0.6
    )
    assert stages[0].elbo < stages[1].elbo < stages[2].elbo
    # The program reads the params of the last stage.
    assert float(log_evidence(stages[-1].model, x).mean()) == pytest.approx(
        stages[-1].elbo, abs=0.05
    )
    assert pyro.param("loc").shape == (4, 2)


def test_a_stage_starts_where_the_previous_one_ended(x):
    """A stage of zero epochs has the previous components and an empty one."""
    first, second = grow(builder(), x, components=[2, 3], epochs=0, progress=False)
    torch.testing.assert_close(second.model.loc[:2].detach(), first.model.loc.detach())
    assert second.model.weights.tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-5)
    assert 0 < float(second.model.weights[2].detach()) * len(x) < 0.01


def test_rows_with_new_candidates_only_find_the_old_components(x):
    def narrow(model, components):
        c = min(components, 2)
        return TruncatedPartition(
            model, components=components, candidates=c, neighbors=c, explore=0, seed=0
        )

    with torch.device("cpu"):
        stages = grow(builder(narrow), x, components=[1, 8], progress=False)
    assert stages[1].elbo > stages[0].elbo + 1


def test_start_sets_the_params_of_the_first_stage(x):
    def start(model):
        model.loc = torch.full((2, 2), 7.0)

    (first,) = grow(builder(), x, components=[2], start=start, epochs=0, progress=False)
    assert first.model.loc.tolist() == [[7.0, 7.0]] * 2


@pytest.mark.parametrize("sizes", [[], [2, 2], [3, 2], [0, 1], [1.5, 2], 3, None])
def test_sizes_that_do_not_increase_are_refused(x, sizes):
    with pytest.raises(OptionError, match="components="):
        grow(builder(), x, components=sizes, progress=False)


def test_growth_needs_reseeding_and_weights(x):
    with pytest.raises(OptionError, match="reseed"):
        grow(builder(empty="keep"), x, components=[1, 2], progress=False)
    with pytest.raises(OptionError, match="fit_restarts"):  # its new clusters would stay empty
        grow(
            builder(lambda model, components: HardPartition(model, components=components)),
            x,
            components=[1, 2],
        )

    class Equal(GaussianMixture):
        def __init__(self, *, components, features):
            super().__init__(components=components, features=features)
            del self.weights
            self.register_buffer("weights", torch.full((components,), 1 / components))

    def build(components):
        model = Equal(components=components, features=2)
        return EM(model, FullPartition(model, components=components))

    with pytest.raises(OptionError, match="simplex"):
        grow(build, x, components=[1, 2], epochs=1, progress=False)


def test_new_components_are_reseeded_under_large_row_weights():
    items = torch.arange(40) % 20
    features = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))

    def build(components):
        model = SoftmaxMixture(components=components, features=features)
        return EM(model, FullPartition(model, components=components))

    fits = grow(build, items, torch.full((40,), 1e6), components=[1, 2], epochs=1, progress=False)
    assert fits[1].model.weights.min() > 0.4  # split in two
