"""Scores of fits that compete, as columns of numbers and as text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_mixtures.diagnostics.model_choice.score import Score


def columns(score: "Score") -> dict[str, Any]:
    """What is known of one fit, by name."""
    c = score.criteria
    found: dict[str, Any] = {
        "family": score.family,
        "components": score.components,
        "log_likelihood": c.log_likelihood,
        "parameters": c.parameters,
        "aic": c.aic,
        "bic": c.bic,
        "icl": c.icl,
    }
    if score.heldout is not None:
        found |= {"heldout": score.heldout.total, "heldout_se": score.heldout.standard_error}
    if score.loo is not None:
        p = score.loo.predictive
        found |= {"loo": p.total, "loo_se": p.standard_error, "unreliable": score.loo.unreliable}
    return found | {"converged": score.fit.converged}


def table(scores: Sequence["Score"], winners: Mapping[str, "Score"]) -> str:
    """Aligned columns; a star marks each column's winner."""
    rows = [
        {
            name: _text(value) + ("*" if winners.get(name) is score else " ")
            for name, value in columns(score).items()
        }
        for score in scores
    ]
    heads = [name + " " for name in rows[0]]
    lines = [heads, *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        " ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"
    return str(value)
