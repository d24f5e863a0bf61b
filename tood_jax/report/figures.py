"""The figures of an evaluation report, as PNG files.

Matplotlib is imported by the functions, because it is in the extra `report`. Class names are shown as they are:
Matplotlib would read `$` as a formula and drop names that begin with an underscore.
"""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from tood_jax.evaluation.matches import f1_score, precision_recall
from tood_jax.report.analysis import Analysis
from tood_jax.untrusted.printable import printable

_NAMED_CURVES = 10  # classes with a line of their own color and a name: those with most objects
_NAMED_CELLS = 30  # classes of a confusion matrix with names and counts
_NAME_LENGTH = 24  # characters
_GRID = np.linspace(0, 1, 201)
ERROR_NAMES = {
    "Cls": "classification",
    "Loc": "localization",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}
"""TIDE's kinds of errors."""


def draw_figures(analysis: Analysis, class_names: Sequence[str]) -> dict[str, bytes]:
    """Return the figures by file name."""
    names = [printable(name, _NAME_LENGTH) for name in class_names]
    return {
        "pr.png": _curves(analysis, names, "recall", "precision"),
        "f1.png": _curves(analysis, names, "score threshold", "F1"),
        "confusion.png": _confusion(analysis.confusion, names),
        "reliability.png": _reliability(analysis.calibration),
        "errors.png": _errors(analysis.errors),
    }


def _new_figure(width: float = 7, height: float = 4.5) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def encode_figure(figure: Any) -> bytes:
    """Return a Matplotlib figure as PNG."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters that the font lacks; tables show them
        figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _curves(analysis: Analysis, names: Sequence[str], x_name: str, y_name: str) -> bytes:
    """Draw precision over recall, or F1 over the threshold: each class, and the mean."""
    figure, axes = _new_figure()
    objects = np.asarray([count.objects for count in analysis.counts])
    with_objects = [int(label) for label in np.argsort(-objects, kind="stable") if objects[label]]
    sampled = []
    handles, labels = [], []
    for rank, label in enumerate(with_objects):
        score, precision, recall = precision_recall(analysis.matches, label)
        if y_name == "F1":
            x, y = score[::-1], f1_score(precision, recall)[::-1]
        else:
            x, y = recall, np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(x, _GRID)
        sampled.append(np.append(y, 0.0)[at])
        is_named = rank < _NAMED_CURVES
        (line,) = axes.plot(_GRID, sampled[-1], linewidth=1, color=None if is_named else "0.8", zorder=1 + is_named)
        if is_named:
            handles.append(line)
            labels.append(names[label])
    if sampled:
        (line,) = axes.plot(_GRID, np.mean(sampled, axis=0), color="black", linewidth=2.5, zorder=3)
        legend = axes.legend([line, *handles], ["mean of the classes", *labels], fontsize=7)
        for text in legend.get_texts():
            text.set_parse_math(False)
    axes.set(xlabel=x_name, ylabel=y_name, xlim=(0, 1), ylim=(0, 1.02), title=f"{y_name} at IoU 0.5")
    return encode_figure(figure)


def _confusion(confusion: np.ndarray, names: Sequence[str]) -> bytes:
    """Draw the share of each class's objects by the class they are detected as."""
    number = len(confusion)
    side = min(14.0, 3.5 + 0.35 * number)
    figure, axes = _new_figure(side + 1, side)
    axes.grid(False)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8)
    if number <= _NAMED_CELLS + 1:
        axes.set_xticks(range(number), [*names, "(missed)"], rotation=90, parse_math=False)
        axes.set_yticks(range(number), [*names, "(no object)"], parse_math=False)
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                color = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
        axes.set(xlabel="detected as", ylabel="object")
    else:
        axes.set(xlabel="detected as (column of confusion.csv; last: missed)", ylabel="object (row; last: none)")
    axes.set_title("Confusion matrix at the best thresholds")
    return encode_figure(figure)


def _reliability(calibration: dict[str, Any]) -> bytes:
    """Draw the share of right detections over their score."""
    figure, axes = _new_figure(6, 4.5)
    bins = [one for one in calibration["bins"] if one["count"]]
    widths = [one["bin_upper"] - one["bin_lower"] for one in bins]
    lower = [one["bin_lower"] for one in bins]
    axes.bar(lower, [one["avg_accuracy"] for one in bins], widths, align="edge", edgecolor="white", label="right")
    axes.plot([0, 1], [0, 1], "k--", linewidth=1, label="score = share")
    axes.plot([one["avg_confidence"] for one in bins], [one["avg_accuracy"] for one in bins], "o", color="tab:orange")
    axes.set(xlabel="score", ylabel="share of right detections", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"Reliability: ECE {calibration['ece']:.3f}")
    axes.legend()
    return encode_figure(figure)


def _errors(errors: dict[str, Any]) -> bytes:
    """Draw how much AP50 each kind of error costs."""
    figure, axes = _new_figure(7, 3.5)
    costs = [100 * errors["delta_ap"][kind] for kind in ERROR_NAMES]
    bars = axes.barh(list(ERROR_NAMES.values()), costs, color="tab:red")
    counts = [errors["counts"][kind] for kind in ERROR_NAMES]
    axes.bar_label(bars, [f" {cost:.1f}  ({count:,})" for cost, count in zip(costs, counts, strict=True)])
    axes.invert_yaxis()
    axes.set(xlabel="AP50 that is gained without these errors, points (their number)", title="Errors by kind (TIDE)")
    axes.set_xlim(0, max(1.0, 1.25 * max(costs)))
    return encode_figure(figure)


def draw_history(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draw AP, AP50, AP75 and the losses of a run over its steps.

    Args:
        rows: as `history.read_evaluations` returns them.
    """
    from matplotlib.figure import Figure

    losses = [name for name in ("train_loss", "loss") if any(row.get(name) is not None for row in rows)]
    figure = Figure((7, 3 + 2.5 * bool(losses)), layout="constrained")
    panels = figure.subplots(1 + bool(losses), 1, squeeze=False, sharex=True)[:, 0]
    groups = [(("AP", "AP50", "AP75"), 100.0), (tuple(losses), 1.0)]
    for axes, (names, factor) in zip(panels, groups, strict=False):
        for name in names:
            values = [np.nan if row.get(name) is None else factor * row[name] for row in rows]
            axes.plot([row["step"] for row in rows], values, "o-", markersize=3, label=_LABELS.get(name, name))
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set_ylabel("percent")
    panels[-1].set_xlabel("step")
    return encode_figure(figure)


def draw_rates(rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, suggested: float | None) -> bytes:
    """Draw the [n] losses of a learning-rate range test over its rates, with the rate that it suggests."""
    figure, axes = _new_figure()
    axes.plot(rates, losses, color="0.75", linewidth=1, label="loss")
    axes.plot(rates, smoothed, label="smoothed")
    if suggested is not None:
        axes.axvline(suggested, color="C1", linestyle="--", label=f"suggested: {suggested:.2g}")
    axes.set_xscale("log")
    axes.set_xlabel("optimizer.learning_rate")
    axes.set_ylabel("loss")
    axes.legend()
    return encode_figure(figure)


_LABELS = {"train_loss": "training loss", "loss": "validation loss"}
