"""Partition reports equal brute force for every kind of guide, and do not change the fit."""

import copy
import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from sklearn.metrics import adjusted_rand_score
from torch.distributions import constraints

from pyro_mixtures.diagnostics.reports.partition_report import partition_report
from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import DataError, OptionError, PartitionError
from pyro_mixtures.guides import (
    FullPartition,
    HardPartition,
    ParallelHardPartition,
    TruncatedPartition,
)
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.poutine import data_plate
from tests.diagnostics.reports.fitted_mixtures import C, D, N, log_joints, mixture, rows, truncated

pytestmark = pytest.mark.usefixtures("on_one_thread")


class TestNumbers:
    @pytest.mark.meta
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_truncated(self, dtype):
        x = rows(dtype)
        result = truncated(x)
        report = partition_report(result, x, sample=N, outliers=5)
        joint = log_joints(result, x)
        candidate_joint = joint.gather(1, result.guide.sets.table.long())
        near = {
            "rtol": 1e-4 if dtype == torch.float32 else 1e-9,
            "atol": 1e-5 if dtype == torch.float32 else 1e-9,
        }
        winner = result.guide.sets.table.long().gather(1, candidate_joint.argmax(1, keepdim=True))[
            :, 0
        ]
        torch.testing.assert_close(report.sizes, torch.bincount(winner, minlength=C))
        gap = joint.logsumexp(1) - candidate_joint.logsumexp(1)
        assert float(gap.max()) > 0.01  # otherwise nothing is tested
        torch.testing.assert_close(report.gap.mean, float(gap.mean()), **near)
        torch.testing.assert_close(report.gap.largest, float(gap.max()), **near)
        assert report.gap.missed == pytest.approx(
            float((joint.argmax(1) != winner).double().mean())
        )
        assert report.gap.rows == N
        entropy = torch.distributions.Categorical(logits=candidate_joint).entropy()
        torch.testing.assert_close(report.entropy, float(entropy.mean()), **near)
        by_component = torch.stack([entropy[winner == c].mean() for c in range(C)])
        torch.testing.assert_close(report.component_entropy, by_component, equal_nan=True, **near)
        worst = candidate_joint.logsumexp(1).sort()
        assert report.outliers.tolist() == worst.indices[:5].tolist()
        torch.testing.assert_close(report.outlier_log_evidence, worst.values[:5], **near)

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
        result = fit(EM(model, guide, empty="keep"), x, epochs=5, progress=False)
        report = partition_report(result, x, sample=N)
        assert report.sizes.tolist() == guide.sizes.tolist()
        joint = log_joints(result, x)
        gap = joint.logsumexp(1) - joint.gather(1, guide.labels.long().unsqueeze(1))[:, 0]
        torch.testing.assert_close(report.gap.mean, float(gap.mean()), rtol=1e-9, atol=1e-9)
        assert report.gap.missed > 0  # the capacity keeps rows from their best cluster
        assert report.entropy == 0

    def test_empty_and_reseeded_components(self):
        x = rows()
        model = mixture(x)
        with torch.no_grad():
            model.loc = torch.cat([x[:7], torch.full((1, D), 1e3)])
        result = fit(
            EM(model, FullPartition(model, components=C), empty="keep"), x, epochs=2, progress=False
        )
        report = partition_report(result, x)
        assert report.empty.tolist() == [7]
        assert math.isnan(report.component_entropy[7])
        assert "number 7; 0 re-seeded" in str(report)
        again = fit(EM(model, result.guide), x, epochs=2, progress=False)
        assert partition_report(again, x).reseeded == sum(again.history["reseeded"]) > 0

    def test_masked_rows_have_no_component(self):
        x, seen = rows(), torch.arange(N) % 3 > 0

        def model(x, seen):
            weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
            loc = pyro.param("loc", torch.tensor([[-3.0, 0.0], [3.0, 0.0]]))
            with pyro.plate("data", len(x)), poutine.mask(mask=seen):
                z = pyro.sample("z", MixtureWeights(weights))
                pyro.sample("x", DiagonalNormals(loc, torch.ones(2, D))[z], obs=x)

        result = fit(
            EM(model, FullPartition(model, components=2)), x, seen, epochs=2, progress=False
        )
        report = partition_report(result, x, seen, sample=N)
        assert report.rows == int(seen.sum()) == report.gap.rows
        assert seen[report.outliers].all()
        with pytest.raises(DataError, match="all rows are masked"):
            partition_report(result, x, torch.zeros_like(seen))

    def test_median_of_an_even_number_of_components(self):
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
        """A guide may hold either of two equal components; rounding decides which is the best."""
        x = rows(dtype)
        result = truncated(x, epochs=1)
        with torch.no_grad():
            result.model.loc = torch.zeros_like(result.model.loc)
            result.model.scale = torch.ones_like(result.model.scale)
            result.model.weights = torch.full_like(result.model.weights, 1 / C)
        tipped = 1 / C + 8 * torch.finfo(dtype).eps * torch.randn(C, dtype=dtype, device="cpu")
        result.model.weights = tipped / tipped.sum()
        winner = result.guide.eval().posterior(x).winner
        assert bool(
            (log_joints(result, x).argmax(1) != winner).any()
        )  # otherwise nothing is tested
        assert partition_report(result, x, sample=N).gap.missed == 0


class TestStability:
    def test_each_fit_keeps_its_own_params(self):
        """A second model in the store would adopt the params of the first."""
        x = rows()
        a = truncated(x)
        pyro.clear_param_store()
        b = truncated(x, first=100)
        before = [copy.deepcopy(result.model.loc.detach()) for result in (a, b)]
        assert not torch.equal(*before)
        store = dict(pyro.get_param_store().named_parameters())
        report = partition_report(a, x, others=[b, a])
        for result, loc in zip((a, b), before, strict=True):
            torch.testing.assert_close(result.model.loc.detach(), loc, rtol=0, atol=0)
        assert all(store[name] is leaf for name, leaf in pyro.get_param_store().named_parameters())
        labels = [log_joints(result, x).argmax(1).numpy() for result in (a, b)]
        assert report.stability[0].rand == pytest.approx(adjusted_rand_score(*labels), abs=0.05)
        assert report.stability[0].rand < 0.99
        assert report.stability[1] == (1.0, 1.0)

    def test_labels_of_others(self):
        x = rows()
        model = mixture(x)
        guide = HardPartition(model, components=C)
        result = fit(EM(model, guide), x, epochs=3, progress=False)
        report = partition_report(result, x, others=[C - 1 - guide.labels])
        assert report.stability == ((1.0, 1.0),)
        for labels in (guide.labels.numpy(), guide.labels.tolist()):
            assert partition_report(result, x, others=[labels]).stability == ((1.0, 1.0),)
        with pytest.raises(DataError, match="labels of 300 rows, b of 299"):
            partition_report(result, x, others=[guide.labels[1:]])


class TestFits:
    @pytest.mark.parametrize(
        ("kind", "options"),
        [(FullPartition, {}), (TruncatedPartition, {"neighbors": 3}), (HardPartition, {})],
    )
    def test_nothing_changes(self, kind, options):
        x = rows()
        model = mixture(x)
        guide = kind(model, components=C, **options)
        result = fit(EM(model, guide), x, epochs=3, progress=False)
        before = copy.deepcopy(
            [
                guide.state_dict(),
                model.state_dict(),
                guide.rows_won,
                guide.evaluations,
                guide.training,
            ]
        )
        partition_report(result, x, sample=50)
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
        result = truncated(x)
        draws = [
            partition_report(result, x, sample=20, generator=torch.Generator().manual_seed(s))
            for s in (1, 1, 2)
        ]
        assert str(draws[0]) == str(draws[1]) != str(draws[2])

    def test_minibatches_of_svi_with_a_global_guide(self):
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
        result = fit(svi, x, batch_size=100, epochs=2, progress=False)
        report = partition_report(result, x, sample=N, batch_size=70)
        assert report.rows == N
        assert abs(report.gap.mean) < 1e-5  # one draw of the weights for both sides


class TestRefusals:
    def test_options(self):
        x = rows()
        result = truncated(x, epochs=1)
        for options in ({"sample": 0}, {"sample": 2.5}, {"outliers": -1}):
            with pytest.raises(OptionError, match=next(iter(options))):
                partition_report(result, x, **options)

    def test_arguments_that_are_not_fits(self):
        x = rows()
        result = truncated(x, epochs=1)
        for other in (result.model, result.inference):
            with pytest.raises(
                OptionError, match=rf"fit is of type {type(other).__name__}: pass a Fit"
            ):
                partition_report(other, x)
            with pytest.raises(
                OptionError, match=rf"others\[1\] is of type {type(other).__name__}: pass a Fit"
            ):
                partition_report(result, x, others=[result, other])
        for others in (result, result.guide.sets.table[:, 0]):
            with pytest.raises(OptionError, match="pass a list of fits or labels"):
                partition_report(result, x, others=others)

    def test_other_rows(self):
        x = rows()
        with pytest.raises(PartitionError, match="holds the state of 300 rows"):
            partition_report(truncated(x, epochs=1), x[:200])

    def test_several_restarts(self):
        x = rows()
        model = GaussianMixture(components=2 * C, features=D)
        guide = ParallelHardPartition(model, components=2 * C, restarts=2)
        guide.set_labels(torch.randint(C, (2, N)))
        with pytest.raises(OptionError, match="holds 2 partitions"):
            partition_report(fit(EM(model, guide), x, epochs=1, progress=False), x)
