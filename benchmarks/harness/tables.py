"""Markdown tables and the format of their cells."""

from collections.abc import Mapping, Sequence
from typing import Any

MEBIBYTE = 2**20


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table with aligned columns; None is printed as a dash."""
    cells = [[_cell(value) for value in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    print("\n".join(["", title, "", lines[0], rule, *lines[1:]]))


def format_milliseconds(timing: Mapping[str, Any]) -> str:
    """Return median and extremes of a `timing_summary` in milliseconds: `12.3 (11.9–14.0)`."""
    parts = (_cell(1000 * timing[f"{name}_seconds"]) for name in ("median", "min", "max"))
    return "{} ({}–{})".format(*parts)


def to_mebibytes(size: float | None) -> float | None:
    """Return bytes as MiB; None stays None."""
    return None if size is None else size / MEBIBYTE


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
