"""The comparison as aligned text."""

from collections.abc import Iterable, Sequence

import numpy as np

from tood_jax.torch_reference.comparison.differences import Difference, pair_up
from tood_jax.torch_reference.comparison.sides import LEVELS, Found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first is flush left, the others right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  "
        + "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def mark(difference: Difference) -> str:
    """A sign at a row that exceeds its tolerance."""
    return "" if difference.within else "<<<"


def maps_table(found: Sequence[Difference]) -> str:
    """One row a map."""
    head = ("map", "shape", "largest value", "absolute", "relative", "")
    rows = [(d.name, "×".join(map(str, d.shape)), f"{d.largest:.4g}", *_apart(d), mark(d)) for d in found]
    return table(head, rows)


def losses_table(ours: dict[str, np.ndarray], peer: dict[str, np.ndarray], found: Sequence[Difference]) -> str:
    """Both sides' losses a level and in all."""
    rows = []
    for difference in found:
        part = difference.name
        for who, values in (("ours", ours[part]), ("peer", peer[part])):
            numbers = [f"{value:.6g}" for value in (*values, values.sum())]
            last = _apart(difference) if who == "peer" else ("", "")
            rows.append((f"{part}, {who}", *numbers, *last, mark(difference) if who == "peer" else ""))
    return table(("loss", *LEVELS, "sum", "absolute", "relative", ""), rows)


def gradients_table(found: Sequence[Difference]) -> str:
    """One row a module of the network, with its worst parameter by name; what is frozen and without a gradient is left
    out."""
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


def detections_table(ours: Found, peer: Found, names: Sequence[str], count: int = 10) -> str:
    """The best detections of an image, side by side."""

    def one(side: Found, i: int | None) -> tuple[str, str, str]:
        if i is None:
            return "–", "", ""
        label = int(side.labels[i])
        box = " ".join(f"{x:.2f}" for x in side.boxes[i])
        return (names[label] if names else str(label)), f"{side.scores[i]:.6f}", box

    rows = [(str(k), *one(ours, i), *one(peer, j)) for k, (i, j) in enumerate(pair_up(ours, peer)[:count], start=1)]
    return table(("", "ours", "score", "box", "peer", "score", "box"), rows)


def trajectory_table(ours: np.ndarray, peer: np.ndarray, found: Sequence[Difference]) -> str:
    """Losses before each step."""
    rows = []
    for step, (a, b, difference) in enumerate(zip(ours, peer, found, strict=True), start=1):
        numbers = [f"{value:.6g}" for value in (a[0], b[0], a[1], b[1])]
        rows.append((str(step), *numbers, *_apart(difference), mark(difference)))
    head = ("step", "cls, ours", "cls, peer", "box, ours", "box, peer", "absolute", "relative", "")
    return table(head, rows)


def _apart(difference: Difference) -> tuple[str, str]:
    return f"{difference.absolute:.1e}", f"{difference.relative:.1e}"
