"""The plot of the neighbor graph shows its edges and the empty components."""

import numpy as np
import pytest
import torch

from pyro_mixtures.diagnostics.plots.neighbors import plot_neighbors
from pyro_mixtures.errors import DataError
from tests.diagnostics.plots.rendering import draw


class TestNeighbors:
    def test_edges_are_one_way_or_mutual(self):
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

    def test_all_components_are_empty(self):
        ax = plot_neighbors(np.eye(2), np.array([[0, 1], [1, 0]]), sizes=[0, 0])
        assert len(ax.collections[-1].get_offsets()) == 2
        draw(ax)

    def test_nearest_only(self):
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
                "sizes contains NaN or infinity",
            ),
            (np.zeros((2, 2)), np.zeros((2, 2)), {"sizes": [-1, 1]}, "negative"),
            (np.full((2, 2), np.nan), np.zeros((2, 2)), {}, "loc contains NaN or infinity"),
            (
                np.zeros((2, 2)),
                np.zeros((2, 2)),
                {"rows": np.full((5, 2), np.inf)},
                "rows contains NaN or infinity",
            ),
        ],
    )
    def test_refusals(self, loc, graph, options, message):
        with pytest.raises(DataError, match=message):
            plot_neighbors(loc, graph, **options)
