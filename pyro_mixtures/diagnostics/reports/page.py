"""One HTML page that needs nothing but itself: headings, tables, pictures; and a file written whole or not at all."""

import base64
import os
import uuid
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h2 { border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; vertical-align: top; border-bottom: 1px solid #eee; }
th { font-weight: 600; white-space: nowrap; } td.number, th.number { text-align: right; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption, caption, .note { color: #555; font-size: .9rem; } caption { text-align: left; white-space: nowrap; }
.scroll { overflow-x: auto; }
"""


class Page:
    """Fragments of a page in their order; all text is escaped.

    >>> page = Page("A & B")
    >>> page.heading("First")
    >>> page.table([["C", 3]], header=["name", "value"])
    >>> "A &amp; B" in page.render(), "<td class=number>3</td>" in page.render()
    (True, True)
    """

    def __init__(self, title: str):
        self.title = title
        self.fragments: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.fragments.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self.fragments.append(f"<p class=note>{escape(text)}</p>")

    def table(
        self, lines: Iterable[Sequence[Any]], *, header: Sequence[str] = (), caption: str = ""
    ) -> None:
        """Numbers stand on the right, and so do their headings; a first cell of a line without header is its name."""
        body = [list(line) for line in lines]
        rows = "".join(_row(line, named=not header) for line in body)
        sides = [
            bool(body) and all(_is_number(line[i]) for line in body) for i in range(len(header))
        ]
        head = "".join(
            f"<th{_NUMBER * side} scope=col>{escape(name)}</th>"
            for name, side in zip(header, sides, strict=True)
        )
        head = f"<thead><tr>{head}</tr></thead>" if header else ""
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        self.fragments.append(
            f"<div class=scroll><table>{title}{head}<tbody>{rows}</tbody></table></div>"
        )

    def picture(self, ax: Axes, caption: str) -> None:
        """The figure of ``ax`` as a PNG inside the page; its caption is what those hear who do not see it."""
        png, figure = BytesIO(), ax.figure
        assert isinstance(figure, Figure)
        figure.savefig(png, format="png")
        source = base64.b64encode(png.getvalue()).decode("ascii")
        alone = escape(caption, quote=True)
        self.fragments.append(
            f'<figure><img alt="{alone}" src="data:image/png;base64,{source}"><figcaption>{alone}</figcaption></figure>'
        )

    def render(self) -> str:
        """The whole page."""
        title, body = escape(self.title), "\n".join(self.fragments)
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
            f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
        )


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8: afterwards the file holds all of it, or what it held before.

    The text goes to a new file beside it, is forced to the disk, and takes its name in one step.

    :raises OSError: when it cannot be written; no file is left behind then.
    """
    target = Path(path).resolve()  # a link goes on pointing at the file
    fresh = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with open(fresh, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


_NUMBER = " class=number"


def _row(line: Sequence[Any], *, named: bool) -> str:
    cells = [f"<td{_NUMBER * _is_number(cell)}>{escape(_shown(cell))}</td>" for cell in line]
    if named and cells:
        cells[0] = f"<th scope=row>{escape(_shown(line[0]))}</th>"
    return f"<tr>{''.join(cells)}</tr>"


def _is_number(cell: Any) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _shown(cell: Any) -> str:
    if cell is None or cell != cell:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
