"""Tables as plain text: cells of strings in aligned columns."""

from collections.abc import Sequence


def align_columns(lines: Sequence[Sequence[str]], *, separator: str = "  ") -> str:
    r"""Join the cells of each line, right-aligned to the widest cell of their column.

    :param lines: one sequence of cells per line, all of the same length; a header is a line like
        the others.
    :param separator: text between two columns.
    :returns: the lines, joined by line breaks, without trailing blanks.

    >>> print(align_columns([["family", "components"], ["diagonal", "3"]]))
      family  components
    diagonal           3
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        separator.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
