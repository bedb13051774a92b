"""The plot of a gate shows its regions and the rows."""

import numpy as np
import pytest
import torch

from pyro_mixtures.diagnostics.plots.gate import plot_gate
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer import fit_gate
from tests.diagnostics.plots.rendering import draw


class TestGate:
    def test_regions_are_those_of_the_gate(self):
        x = torch.rand(60, 2) * 4 - 2
        labels = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        gate = fit_gate(x, labels, 5)
        ax = plot_gate(gate, x, labels=labels, resolution=40)
        image = ax.get_images()[0]
        left, right, bottom, top = image.get_extent()
        for across, up in ((3, 5), (35, 8), (20, 30)):  # centers of pixels
            at = [
                left + (right - left) * (across + 0.5) / 40,
                bottom + (top - bottom) * (up + 0.5) / 40,
            ]
            assert image.get_array()[up, across] == int(gate(torch.tensor([at])))
        assert sorted(text.get_text() for text in ax.texts) == ["0", "1", "2", "3"]
        assert ax.get_title(loc="left") == "Regions of 4 of 5 components of the gate"
        draw(ax)

    def test_borders_are_between_regions(self):
        x = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [1.0, 1.0]]).repeat(3, 1)
        ax = plot_gate(fit_gate(x, (x[:, 0] > 0).long(), 2), x, resolution=10)
        sides = np.array(ax.collections[0].get_segments())
        np.testing.assert_allclose(sides[..., 0], 0, atol=1e-6)
        np.testing.assert_allclose(np.sort(sides[..., 1], None)[[0, -1]], ax.get_ylim())
        assert len(sides) == 10

    def test_numbers_are_inside_their_regions(self):
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
        with pytest.raises(DataError, match="rows contains NaN or infinity"):
            plot_gate(gate, torch.full((6, 2), torch.nan))
        with pytest.raises(DataError, match="numbers"):
            plot_gate(gate, x, labels=["a"] * 6)
        with pytest.raises(OptionError, match="gate is of type int"):
            plot_gate(3, x)
        with pytest.raises(OptionError, match="resolution=1"):
            plot_gate(gate, x, resolution=1)
