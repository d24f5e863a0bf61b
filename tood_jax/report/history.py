"""results.csv and results.png of a run: its evaluations so far, from its metrics.jsonl."""

import csv
import io
from pathlib import Path
from typing import Any

from tood_jax.evaluation.coco_ap import CocoMetrics
from tood_jax.evaluation.matches import has_report_packages
from tood_jax.files import write_atomically
from tood_jax.report.figures import draw_history
from tood_jax.run_log.metrics_rows import read_metrics_rows
from tood_jax.untrusted.bounded_json import as_number

TABLE, FIGURE = "results.csv", "results.png"
_METRICS = tuple(name for name in CocoMetrics.__dataclass_fields__ if name != "class_ap")
_LOSSES = ("train_loss", "loss", "loss_cls", "loss_box", "loss_quality", "loss_distribution")


def write_history(folder: Path) -> None:
    """Write results.csv and, where the extra `report` is installed, results.png into the folder of a run.

    Raises:
        OSError: a file can't be read or written.
    """
    rows = read_evaluations(folder / "metrics.jsonl")
    columns = ["step", *_METRICS, *(name for name in _LOSSES if any(row[name] is not None for row in rows))]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / TABLE, out.getvalue().encode())
    if has_report_packages():
        write_atomically(folder / FIGURE, draw_history(rows))


def read_evaluations(log: Path) -> list[dict[str, Any]]:
    """Return the numbers of each evaluation, with the newest `train_loss` before it; None where there is no number.

    Lines that a kill left incomplete are ignored.
    """
    rows: dict[int, dict[str, Any]] = {}
    train_loss = None
    for step, row in read_metrics_rows(log):
        if row.get("kind") == "eval":
            numbers = {name: as_number(row.get(name)) for name in (*_METRICS, *_LOSSES)}
            rows[step] = {"step": step, **numbers, "train_loss": train_loss}
        else:
            train_loss = as_number(row.get("loss"))
    return [rows[step] for step in sorted(rows)]
