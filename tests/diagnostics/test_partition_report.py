"""Partition reports hold what brute force finds, for every kind of guide, and change nothing of the fit."""

import copy
import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoNormal
from pyro.optim import Adam
from pyro.util import get_rng_state
from sklearn.metrics import adjusted_rand_score
from torch.distributions import constraints

from pyro_mixtures.diagnostics.reports.neighbor_recall import neighbor_recall
from pyro_mixtures.diagnostics.reports.partition_report import partition_report
from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import DataError, OptionError, PartitionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, Fit, fit
from pyro_mixtures.init import Seeds
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.poutine import data_plate

pytestmark = pytest.mark.usefixtures("on_one_thread")

C, D, N = 8, 2, 300


def rows(dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    centers = 4 * torch.randn(C, D, generator=generator, device="cpu", dtype=dtype)
    noise = torch.randn(N, D, generator=generator, device="cpu", dtype=dtype)
    return centers[torch.arange(N, device="cpu") % C] + noise


def mixture(x: torch.Tensor, first: int = 0) -> GaussianMixture:
    with torch.device("cpu"):
        model = GaussianMixture(components=C, features=D).to(x.dtype)
    model.start_at(
        Seeds(torch.arange(first, first + C, device="cpu"), x[first : first + C].clone(), x.var(0))
    )
    return model


def truncated(x: torch.Tensor, *, first: int = 0, epochs: int = 5, neighbors: int = 3) -> Fit:
    model = mixture(x, first)
    guide = TruncatedPartition(
        model, components=C, candidates=2, neighbors=neighbors, explore=1, seed=first
    )
    return fit(EM(model, guide), x, epochs=epochs, progress=False)


def log_densities(found: Fit, x: torch.Tensor) -> torch.Tensor:
    """log p(x | c), (N, C), by torch alone."""
    model = found.model
    normal = torch.distributions.Normal(model.loc.detach().double(), model.scale.detach().double())
    return normal.log_prob(x.double().unsqueeze(1)).sum(-1)


def log_joints(found: Fit, x: torch.Tensor) -> torch.Tensor:
    return found.model.weights.detach().double().log() + log_densities(found, x)


class TestNumbers:
    @pytest.mark.meta
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_truncated(self, dtype):
        x = rows(dtype)
        found = truncated(x)
        report = partition_report(found, x, sample=N, outliers=5)
        joint = log_joints(found, x)
        kept = joint.gather(1, found.guide.sets.table.long())
        near = {
            "rtol": 1e-4 if dtype == torch.float32 else 1e-9,
            "atol": 1e-5 if dtype == torch.float32 else 1e-9,
        }
        winner = found.guide.sets.table.long().gather(1, kept.argmax(1, keepdim=True))[:, 0]
        torch.testing.assert_close(report.sizes, torch.bincount(winner, minlength=C))
        gap = joint.logsumexp(1) - kept.logsumexp(1)
        assert float(gap.max()) > 0.01  # or nothing would be tested
        torch.testing.assert_close(report.gap.mean, float(gap.mean()), **near)
        torch.testing.assert_close(report.gap.largest, float(gap.max()), **near)
        assert report.gap.missed == pytest.approx(
            float((joint.argmax(1) != winner).double().mean())
        )
        assert report.gap.rows == N
        entropy = torch.distributions.Categorical(logits=kept).entropy()
        torch.testing.assert_close(report.entropy, float(entropy.mean()), **near)
        by_part = torch.stack([entropy[winner == c].mean() for c in range(C)])
        torch.testing.assert_close(report.part_entropy, by_part, equal_nan=True, **near)
        worst = kept.logsumexp(1).sort()
        assert report.outliers.tolist() == worst.indices[:5].tolist()
        torch.testing.assert_close(report.outlier_evidence, worst.values[:5], **near)

    def test_full_has_no_gap_and_no_graph(self):
        x = rows(torch.float64)
        model = mixture(x)
        report = partition_report(
            fit(EM(model, FullPartition(model, components=C)), x, epochs=3, progress=False), x
        )
        assert abs(report.gap.mean) < 1e-12
        assert report.gap.missed == 0
        assert report.recall is None

    def test_hard_reports_the_labels_of_the_fit(self):
        x = rows(torch.float64)
        model = mixture(x)
        guide = HardPartition(model, components=C, capacity=N // C + 1)
        found = fit(EM(model, guide, empty="keep"), x, epochs=5, progress=False)
        report = partition_report(found, x, sample=N)
        assert report.sizes.tolist() == guide.sizes.tolist()
        joint = log_joints(found, x)
        gap = joint.logsumexp(1) - joint.gather(1, guide.labels.long().unsqueeze(1))[:, 0]
        torch.testing.assert_close(report.gap.mean, float(gap.mean()), rtol=1e-9, atol=1e-9)
        assert report.gap.missed > 0  # bounds on sizes keep rows from their best part
        assert report.entropy == 0

    def test_dead_and_reseeded_components(self):
        x = rows()
        model = mixture(x)
        with torch.no_grad():
            model.loc = torch.cat([x[:7], torch.full((1, D), 1e3)])
        found = fit(
            EM(model, FullPartition(model, components=C), empty="keep"), x, epochs=2, progress=False
        )
        report = partition_report(found, x)
        assert report.empty.tolist() == [7]
        assert math.isnan(report.part_entropy[7])
        assert "7; 0 re-seeded" in str(report)
        again = fit(EM(model, found.guide), x, epochs=2, progress=False)
        assert partition_report(again, x).reseeded == sum(again.history["reseeded"]) > 0

    def test_masked_rows_belong_nowhere(self):
        x, seen = rows(), torch.arange(N) % 3 > 0

        def model(x, seen):
            weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
            loc = pyro.param("loc", torch.tensor([[-3.0, 0.0], [3.0, 0.0]]))
            with pyro.plate("data", len(x)), poutine.mask(mask=seen):
                z = pyro.sample("z", MixtureWeights(weights))
                pyro.sample("x", DiagonalNormals(loc, torch.ones(2, D))[z], obs=x)

        found = fit(
            EM(model, FullPartition(model, components=2)), x, seen, epochs=2, progress=False
        )
        report = partition_report(found, x, seen, sample=N)
        assert report.rows == int(seen.sum()) == report.gap.rows
        assert seen[report.outliers].all()
        with pytest.raises(DataError, match="all rows are masked"):
            partition_report(found, x, torch.zeros_like(seen))

    def test_median_of_an_even_number_of_parts(self):
        x = torch.tensor([[-9.0], [0.0], [9.0], [99.0]], device="cpu").repeat_interleave(
            torch.tensor([56, 99, 44, 1], device="cpu"), 0
        )
        model = GaussianMixture(components=4, features=1)
        model.loc = torch.tensor([[-9.0], [0.0], [9.0], [99.0]])
        report = partition_report(
            fit(EM(model, FullPartition(model, components=4)), x, epochs=0, progress=False), x
        )
        assert "largest 99, median 50, smallest 1" in str(report)

    @pytest.mark.meta
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_components_as_probable_as_the_best_are_not_missed(self, dtype):
        """Of equal components a guide may hold either, and rounding decides which the exact sums prefer."""
        x = rows(dtype)
        found = truncated(x, epochs=1)
        with torch.no_grad():
            found.model.loc = torch.zeros_like(found.model.loc)
            found.model.scale = torch.ones_like(found.model.scale)
            found.model.weights = torch.full_like(found.model.weights, 1 / C)
        tipped = 1 / C + 8 * torch.finfo(dtype).eps * torch.randn(C, dtype=dtype, device="cpu")
        found.model.weights = tipped / tipped.sum()
        winner = found.guide.eval().posterior(x).winner
        assert bool((log_joints(found, x).argmax(1) != winner).any())  # or nothing would be tested
        assert partition_report(found, x, sample=N).gap.missed == 0


class TestNeighborRecall:
    def by_brute_force(self, found: Fit, x: torch.Tensor) -> torch.Tensor:
        """Divergences (C, C) over the rows of each component."""
        density = log_densities(found, x)
        winner = found.guide.posterior(x).candidates[0]
        table = torch.stack(
            [(density[winner == c, c : c + 1] - density[winner == c]).mean(0) for c in range(C)]
        )
        return table.fill_diagonal_(-torch.inf)

    @pytest.mark.meta
    def test_share_of_the_true_neighbors(self):
        x = rows(torch.float64)[: 4 * C]  # no component has more rows than are looked at
        found = truncated(x, neighbors=4)
        found.guide.eval()
        order = self.by_brute_force(found, x).argsort(1)
        live = found.guide.posterior(x).candidates[0].unique()
        for graph in (
            found.guide.graph.neighbors,
            order[:, :4],
            order[:, [0, 5, 6, 7]],
            order[:, [0, 1, 6, 7]],
        ):
            held = (order[:, 1:4, None] == graph[:, None, 1:]).any(-1)
            found.guide.graph.neighbors = graph.int()
            recall = partition_report(found, x).recall
            assert recall.share == pytest.approx(float(held[live].double().mean()))
            assert (recall.neighbors, recall.components) == (3, len(live))

    def test_sample_bounds_what_is_evaluated(self):
        x = rows()
        found = truncated(x)
        labels = found.guide.sets.table[:, 0].long()
        d, graph = found.guide.read(x), found.guide.graph.neighbors
        assert neighbor_recall(found.model, d, graph, labels, x, sample=1).components == 1
        assert neighbor_recall(found.model, d, graph[:, :1], labels, x) is None


class TestStability:
    def test_each_fit_keeps_its_own_params(self):
        """A second model in the store would take over the params of the first."""
        x = rows()
        a = truncated(x)
        pyro.clear_param_store()
        b = truncated(x, first=100)
        before = [copy.deepcopy(found.model.loc.detach()) for found in (a, b)]
        assert not torch.equal(*before)
        store = dict(pyro.get_param_store().named_parameters())
        report = partition_report(a, x, others=[b, a])
        for found, loc in zip((a, b), before, strict=True):
            torch.testing.assert_close(found.model.loc.detach(), loc, rtol=0, atol=0)
        assert all(store[name] is leaf for name, leaf in pyro.get_param_store().named_parameters())
        labels = [log_joints(found, x).argmax(1).numpy() for found in (a, b)]
        assert report.stability[0].rand == pytest.approx(adjusted_rand_score(*labels), abs=0.05)
        assert report.stability[0].rand < 0.99
        assert report.stability[1] == (1.0, 1.0)

    def test_labels_of_others(self):
        x = rows()
        model = mixture(x)
        guide = HardPartition(model, components=C)
        found = fit(EM(model, guide), x, epochs=3, progress=False)
        report = partition_report(found, x, others=[C - 1 - guide.labels])
        assert report.stability == ((1.0, 1.0),)
        for labels in (guide.labels.numpy(), guide.labels.tolist()):
            assert partition_report(found, x, others=[labels]).stability == ((1.0, 1.0),)
        with pytest.raises(DataError, match="labels of 300 and of 299 rows"):
            partition_report(found, x, others=[guide.labels[1:]])


class TestFits:
    @pytest.mark.parametrize(
        ("kind", "options"),
        [(FullPartition, {}), (TruncatedPartition, {"neighbors": 3}), (HardPartition, {})],
    )
    def test_nothing_changes(self, kind, options):
        x = rows()
        model = mixture(x)
        guide = kind(model, components=C, **options)
        found = fit(EM(model, guide), x, epochs=3, progress=False)
        before = copy.deepcopy(
            [
                guide.state_dict(),
                model.state_dict(),
                guide.rows_won,
                guide.evaluations,
                guide.training,
            ]
        )
        partition_report(found, x, sample=50)
        after = [
            guide.state_dict(),
            model.state_dict(),
            guide.rows_won,
            guide.evaluations,
            guide.training,
        ]
        assert str(after) == str(before)
        assert guide.reuse is None

    def test_same_generator_same_report(self):
        x = rows()
        found = truncated(x)
        draws = [
            partition_report(found, x, sample=20, generator=torch.Generator().manual_seed(s))
            for s in (1, 1, 2)
        ]
        assert str(draws[0]) == str(draws[1]) != str(draws[2])

    def test_minibatches_of_svi_beside_a_guide_of_other_sites(self):
        x = rows()

        def model(x, index=None, size=None):
            weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
            loc = pyro.param("loc", torch.tensor([[-3.0, 0.0], [3.0, 0.0]]))
            with data_plate(x, index, size):
                z = pyro.sample("z", MixtureWeights(weights))
                pyro.sample("x", DiagonalNormals(loc, torch.ones(2, D))[z], obs=x)

        guide = FullPartition(
            model, components=2, global_guide=AutoNormal(poutine.block(model, expose=["weights"]))
        )
        svi = SVI(model, guide, Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))
        found = fit(svi, x, batch_size=100, epochs=2, progress=False)
        report = partition_report(found, x, sample=N, batch_size=70)
        assert report.rows == N
        assert abs(report.gap.mean) < 1e-5  # one draw of the weights for both sides


def beside_by_hand(x, index=None, size=None):
    """A guide without a median."""
    counts = pyro.param(
        "counts", torch.full((3,), 4.0, device="cpu"), constraint=constraints.positive
    )
    return {"weights": pyro.sample("weights", dist.Dirichlet(counts))}


def with_latent_weights(x: torch.Tensor, kind=None, epochs: int = 1) -> Fit:
    """Overlapping parts, so that the weights decide on many rows."""

    def model(x, index=None, size=None):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, device="cpu")))
        loc = pyro.param("loc", torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], device="cpu"))
        with data_plate(x, index, size):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", DiagonalNormals(loc, torch.ones(3, D, device="cpu"))[z], obs=x)

    global_guide = kind(poutine.block(model, expose=["weights"])) if kind else beside_by_hand
    guide = FullPartition(model, components=3, global_guide=global_guide)
    svi = SVI(model, guide, Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))
    return fit(svi, x, epochs=epochs, progress=False)


class TestOtherLatentSites:
    """Everything in a report is at one point of the model's other latent sites, which it names."""

    x = torch.randn(200, D, generator=torch.Generator("cpu").manual_seed(0), device="cpu")

    @pytest.mark.meta
    @pytest.mark.parametrize("median", [True, False])
    def test_a_fit_agrees_with_itself(self, median):
        found = with_latent_weights(self.x, AutoNormal if median else None)
        report = partition_report(found, self.x, sample=200, others=[found])
        assert report.stability == ((1.0, 1.0),)
        assert abs(report.gap.mean) < 1e-5
        assert report.latents == (
            "weights at the guide's median" if median else "weights at one draw of the guide"
        )
        assert report.latents in str(report)

    def test_a_guide_that_was_never_called_agrees_with_itself(self):
        """Its first call sets it up, from random numbers that the second one does not draw."""
        found = with_latent_weights(self.x, AutoIAFNormal, epochs=0)
        assert partition_report(found, self.x, others=[found]).stability == ((1.0, 1.0),)

    @pytest.mark.parametrize("median", [True, False])
    def test_randomness_is_the_generators_alone(self, median):
        found = with_latent_weights(self.x, AutoNormal if median else None)

        def sizes(seed: int) -> list[int]:
            return partition_report(
                found, self.x, generator=torch.Generator("cpu").manual_seed(seed)
            ).sizes.tolist()

        one = sizes(1)
        torch.randn(3, device="cpu")
        assert sizes(1) == one
        assert (sizes(2) == one) == median

    def test_the_median_is_the_guides(self):
        found = with_latent_weights(self.x, AutoNormal)
        weights = found.guide.global_guide.median()["weights"]
        normal = torch.distributions.Normal(pyro.param("loc").detach(), 1.0)
        joint = weights.log() + normal.log_prob(self.x.unsqueeze(1)).sum(-1)
        expected = torch.bincount(joint.argmax(1), minlength=3)
        assert partition_report(found, self.x).sizes.tolist() == expected.tolist()

    @pytest.mark.parametrize("seeded", [True, False])
    def test_global_random_states_stay(self, seeded):
        found = with_latent_weights(self.x)
        generator = torch.Generator("cpu").manual_seed(0) if seeded else None
        before = repr(get_rng_state()), torch.get_rng_state()
        partition_report(found, self.x, others=[found], generator=generator)
        assert repr(get_rng_state()) == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])

    def test_no_other_sites(self):
        x = rows()
        assert partition_report(truncated(x, epochs=1), x).latents == ""


class TestRefusals:
    def test_options(self):
        x = rows()
        found = truncated(x, epochs=1)
        for options in ({"sample": 0}, {"sample": 2.5}, {"outliers": -1}):
            with pytest.raises(OptionError, match=next(iter(options))):
                partition_report(found, x, **options)

    def test_what_is_no_fit(self):
        x = rows()
        found = truncated(x, epochs=1)
        for other in (found.model, found.inference):
            with pytest.raises(
                OptionError, match=rf"fit is of type {type(other).__name__}: give a Fit"
            ):
                partition_report(other, x)
            with pytest.raises(
                OptionError, match=rf"others\[1\] is of type {type(other).__name__}: give a Fit"
            ):
                partition_report(found, x, others=[found, other])
        for others in (found, found.guide.sets.table[:, 0]):
            with pytest.raises(OptionError, match="give a list of fits or labels"):
                partition_report(found, x, others=others)

    def test_other_rows(self):
        x = rows()
        with pytest.raises(PartitionError, match="holds the state of 300 rows"):
            partition_report(truncated(x, epochs=1), x[:200])

    def test_several_blocks(self):
        x = rows()
        model = GaussianMixture(components=2 * C, features=D)
        guide = HardPartition(model, components=2 * C, blocks=2)
        guide.set_labels(torch.randint(C, (2, N)))
        with pytest.raises(OptionError, match="2 partitions side by side"):
            partition_report(fit(EM(model, guide), x, epochs=1, progress=False), x)
