"""The HTML report is a self-contained page with all sections that apply, or is not written."""

import sys

import pyro
import pytest
import torch

from pyro_mixtures.diagnostics.partition_information.report import (
    ClusterDependence,
    PartitionInformation,
    VariableInformation,
)
from pyro_mixtures.diagnostics.reports.html import report
from pyro_mixtures.diagnostics.reports.partition_report import partition_report
from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights, Poissons
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, Fit, fit, fit_gate
from pyro_mixtures.models import GaussianMixture, MixtureOfRegressions
from tests.diagnostics.reports.html_reader import Reader

pytestmark = pytest.mark.usefixtures("on_one_thread")


def gaussian(x: torch.Tensor, kind=TruncatedPartition, **options) -> Fit:
    model = GaussianMixture(components=4, features=x.shape[1])
    return fit(EM(model, kind(model, components=4, **options)), x, epochs=3, progress=False)


class TestReport:
    def test_all_sections_that_apply(self, tmp_path):
        x = torch.randn(120, 4)
        result = gaussian(x, neighbors=3)
        labels = result.guide.sets.table[:, 0].long()
        information = PartitionInformation(
            [VariableInformation("<x0>", "feature", 0.5, 0.01, 0.02)], [], 0.7, 100
        )
        path = tmp_path / "report.html"
        summary = report(
            result,
            path,
            x,
            title="A & <b>",
            others=[labels],
            image_shape=(2, 2),
            information=information,
            generator=torch.Generator().manual_seed(0),
        )
        page = Reader(path.read_text("utf-8"))
        assert all(reference.startswith("data:") for reference in page.references)
        assert "script" not in page.tags
        assert "b" not in page.tags  # tags in titles and names are escaped
        text = "\n".join(page.text)
        assert "dependences" not in text
        for fragment in (
            "A & <b>",
            "<x0>",
            "TruncatedPartition(components=4, candidates=3, neighbors=3",
            "empty='reseed'",
        ):
            assert fragment in text
        for _, value in summary.lines():
            assert value in text
        # History, sizes, responsibilities, sheet, ellipses, graph, information.
        assert len(page.pictures()) == 7
        assert all(picture.std() > 0.01 for picture in page.pictures())
        assert str(summary) == str(
            partition_report(result, x, others=[labels], generator=torch.Generator().manual_seed(0))
        )

    def test_gate_and_hard_partition(self, tmp_path):
        x = torch.randn(80, 2)
        result = gaussian(x, HardPartition)
        gate = fit_gate(x, result.guide.labels.long(), 4)
        report(result, tmp_path / "page.html", x, gate=gate)
        page = Reader((tmp_path / "page.html").read_text("utf-8"))
        assert "Gate" in page.text
        assert len(page.pictures()) == 5  # history, sizes, responsibilities, ellipses, gate

    def test_components_without_places_and_a_plain_program(self, tmp_path):
        x = torch.poisson(torch.ones(60, 1) * 4)
        rate = pyro.param(
            "rate",
            torch.tensor([[1.0], [9.0]]),
            constraint=torch.distributions.constraints.positive,
        )

        def mixed_counts(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", MixtureWeights(torch.ones(2) / 2))
                pyro.sample("x", Poissons(pyro.param("rate"))[z], obs=x)

        result = fit(
            EM(mixed_counts, FullPartition(mixed_counts, components=2)), x, epochs=2, progress=False
        )
        report(result, tmp_path / "page.html", x)
        page = Reader((tmp_path / "page.html").read_text("utf-8"))
        assert "mixed_counts()" in page.text
        assert "Components" not in page.text
        assert len(page.pictures()) == 3
        assert rate.shape == (2, 1)

    @pytest.mark.parametrize("tested", [True, False])
    def test_dependences(self, tmp_path, tested):
        """Local dependences come first if tests were made, then the largest within - overall."""
        x = torch.randn(50, 1)
        p = (0.01, 0.9) if tested else (None, None)
        variables = [
            VariableInformation(f"x{d}", "feature", 1 - d / 30, None, None) for d in range(28)
        ]
        dependences = [
            ClusterDependence(f"x{d}", 0, 90, 0.5 - d / 100, 0.2, p[1], p[1]) for d in range(24)
        ]
        dependences += [ClusterDependence("dull", 0, 90, float("nan"), 0.2, p[1], p[1])]
        dependences += [
            ClusterDependence("local", cluster, 90, 0.3 - cluster / 10, 0.25, adjusted, adjusted)
            for cluster, adjusted in enumerate(p)
        ]
        path = tmp_path / "page.html"
        report(
            gaussian(x, FullPartition),
            path,
            x,
            information=PartitionInformation(variables, dependences, 0.7, 180),
        )
        page = Reader(path.read_text("utf-8"))
        text = " ".join(page.text)
        assert "20 of 28 variables" in text
        assert "20 of 27 dependences" in text
        assert ("The first 1 are significant in some clusters only" in text) == tested
        caption = next(
            number for number, text in enumerate(page.text) if "of 27 dependences" in text
        )
        listed = [cell for cell in page.text[caption:] if cell[0] == "x" or cell == "local"]
        assert listed == (["local"] * tested + [f"x{d}" for d in range(24)])[:20]
        assert "None" not in page.text

    def test_no_responsibility_is_large_enough_to_be_shown(self, tmp_path):
        x = torch.randn(40, 2)
        model = GaussianMixture(components=300, features=2)
        model.loc = 1e-3 * torch.randn(300, 2)
        result = fit(EM(model, FullPartition(model, components=300)), x, epochs=0, progress=False)
        report(result, tmp_path / "page.html", x)
        assert len(Reader((tmp_path / "page.html").read_text("utf-8")).pictures()) == 3

    def test_masked_rows_may_hold_anything(self, tmp_path):
        x, seen = torch.randn(90, 3), torch.arange(90) % 3 > 0
        x[~seen] = torch.nan

        def model(x, seen):
            loc = pyro.param("loc", torch.eye(3))
            with pyro.plate("data", len(x)), pyro.poutine.mask(mask=seen):
                z = pyro.sample("z", MixtureWeights(torch.ones(3) / 3))
                pyro.sample("x", DiagonalNormals(loc, torch.ones(3, 3))[z], obs=x)

        with pyro.validation_enabled(False):  # or torch refuses the NaN rows
            result = fit(
                EM(model, FullPartition(model, components=3)), x, seen, epochs=2, progress=False
            )
            report(result, tmp_path / "page.html", x, seen)
        assert "with 60 of its rows" in (tmp_path / "page.html").read_text("utf-8")

    def test_same_fit_same_page(self, tmp_path):
        x = torch.randn(50, 1)
        result = gaussian(x, FullPartition)
        pages = []
        for _ in range(2):
            report(result, tmp_path / "page.html", x, generator=torch.Generator().manual_seed(0))
            pages.append((tmp_path / "page.html").read_text("utf-8"))
        assert pages[0] == pages[1]
        assert len(Reader(pages[0]).pictures()) == 3  # no ellipses for one feature
        pyplot = sys.modules.get("matplotlib.pyplot")  # ArviZ may have imported it
        assert pyplot is None or not pyplot.get_fignums()

    def test_refusals_leave_no_file(self, tmp_path):
        x = torch.randn(50, 2)
        result = gaussian(x, FullPartition)
        with pytest.raises(DataError, match="are not rows of"):
            report(result, tmp_path / "page.html", x, image_shape=(3, 3))
        pyro.clear_param_store()
        model = MixtureOfRegressions(components=2, features=2)
        regressions = fit(
            EM(model, FullPartition(model, components=2)), x, x[:, 0], epochs=1, progress=False
        )
        with pytest.raises(OptionError, match=r"image_shape=\(1, 2\), but no observed site"):
            report(regressions, tmp_path / "page.html", x, x[:, 0], image_shape=(1, 2))
        with pytest.raises(OptionError, match="fit is of type EM"):
            report(result.inference, tmp_path / "page.html", x)
        with pytest.raises(OptionError, match="sample=0"):
            report(result, tmp_path / "page.html", x, sample=0)
        with pytest.raises(OptionError, match="is a directory: pass"):
            report(None, tmp_path, x)  # before anything is computed
        assert not list(tmp_path.iterdir())
