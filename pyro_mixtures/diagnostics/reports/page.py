"""A self-contained HTML page of headings, tables and pictures, and an atomic file writer."""

import base64
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_mixtures.errors import OptionError

_FILE_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h2 { border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; vertical-align: top;
         border-bottom: 1px solid #eee; }
th { font-weight: 600; white-space: nowrap; } td.number, th.number { text-align: right; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption, caption, .note { color: #555; font-size: .9rem; }
caption { text-align: left; white-space: nowrap; }
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
        """Start a section."""
        self.fragments.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.fragments.append(f"<p class=note>{escape(text)}</p>")

    def table(
        self, lines: Iterable[Sequence[Any]], *, header: Sequence[str] = (), caption: str = ""
    ) -> None:
        """Add a table. Columns of numbers, with their headings, are right-aligned.

        :param lines: cells, line by line.
        :param header: headings of the columns. Without them the first cell of each line is its
            heading.
        :param caption: text above the table.
        """
        body = [list(line) for line in lines]
        numeric = [
            bool(body) and all(_is_number(line[column]) for line in body)
            for column in range(len(header))
        ]
        cells = "".join(
            f"<th{_class_of(is_numeric)} scope=col>{escape(name)}</th>"
            for name, is_numeric in zip(header, numeric, strict=True)
        )
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        head = f"<thead><tr>{cells}</tr></thead>" if header else ""
        rows = "".join(_row(line, named=not header) for line in body)
        self.fragments.append(
            f"<div class=scroll><table>{title}{head}<tbody>{rows}</tbody></table></div>"
        )

    def picture(self, ax: Axes, caption: str) -> None:
        """Add the figure of ``ax`` as an embedded PNG; the caption is also its alternative text."""
        png, figure = BytesIO(), ax.figure
        assert isinstance(figure, Figure)
        figure.savefig(png, format="png")
        source = base64.b64encode(png.getvalue()).decode("ascii")
        text = escape(caption, quote=True)
        self.fragments.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{source}">'
            f"<figcaption>{text}</figcaption></figure>"
        )

    def render(self) -> str:
        """Return the whole page."""
        title, body = escape(self.title), "\n".join(self.fragments)
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<link rel="icon" href="data:,">'
            f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
        )


def as_file_path(path: str | os.PathLike[str]) -> Path:
    """Return the file that ``path`` names, through links, if it is regular or does not exist yet.

    :raises OptionError: for a directory, a named pipe, a device or a socket, which cannot be
        replaced by a file; for a loop of links, or a value that is no path.
    :raises OSError: if the path cannot be examined.
    """
    try:
        file_path = Path(path)
        mode = file_path.stat().st_mode
    except FileNotFoundError:
        return file_path.resolve()  # a link keeps pointing at its file
    except (TypeError, ValueError) as error:  # ValueError: a null character
        raise OptionError(
            f"path={path!r} is no path: pass a string or a pathlib.Path, such as 'report.html'"
        ) from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OptionError(f"path={path!r} is a loop of links: pass another path") from error
    if not stat.S_ISREG(mode):
        kind = _FILE_KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise OptionError(
            f"path={path!r} is {kind}: pass the path of a regular file or of a new one, such as "
            "'report.html'"
        )
    return file_path.resolve()


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, so that the file holds all of it or what it held before.

    The text is written to a new file in the same folder and forced to the disk. Then that file
    takes its final name in one step. An existing file keeps its permissions.

    :raises OptionError: as for :func:`as_file_path`.
    :raises OSError: if it cannot be written; then no file is left behind.
    """
    target = as_file_path(path)
    replaces = target.exists()
    temporary = target.with_name(f".{uuid.uuid4().hex}.partial")

    def create(name: str, flags: int) -> int:
        # The text is never readable to others than the readers of the existing file.
        return os.open(name, flags, 0o600 if replaces else 0o666)

    try:
        with open(temporary, "x", encoding="utf-8", newline="\n", opener=create) as file:
            if replaces:
                shutil.copymode(target, temporary)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _row(line: Sequence[Any], *, named: bool) -> str:
    cells = [f"<td{_class_of(_is_number(cell))}>{escape(_cell_text(cell))}</td>" for cell in line]
    if named and cells:
        cells[0] = f"<th scope=row>{escape(_cell_text(line[0]))}</th>"
    return f"<tr>{''.join(cells)}</tr>"


def _class_of(is_numeric: bool) -> str:
    return " class=number" if is_numeric else ""


def _is_number(cell: Any) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _cell_text(cell: Any) -> str:
    if cell is None or cell != cell:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
