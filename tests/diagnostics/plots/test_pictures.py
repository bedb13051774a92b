"""Pictures of partitions and of where components lie show the numbers that they were given."""

import io

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from pyro_mixtures.diagnostics.plots.drawing import color_of, marker_of
from pyro_mixtures.diagnostics.plots.neighbors import plot_neighbors
from pyro_mixtures.diagnostics.plots.pictures import plot_responsibilities, plot_sizes
from pyro_mixtures.diagnostics.plots.places import plane_of, plot_ellipses
from pyro_mixtures.diagnostics.plots.regions import plot_gate
from pyro_mixtures.diagnostics.reports.fitted_components import covariances, fitted_components
from pyro_mixtures.distributions import (
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
    Poissons,
)
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, Responsibilities, fit, fit_gate
from pyro_mixtures.models import GaussianMixture, MixtureOfRegressions


def draw(ax) -> None:
    """Whatever goes wrong only when a figure is rendered."""
    ax.figure.savefig(io.BytesIO(), format="png", dpi=40)


def border(ellipse) -> np.ndarray:
    """Points (100, 2) on an ellipse."""
    around = np.linspace(0, 2 * np.pi, 100)
    x, y = ellipse.width / 2 * np.cos(around), ellipse.height / 2 * np.sin(around)
    turn = np.radians(ellipse.angle)
    turned = np.stack([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y], 1)
    return turned + ellipse.center


def squared_distance(points: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    return np.einsum("ni,ij,nj->n", points, np.linalg.inv(covariance), points)


class TestSizes:
    def test_bars_stand_in_order_with_their_numbers(self):
        ax = plot_sizes(torch.tensor([5, 0, 20]))
        assert [bar.get_height() for bar in ax.patches] == [20, 5, 0]
        assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "0", "1"]
        assert ax.get_title(loc="left") == "25 rows in 2 of 3 parts"
        assert ax.get_yscale() == "linear"
        draw(ax)

    def test_many_parts_and_sizes_far_apart(self):
        sizes = np.arange(1000)
        ax = plot_sizes(sizes, ax=Figure().subplots())
        np.testing.assert_array_equal(ax.patches[0].get_data().values, sizes[::-1])
        assert ax.get_yscale() == "log"
        draw(ax)

    def test_sizes_below_one_are_drawn(self):
        ax = plot_sizes([0.001, 0.5, 0.499])
        assert ax.get_yscale() == "log"
        bottom, top = ax.get_ylim()
        assert bottom < 0.001 < 0.5 < top
        assert ax.get_title(loc="left") == "1 rows in 3 of 3 parts"

    @pytest.mark.parametrize(
        "sizes",
        [
            np.zeros(3),
            np.ones((2, 2)),
            np.array([3, -1]),
            np.array([]),
            np.array([np.nan, 1]),
            ["many"],
        ],
    )
    def test_refusals(self, sizes):
        with pytest.raises(DataError, match="sizes"):
            plot_sizes(sizes)


class TestResponsibilities:
    found = Responsibilities(
        torch.tensor([[3, 9], [7, 3], [3, 7], [9, 1]]),
        torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [1.0, 0.0]]),
    )

    def test_the_least_certain_rows_by_winner(self):
        ax = plot_responsibilities(self.found, count=3, numbers=torch.tensor([10, 20, 30, 40]))
        np.testing.assert_allclose(
            ax.get_images()[0].get_array(), [[0.9, 0, 0.1], [0.8, 0.2, 0], [0.4, 0.6, 0]]
        )
        assert [text.get_text() for text in ax.get_yticklabels()] == ["10", "30", "20"]
        assert [text.get_text() for text in ax.get_xticklabels()] == ["3", "7", "9"]
        draw(ax)

    def test_the_first_rows(self):
        ax = plot_responsibilities(self.found, count=2, order="first")
        assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "1"]

    def test_component_without_a_share_is_left_out(self):
        shown = plot_responsibilities(self.found, count=9).get_images()[0].get_array()
        assert shown.shape == (4, 3)  # components 3, 7 and 9, not 1
        np.testing.assert_allclose(shown.sum(1), 1)

    def test_winners_below_the_share_are_shown(self):
        found = Responsibilities(
            torch.tensor([[3, 9], [7, 3]]), torch.tensor([[0.004, 0.003], [0.005, 0.001]])
        )
        ax = plot_responsibilities(found)
        np.testing.assert_allclose(
            ax.get_images()[0].get_array(), [[0.004, 0], [0.001, 0.005]], rtol=1e-6
        )
        assert [text.get_text() for text in ax.get_xticklabels()] == ["3", "7"]
        draw(plot_responsibilities(Responsibilities(torch.tensor([[3, 9]]), torch.zeros(1, 2))))

    @pytest.mark.parametrize("wrong", [torch.nan, -0.1, 2.0])
    def test_what_is_no_probability(self, wrong):
        with pytest.raises(DataError, match="between 0 and 1"):
            plot_responsibilities(
                Responsibilities(torch.tensor([[0, 1]]), torch.tensor([[0.5, wrong]]))
            )

    def test_more_rows_than_numbers(self):
        probs = torch.rand(200, 60).softmax(-1)
        ax = plot_responsibilities(
            Responsibilities(torch.arange(60).expand(200, -1), probs), count=100
        )
        assert len(ax.get_yticks()) < 20
        draw(ax)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"count": 0}, OptionError, "count=0"),
            ({"order": "last"}, OptionError, "unknown order='last'"),
            ({"numbers": np.arange(3)}, DataError, r"numbers \(3,\) for 4 rows"),
        ],
    )
    def test_refusals(self, options, error, message):
        with pytest.raises(error, match=message):
            plot_responsibilities(self.found, **options)
        with pytest.raises(DataError, match="must both be"):
            plot_responsibilities(Responsibilities(torch.zeros(3, 2), torch.zeros(3, 1)))


class TestEllipses:
    def test_are_where_the_density_falls_to_that_of_so_many_deviations(self):
        covariance = np.array([[[2.0, 1.2], [1.2, 1.0]]])
        patch = plot_ellipses(np.array([[3.0, -1.0]]), covariance, deviations=1.5).patches[0]
        np.testing.assert_allclose(
            squared_distance(border(patch) - [3.0, -1.0], covariance[0]), 1.5**2
        )

    def test_are_projected_as_the_rows_are(self):
        """The ellipse of the projection is that of the covariance of projected draws."""
        generator = np.random.default_rng(0)
        root = generator.normal(size=(5, 5))
        rows = generator.normal(size=(20_000, 5)) @ root.T
        ax = plot_ellipses(np.zeros((1, 5)), (root @ root.T)[None], rows=rows, deviations=1.0)
        spread = np.cov(plane_of(np.zeros((1, 5)), None, rows)(rows).T)
        center = plane_of(np.zeros((1, 5)), None, rows)(np.zeros((1, 5)))
        np.testing.assert_allclose(
            squared_distance(border(ax.patches[0]) - center, spread), 1, atol=0.05
        )
        values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
        assert ax.get_xlabel() == f"Principal axis 1 ({values[0] / values.sum():.0%})"

    def test_without_rows_axes_are_those_of_the_mixture(self):
        loc = np.zeros((2, 3))
        loc[:, 2] = [-5, 5]
        plane = plane_of(loc, np.stack([np.diag([0.1, 4.0, 0.1])] * 2), None)
        np.testing.assert_allclose(np.abs(plane.axes), [[0, 0, 1], [0, 1, 0]], atol=1e-12)

    def test_colours_and_numbers_are_those_of_the_components(self):
        numbers, labels = torch.tensor([2, 9]), torch.tensor([2, 9, 9, -1])
        ax = plot_ellipses(
            torch.zeros(2, 2),
            torch.eye(2).expand(2, 2, 2),
            rows=torch.rand(4, 2),
            labels=labels,
            numbers=numbers,
        )
        assert [to_hex(patch.get_edgecolor()).upper() for patch in ax.patches] == [
            color_of(2),
            color_of(9),
        ]
        assert [text.get_text() for text in ax.texts] == ["2", "9"]
        assert [len(dots.get_offsets()) for dots in ax.collections] == [1, 1, 2]
        assert color_of(2) == color_of(9)  # colours repeat,
        assert marker_of(2) != marker_of(9)  # then markers tell them apart
        draw(ax)

    @pytest.mark.parametrize(
        ("loc", "covariance", "options", "message"),
        [
            (np.zeros((2, 2)), np.zeros((2, 3, 3)), {}, r"\(K, D\) and \(K, D, D\)"),
            (np.zeros((2, 1)), np.ones((2, 1, 1)), {}, "two features or more"),
            (
                np.zeros((1, 2)),
                np.eye(2)[None],
                {"rows": np.zeros((5, 3))},
                r"as many as the means: \(5, 3\)",
            ),
            (
                np.zeros((1, 2)),
                np.eye(2)[None],
                {"rows": np.zeros((5, 2)), "labels": np.zeros(4)},
                "for 5 rows",
            ),
            (
                np.zeros((2, 2)),
                np.stack([np.eye(2)] * 2),
                {"numbers": [1]},
                r"numbers \(1,\) for 2 components",
            ),
            (np.full((1, 3), np.nan), np.eye(3)[None], {}, "loc holds NaN or infinity"),
            (np.zeros((1, 3)), np.full((1, 3, 3), np.inf), {}, "covariance holds NaN or infinity"),
            (
                np.zeros((1, 3)),
                np.eye(3)[None],
                {"rows": np.full((5, 3), np.nan)},
                "rows holds NaN or infinity",
            ),
            ([["a", "b"]], np.eye(2)[None], {}, "numbers"),
            (torch.zeros(1, 2).to_sparse(), np.eye(2)[None], {}, "dense"),
        ],
    )
    def test_refusals(self, loc, covariance, options, message):
        with pytest.raises(DataError, match=message):
            plot_ellipses(loc, covariance, **options)

    def test_features_of_other_units_do_not_make_a_line(self):
        """Age and income: on equal scales the whole picture would be one vertical line."""
        rows = np.random.default_rng(0).normal(size=(200, 2)) * [10, 20_000] + [40, 50_000]
        covariance = np.diag([100.0, 4e8])[None]
        ax = plot_ellipses(rows.mean(0, keepdims=True), covariance, rows=rows)
        draw(ax)
        assert ax.get_aspect() == "auto"
        assert np.ptp(ax.get_xlim()) < 2 * np.ptp(rows[:, 0])
        assert plot_ellipses(np.zeros((1, 2)), np.diag([1.0, 4.0])[None]).get_aspect() == 1
        graph = np.array([[0, 1], [1, 0]])
        assert plot_neighbors(np.array([[30.0, 2e4], [50.0, 9e4]]), graph).get_aspect() == "auto"
        assert plot_neighbors(np.eye(2), graph).get_aspect() == 1


class TestNeighbors:
    def test_edges_go_one_way_or_both(self):
        loc = np.array([[0.0, 0], [1, 0], [0, 1], [5, 5]])
        graph = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 1, 3], [3, 2, 0]])
        ax = plot_neighbors(loc, graph, nearest=2, sizes=np.array([4, 2, 1, 0]))
        single, mutual, dots, crosses = ax.collections
        ends = {tuple(map(tuple, edge)) for edge in mutual.get_segments()}
        assert ends == {tuple(map(tuple, loc[[a, b]])) for a, b in ((0, 1), (1, 2), (2, 3))}
        ends = {tuple(map(tuple, edge)) for edge in single.get_segments()}
        assert ends == {tuple(map(tuple, loc[[a, b]])) for a, b in ((0, 2), (3, 0))}
        assert (len(dots.get_offsets()), len(crosses.get_offsets())) == (3, 1)
        draw(ax)

    def test_components_that_have_all_lost_their_rows(self):
        ax = plot_neighbors(np.eye(2), np.array([[0, 1], [1, 0]]), sizes=[0, 0])
        assert len(ax.collections[-1].get_offsets()) == 2
        draw(ax)

    def test_nearest_alone(self):
        ax = plot_neighbors(
            np.eye(3)[:, :2], np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]]), nearest=1
        )
        assert [len(lines.get_segments()) for lines in ax.collections[:2]] == [1, 1]
        assert "their 1 nearest" in ax.get_title(loc="left")

    @pytest.mark.parametrize(
        ("loc", "graph", "options", "message"),
        [
            (np.zeros((3, 2)), np.zeros((2, 2)), {}, r"\(C, D\) and \(C, G\)"),
            (np.zeros((2, 2)), np.zeros((2, 2)), {"sizes": np.ones(3)}, "for 2 components"),
            (np.zeros((2, 1)), np.zeros((2, 2)), {}, "two features"),
            (np.zeros((2, 2)), np.array([[0, 2], [1, 0]]), {}, "component 2, but there are 2"),
            (np.zeros((2, 2)), np.array([[0, -1], [1, 0]]), {}, "component -1, but there are 2"),
            (
                np.zeros((2, 2)),
                np.zeros((2, 2)),
                {"sizes": [np.nan, 1]},
                "sizes holds NaN or infinity",
            ),
            (np.zeros((2, 2)), np.zeros((2, 2)), {"sizes": [-1, 1]}, "negative"),
            (np.full((2, 2), np.nan), np.zeros((2, 2)), {}, "loc holds NaN or infinity"),
            (
                np.zeros((2, 2)),
                np.zeros((2, 2)),
                {"rows": np.full((5, 2), np.inf)},
                "rows holds NaN or infinity",
            ),
        ],
    )
    def test_refusals(self, loc, graph, options, message):
        with pytest.raises(DataError, match=message):
            plot_neighbors(loc, graph, **options)


class TestGate:
    def test_regions_are_what_the_gate_says(self):
        x = torch.rand(60, 2) * 4 - 2
        labels = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        gate = fit_gate(x, labels, 5)
        ax = plot_gate(gate, x, labels=labels, resolution=40)
        image = ax.get_images()[0]
        left, right, bottom, top = image.get_extent()
        for across, up in ((3, 5), (35, 8), (20, 30)):  # pixels' centres
            at = [
                left + (right - left) * (across + 0.5) / 40,
                bottom + (top - bottom) * (up + 0.5) / 40,
            ]
            assert image.get_array()[up, across] == int(
                gate(torch.tensor([at]))
            )  # parts 0 to 3 all have rows
        assert sorted(text.get_text() for text in ax.texts) == ["0", "1", "2", "3"]
        assert ax.get_title(loc="left") == "Regions of 4 of the gate's 5 parts"
        draw(ax)

    def test_borders_lie_between_regions(self):
        x = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [1.0, 1.0]]).repeat(3, 1)
        ax = plot_gate(fit_gate(x, (x[:, 0] > 0).long(), 2), x, resolution=10)
        sides = np.array(ax.collections[0].get_segments())
        np.testing.assert_allclose(sides[..., 0], 0, atol=1e-6)
        np.testing.assert_allclose(np.sort(sides[..., 1], None)[[0, -1]], ax.get_ylim())
        assert len(sides) == 10

    def test_numbers_lie_in_their_regions(self):
        x = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64).repeat(4, 1)
        gate = fit_gate(x, torch.arange(12) % 3, 3)
        for text in plot_gate(gate, x).texts:
            assert int(gate(torch.tensor([text.get_position()], dtype=torch.float64))) == int(
                text.get_text()
            )

    def test_one_region_and_constant_features(self):
        x = torch.zeros(4, 2)
        draw(plot_gate(fit_gate(x, torch.zeros(4, dtype=torch.long), 2), x, resolution=10))

    def test_arrays_and_lists(self):
        x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
        labels = [0, 1, 0, 1, 0, -1]
        gate = fit_gate(torch.from_numpy(x), torch.arange(6) % 2, 2)
        for rows in (x, x.tolist()):
            ax = plot_gate(gate, rows, labels=labels, resolution=10)
            assert sum(len(dots.get_offsets()) for dots in ax.collections[1:]) == 6

    def test_refusals(self):
        x = torch.rand(6, 2)
        gate = fit_gate(x, torch.arange(6) % 2, 2)
        with pytest.raises(DataError, match=r"rows are \(6, 3\)"):
            plot_gate(gate, torch.rand(6, 3))
        with pytest.raises(DataError, match=r"labels \(5,\) for 6 rows"):
            plot_gate(gate, x, labels=torch.zeros(5))
        with pytest.raises(DataError, match="rows holds NaN or infinity"):
            plot_gate(gate, torch.full((6, 2), torch.nan))
        with pytest.raises(DataError, match="numbers"):
            plot_gate(gate, x, labels=["a"] * 6)
        with pytest.raises(OptionError, match="gate is of type int"):
            plot_gate(3, x)
        with pytest.raises(OptionError, match="resolution=1"):
            plot_gate(gate, x, resolution=1)


class TestComponents:
    @pytest.mark.meta
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_covariances(self, dtype):
        options = {
            "generator": torch.Generator("cpu").manual_seed(0),
            "dtype": dtype,
            "device": "cpu",
        }
        loc, scale = torch.zeros(4, 3, dtype=dtype, device="cpu"), torch.rand(4, 3, **options) + 0.5
        tril = torch.randn(4, 3, 3, **options).tril(-1) + torch.diag_embed(scale)
        factor, some = torch.randn(4, 3, 2, **options), torch.tensor([3, 1], device="cpu")
        expected = {
            DiagonalNormals(loc, scale): torch.diag_embed(scale**2),
            DiagonalNormals(loc, scale[0]): torch.diag_embed(scale[:1] ** 2).expand(4, 3, 3),
            IsotropicNormals(loc, scale[:, 0]): torch.diag_embed(scale[:, :1].expand(4, 3) ** 2),
            FullNormals(loc, tril): tril @ tril.mT,
            FullNormals(loc, tril[0]): (tril[:1] @ tril[:1].mT).expand(4, 3, 3),
            FactorAnalyzers(loc, factor, scale): factor @ factor.mT + torch.diag_embed(scale),
        }
        for family, covariance in expected.items():
            torch.testing.assert_close(
                covariances(family, some), covariance[some].double(), rtol=1e-5, atol=1e-5
            )
        assert covariances(Poissons(torch.ones(4, 3, dtype=dtype, device="cpu")), some) is None

    def test_the_site_with_places_is_found(self):
        x, y = torch.rand(40, 2), torch.rand(40)
        model = MixtureOfRegressions(components=2, features=2, input_density=1.0)
        found = fit(EM(model, FullPartition(model, components=2)), x, y, epochs=2, progress=False)
        components = fitted_components(found, x[::2], y[::2])
        assert components.site == "x"
        torch.testing.assert_close(components.loc, model.loc.detach())
        torch.testing.assert_close(components.rows, x[::2])

    def test_none_without_places(self):
        x, y = torch.rand(40, 2), torch.rand(40)
        model = MixtureOfRegressions(components=2, features=2)
        found = fit(EM(model, FullPartition(model, components=2)), x, y, epochs=2, progress=False)
        assert fitted_components(found, x, y) is None

    def test_shared_covariance(self):
        x = torch.randn(60, 2)
        model = GaussianMixture(components=3, features=2, covariance="full", tied=True)
        found = fit(EM(model, FullPartition(model, components=3)), x, epochs=2, progress=False)
        spread = covariances(fitted_components(found, x).family, torch.arange(3))
        expected = (model.scale_tril @ model.scale_tril.mT).detach().double().expand(3, 2, 2)
        torch.testing.assert_close(spread, expected, rtol=1e-5, atol=1e-6)
