"""tood analyze alignment: the measures of the paper's Table 6 for a checkpoint.

`tood_jax/evaluation/alignment.py` defines them.
"""

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tood_jax.api.subject import Subject, analyze_images, load_subject
from tood_jax.cli.common import parse_with_checkpoint, report_errors, use_compilation_cache
from tood_jax.cli.configs import describe_head
from tood_jax.cli.outputs import check_output_file, starts_with_keys
from tood_jax.cli.tables import format_table
from tood_jax.evaluation.alignment import Alignment, measure_alignment
from tood_jax.files import write_atomically
from tood_jax.untrusted.terminal import print_line

PROG = "tood analyze alignment"
MEASURES = ("correlation", "mean_iou", "correct", "redundant", "error")
PAPER = {  # Table 6, COCO val2017, R-50
    "paper, COCO: parallel head + ATSS": (0.408, 0.637, 30_261, 25_428, 92_677),
    "paper, COCO: T-head + TAL": (0.452, 0.661, 30_734, 15_242, 69_013),
}


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), or the folder of one step. Its config is used; every field can be overridden."""
    step: str = "best"
    """best (by train.best), latest, or the number of a saved step."""
    json: str = ""
    """Also write the measures to this file."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Print the measures of a checkpoint on its val split, beside the paper's."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Measure how well classification and localization agree, as in the paper's Table 6."
    args, config, checkpoint = parse_with_checkpoint(Args, argv, prog=prog, description=description)
    use_compilation_cache()
    with report_errors(prog):
        if args.json:
            check_output_file("--json", args.json, starts_with_keys("checkpoint", "step", *MEASURES), [args.checkpoint])
        subject = load_subject(checkpoint, config, print_line)
        measured = summarize_alignment(subject)
        name = f"this: {describe_head(config.head)}, {config.assigner.kind}"
        print_line(f"Step {checkpoint.step} of {args.checkpoint} on {config.data.val.source}:")
        print_line(describe(measured, name))
        if args.json:
            content = {"checkpoint": args.checkpoint, "step": checkpoint.step, **measured}
            write_atomically(Path(args.json), json.dumps(content, indent=2).encode())


def summarize_alignment(subject: Subject) -> dict[str, Any]:
    """Return the five measures over a data set, and the numbers of images and objects behind them.

    `correlation` and `mean_iou` are means over objects, None without any; the others are sums.
    """
    of_images = partial(measure_alignment, config=subject.config)
    rows: list[Alignment] = [result for _, _, _, result in analyze_images(subject, of_images)]
    correlation, mean_iou = (
        np.concatenate([getattr(row, name) for row in rows]) for name in ("correlation", "mean_iou")
    )
    return {
        "correlation": _mean(correlation),
        "mean_iou": _mean(mean_iou),
        **{name: int(sum(getattr(row, name) for row in rows)) for name in ("correct", "redundant", "error")},
        "images": len(rows),
        "objects": int(np.isfinite(mean_iou).sum()),
        "correlated_objects": int(np.isfinite(correlation).sum()),
    }


def describe(measured: dict[str, Any], name: str) -> str:
    """Return the table of the measures and the paper's, with a line on what they cover."""
    rows = {**PAPER, name: tuple(measured[key] for key in MEASURES)}
    header = ("", "PCC (top 50)", "IoU (top 10)", "correct", "redundant", "error")
    cells = [
        (title, *("–" if x is None else f"{x:.3f}" for x in values[:2]), *(f"{x:,}" for x in values[2:]))
        for title, values in rows.items()
    ]
    coverage = (
        f"{measured['images']} images, {measured['objects']} objects, of which {measured['correlated_objects']} have a "
        "correlation. Counts of boxes depend on the data set; compare them only on the same images."
    )
    return f"{format_table(header, cells, right=header[1:])}\n\n{coverage}"


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None
