"""The heat map of responsibilities shows the numbers it is given."""

import numpy as np
import pytest
import torch

from pyro_mixtures.diagnostics.plots.responsibilities import plot_responsibilities
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer import Responsibilities
from tests.diagnostics.plots.rendering import draw


class TestResponsibilities:
    responsibilities = Responsibilities(
        torch.tensor([[3, 9], [7, 3], [3, 7], [9, 1]]),
        torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [1.0, 0.0]]),
    )

    def test_least_certain_rows_by_their_best_component(self):
        ax = plot_responsibilities(
            self.responsibilities, count=3, numbers=torch.tensor([10, 20, 30, 40])
        )
        np.testing.assert_allclose(
            ax.get_images()[0].get_array(), [[0.9, 0, 0.1], [0.8, 0.2, 0], [0.4, 0.6, 0]]
        )
        assert [text.get_text() for text in ax.get_yticklabels()] == ["10", "30", "20"]
        assert [text.get_text() for text in ax.get_xticklabels()] == ["3", "7", "9"]
        draw(ax)

    def test_the_first_rows(self):
        ax = plot_responsibilities(self.responsibilities, count=2, order="first")
        assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "1"]

    def test_component_without_a_share_is_left_out(self):
        shown = plot_responsibilities(self.responsibilities, count=9).get_images()[0].get_array()
        assert shown.shape == (4, 3)  # components 3, 7 and 9, not 1
        np.testing.assert_allclose(shown.sum(1), 1)

    def test_best_components_of_low_probability_are_shown(self):
        responsibilities = Responsibilities(
            torch.tensor([[3, 9], [7, 3]]), torch.tensor([[0.004, 0.003], [0.005, 0.001]])
        )
        ax = plot_responsibilities(responsibilities)
        np.testing.assert_allclose(
            ax.get_images()[0].get_array(), [[0.004, 0], [0.001, 0.005]], rtol=1e-6
        )
        assert [text.get_text() for text in ax.get_xticklabels()] == ["3", "7"]
        draw(plot_responsibilities(Responsibilities(torch.tensor([[3, 9]]), torch.zeros(1, 2))))

    @pytest.mark.parametrize("wrong", [torch.nan, -0.1, 2.0])
    def test_invalid_probabilities(self, wrong):
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
            plot_responsibilities(self.responsibilities, **options)
        with pytest.raises(DataError, match="must both be"):
            plot_responsibilities(Responsibilities(torch.zeros(3, 2), torch.zeros(3, 1)))
