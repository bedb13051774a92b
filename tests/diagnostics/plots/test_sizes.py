"""The bar chart of sizes shows the numbers it is given."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pyro_mixtures.diagnostics.plots.sizes import plot_sizes
from pyro_mixtures.errors import DataError
from tests.diagnostics.plots.rendering import draw


class TestSizes:
    def test_bars_are_sorted_and_numbered(self):
        ax = plot_sizes(torch.tensor([5, 0, 20]))
        assert [bar.get_height() for bar in ax.patches] == [20, 5, 0]
        assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "0", "1"]
        assert ax.get_title(loc="left") == "25 rows in 2 of 3 components"
        assert ax.get_yscale() == "linear"
        draw(ax)

    def test_many_components_of_very_different_sizes(self):
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
        assert ax.get_title(loc="left") == "1 rows in 3 of 3 components"

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
