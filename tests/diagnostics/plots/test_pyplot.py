"""Plots do not leave figures open in pyplot."""

import sys

import numpy as np

from pyro_mixtures.diagnostics import plot_denoised, plot_history, plot_image_sheet
from pyro_mixtures.infer import Epoch, History


def test_no_figure_stays_open():
    plot_history(History([Epoch("EM", -1.0, 50, 7, 0, 0, 0.5)]))
    plot_image_sheet(np.ones((3, 64)))
    plot_denoised(np.ones((4, 4)), np.ones((4, 4)))
    pyplot = sys.modules.get("matplotlib.pyplot")  # ArviZ may have imported it
    assert pyplot is None or not pyplot.get_fignums()
