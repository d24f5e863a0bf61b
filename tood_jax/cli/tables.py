"""Tables on the terminal."""

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Return lines with aligned columns.

    Args:
        header: titles of the columns.
        rows: texts; a row of only two is a name and a message, which may be longer than its column.
        right: titles of the columns that are aligned at the right.
    """
    whole = [header, *(row for row in rows if len(row) == len(header))]
    widths = [max(len(row[i]) for row in whole) for i in range(len(header))]
    widths[0] = max(len(row[0]) for row in [header, *rows])

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths[: len(row)], header[: len(row)], strict=True)
        return "  ".join(cell.rjust(width) if title in right else cell.ljust(width) for cell, width, title in cells)

    return "\n".join(line(row).rstrip() for row in [header, *rows])
