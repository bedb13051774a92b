"""The history plot shows the epochs of each phase and the cost of exact passes."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from pyro_mixtures.diagnostics import plot_history
from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer import Epoch, History
from tests.diagnostics.plots.rendering import draw


def history(warmup: int = 3, epochs: int = 4) -> History:
    phases = ["warm-up"] * warmup + ["EM"] * epochs
    return History(
        [
            Epoch(phase, -10.0 / (i + 1), 50 * (i + 1), 7, 0, 0, 0.5 * i)
            for i, phase in enumerate(phases)
        ]
    )


class TestHistory:
    @pytest.mark.parametrize(
        ("against", "x"), [("epochs", np.arange(1, 8)), ("seconds", 0.5 * np.arange(7))]
    )
    def test_phases_have_separate_joined_lines(self, against, x):
        axes = plot_history(history(), against=against)
        for ax, column in zip(axes, ("elbo", "evaluations"), strict=True):
            warmup, em = ax.get_lines()
            assert [text.get_text() for text in ax.get_legend().get_texts()] == ["warm-up", "EM"]
            np.testing.assert_allclose(warmup.get_xdata(), x[:3])
            np.testing.assert_allclose(warmup.get_ydata(), history()[column][:3])
            np.testing.assert_allclose(em.get_xdata(), x[2:])
            np.testing.assert_allclose(em.get_ydata(), history()[column][2:])
            assert warmup.get_color() != em.get_color()
        draw(axes[0])

    def test_cost_of_exact_passes(self):
        cost = plot_history(history(), full=1000)[1]
        exact = cost.get_lines()[-1]
        np.testing.assert_array_equal(exact.get_ydata(), 1000 * np.arange(1, 8))
        assert exact.get_label() == "N × C per pass (20×)"
        assert cost.get_yscale() == "log"

    def test_one_epoch_is_the_first(self):
        for ax in plot_history(history(warmup=0, epochs=1)):
            draw(ax)
            low, high = ax.get_xlim()
            assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1]

    def test_phases_that_alternate(self):
        names = ["EM", "SVI", "SVI", "EM"]
        epochs = History(
            [Epoch(name, -10.0 / (i + 1), 50, 7, 0, 0, 0.5) for i, name in enumerate(names)]
        )
        ax = plot_history(epochs)[0]
        assert [line.get_xdata().tolist() for line in ax.get_lines()] == [[1], [1, 2, 3], [3, 4]]
        first, second, third = (line.get_color() for line in ax.get_lines())
        assert first == third != second
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["EM", "SVI"]

    def test_legends_do_not_cover_data(self):
        axes = plot_history(history(), full=1000)
        draw(axes[0])
        for ax in axes:
            assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1

    def test_draws_in_existing_axes(self):
        axes = Figure().subplots(1, 2)
        assert plot_history(history(warmup=0), axes=axes)[1] is axes[1]
        assert len(axes[0].get_lines()) == 1

    @pytest.mark.parametrize(
        ("history", "options", "message"),
        [
            (history(), {"against": "days"}, "unknown against='days'"),
            (History(), {}, "no epochs"),
            (history(), {"full": 0}, "full=0"),
            (history(), {"full": -5}, "full=-5"),
            (history(), {"axes": Figure().subplots(1, 3)}, r"two axes, but axes= has shape \(3,\)"),
        ],
    )
    def test_refusals(self, history, options, message):
        with pytest.raises(OptionError, match=message):
            plot_history(history, **options)
