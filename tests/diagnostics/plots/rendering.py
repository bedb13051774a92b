"""Rendering of figures in tests."""

import io

from matplotlib.axes import Axes


def draw(ax: Axes) -> None:
    """Render the figure, which finds errors that occur only then."""
    ax.figure.savefig(io.BytesIO(), format="png", dpi=40)
