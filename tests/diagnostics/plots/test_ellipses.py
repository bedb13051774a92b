"""Ellipses have the covariances of the components, in the plane of the rows."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from pyro_mixtures.diagnostics.plots.drawing import color_of, marker_of
from pyro_mixtures.diagnostics.plots.ellipses import plot_ellipses
from pyro_mixtures.diagnostics.plots.neighbors import plot_neighbors
from pyro_mixtures.diagnostics.plots.plane import plane_of
from pyro_mixtures.errors import DataError
from tests.diagnostics.plots.rendering import draw


def border(ellipse) -> np.ndarray:
    """Points (100, 2) on an ellipse."""
    around = np.linspace(0, 2 * np.pi, 100)
    x, y = ellipse.width / 2 * np.cos(around), ellipse.height / 2 * np.sin(around)
    turn = np.radians(ellipse.angle)
    turned = np.stack([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y], 1)
    return turned + ellipse.center


def squared_distance(points: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    return np.einsum("ni,ij,nj->n", points, np.linalg.inv(covariance), points)


class TestEllipses:
    def test_border_is_at_the_given_number_of_deviations(self):
        covariance = np.array([[[2.0, 1.2], [1.2, 1.0]]])
        patch = plot_ellipses(np.array([[3.0, -1.0]]), covariance, deviations=1.5).patches[0]
        np.testing.assert_allclose(
            squared_distance(border(patch) - [3.0, -1.0], covariance[0]), 1.5**2
        )

    def test_ellipses_are_projected_like_the_rows(self):
        """The ellipse of the projection has the covariance of projected draws."""
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

    def test_without_rows_the_axes_are_those_of_the_mixture(self):
        loc = np.zeros((2, 3))
        loc[:, 2] = [-5, 5]
        plane = plane_of(loc, np.stack([np.diag([0.1, 4.0, 0.1])] * 2), None)
        np.testing.assert_allclose(np.abs(plane.axes), [[0, 0, 1], [0, 1, 0]], atol=1e-12)

    def test_colors_and_numbers_are_those_of_the_components(self):
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
        assert color_of(2) == color_of(9)  # colors repeat,
        assert marker_of(2) != marker_of(9)  # and markers differ
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
                r"as many as the means have, not \(5, 3\)",
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
            (np.full((1, 3), np.nan), np.eye(3)[None], {}, "loc contains NaN or infinity"),
            (
                np.zeros((1, 3)),
                np.full((1, 3, 3), np.inf),
                {},
                "covariance contains NaN or infinity",
            ),
            (
                np.zeros((1, 3)),
                np.eye(3)[None],
                {"rows": np.full((5, 3), np.nan)},
                "rows contains NaN or infinity",
            ),
            ([["a", "b"]], np.eye(2)[None], {}, "numbers"),
            (torch.zeros(1, 2).to_sparse(), np.eye(2)[None], {}, "dense"),
        ],
    )
    def test_refusals(self, loc, covariance, options, message):
        with pytest.raises(DataError, match=message):
            plot_ellipses(loc, covariance, **options)

    def test_features_of_different_units_do_not_reduce_to_a_line(self):
        """Age and income: with equal scales the picture would be a vertical line."""
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
