"""The results of a comparison as tables of text."""

from collections.abc import Iterable, Sequence

import numpy as np

from tood_jax.tools.compare_torch.differences import Difference, pair_up
from tood_jax.tools.compare_torch.implementation import LEVELS, ImageDetections


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the first column is aligned to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  "
        + "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def mark(difference: Difference) -> str:
    """Return the mark of a row that exceeds its tolerance."""
    return "" if difference.within else "<<<"


def maps_table(found: Sequence[Difference]) -> str:
    """Return a table with one row per map."""
    head = ("map", "shape", "largest value", "absolute", "relative", "")
    rows = [(d.name, "×".join(map(str, d.shape)), f"{d.largest:.4g}", *_distances(d), mark(d)) for d in found]
    return table(head, rows)


def losses_table(own: dict[str, np.ndarray], peer: dict[str, np.ndarray], found: Sequence[Difference]) -> str:
    """Return a table of the losses per level and their sums."""
    rows = []
    for difference in found:
        part = difference.name
        for who, values in (("tood_jax", own[part]), ("peer", peer[part])):
            numbers = [f"{value:.6g}" for value in (*values, values.sum())]
            last = _distances(difference) if who == "peer" else ("", "")
            rows.append((f"{part}, {who}", *numbers, *last, mark(difference) if who == "peer" else ""))
    return table(("loss", *LEVELS, "sum", "absolute", "relative", ""), rows)


def gradients_table(found: Sequence[Difference]) -> str:
    """Return a table with one row per module of the network and its worst parameter, without frozen parameters."""
    modules: dict[str, list[Difference]] = {}
    for difference in found:
        if not (difference.name.endswith("(frozen)") and difference.within):
            modules.setdefault(".".join(difference.name.split(".")[:2]), []).append(difference)
    rows = []
    for module, members in modules.items():
        worst = max(members, key=lambda d: d.relative)
        absolute = max(d.absolute for d in members)
        inside = worst.name.removeprefix(module).removeprefix(".")
        rows.append((module, str(len(members)), f"{absolute:.1e}", f"{worst.relative:.1e}", inside, mark(worst)))
    return table(("gradients of", "tensors", "absolute", "relative", "worst", ""), rows)


def detections_table(own: ImageDetections, peer: ImageDetections, names: Sequence[str], count: int = 10) -> str:
    """Return a table of the best detections of an image."""

    def cells(found: ImageDetections, i: int | None) -> tuple[str, str, str]:
        if i is None:
            return "–", "", ""
        label = int(found.labels[i])
        box = " ".join(f"{x:.2f}" for x in found.boxes[i])
        return (names[label] if names else str(label)), f"{found.scores[i]:.6f}", box

    rows = [(str(k), *cells(own, i), *cells(peer, j)) for k, (i, j) in enumerate(pair_up(own, peer)[:count], start=1)]
    return table(("", "tood_jax", "score", "box", "peer", "score", "box"), rows)


def trajectory_table(own: np.ndarray, peer: np.ndarray, found: Sequence[Difference]) -> str:
    """Return a table of the losses before each step."""
    rows = []
    for step, (a, b, difference) in enumerate(zip(own, peer, found, strict=True), start=1):
        numbers = [f"{value:.6g}" for value in (a[0], b[0], a[1], b[1])]
        rows.append((str(step), *numbers, *_distances(difference), mark(difference)))
    head = ("step", "cls, tood_jax", "cls, peer", "box, tood_jax", "box, peer", "absolute", "relative", "")
    return table(head, rows)


def _distances(difference: Difference) -> tuple[str, str]:
    return f"{difference.absolute:.1e}", f"{difference.relative:.1e}"
