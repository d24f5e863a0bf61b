"""Count the least work of each stage of a step, and the least time that it can take on a chip.

    python -m benchmarks.cases.roofline                      # R50, 800×1344, training and inference
    python -m benchmarks.cases.roofline --batch 4 --hlo FILE # beside the traffic of a compiled step (compile_for.py)

Nothing is compiled or computed. The rules are in benchmarks/harness/roofline.py; numbers are bfloat16.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.options import Options, read_options_and_config, with_default_config
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.roofline import (
    StepSizes,
    Work,
    network_work,
    remaining_work,
    trace_network,
    traffic_by_stage,
)
from benchmarks.harness.tables import print_table
from tood_jax.tools.compile_for.chips import CHIPS

NAME = "roofline"
PEAKS = {  # FLOP/s in bfloat16, bytes/s
    "H200, measured": (790e12, 4.3e12),  # what matrix products and copies reach on one
    **{CHIPS[kind].name: (CHIPS[kind].bfloat16, CHIPS[kind].bandwidth) for kind in ("v5e", "v6e", "v5p")},
}


@dataclass(frozen=True)
class Args(Options):
    """Options of the count; --repeats and --seed have no effect."""

    batch: int = 16
    """Images per chip: kernels and the optimizer's state are read once for all of them."""
    height: int = 800
    """Canvas height, pixels, a multiple of 32."""
    width: int = 1344
    """Canvas width, pixels, a multiple of 32."""
    classes: int = 80
    """Number of classes C."""
    hlo: str = ""
    """File with the text of a training step of --batch images per chip, compiled for a TPU or GPU; `compile_for.py
    --hlo` writes it."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Count, print the tables and write the report."""
    argv = with_default_config(sys.argv[1:] if argv is None else argv)
    args, config = read_options_and_config(Args, argv, NAME, "Count the least work of each stage.")
    report = begin_report(NAME, argv, args, config)
    sizes = StepSizes(args.batch, args.height, args.width, args.classes)
    network = trace_network(config, sizes)
    rows: list[dict[str, Any]] = []
    for program, training in (("training", True), ("inference", False)):
        stages = [
            *network_work(network, sizes, training=training),
            *remaining_work(config, network, sizes, training=training),
        ]
        of_program = [stage_row(program, stage, work, args.batch) for stage, work in stages]
        of_program.append(sum_row(program, of_program))
        rows += of_program
        title = f"{program}: {config.name}, {args.height}×{args.width}, {args.batch} images per chip"
        print_stages(title, of_program)
    moved = traffic_by_stage(Path(args.hlo).read_text(encoding="utf-8"), args.batch) if args.hlo else None
    if moved:
        least = {row["stage"]: row["bytes"] for row in rows if row["program"] == "training"}
        lines = [[stage, size / 1e6, least[stage] / 1e6 if stage in least else None] for stage, size in moved.items()]
        lines.append(["all", sum(moved.values()) / 1e6, least["all"] / 1e6])
        print_table("HBM traffic of the compiled step, per image", ["stage", "MB", "least MB"], lines)
    return finish_report(report, args, results=rows, moved=moved)


def stage_row(program: str, stage: str, work: Work, batch: int) -> dict[str, Any]:
    """Return the row of one stage, per image."""
    seconds = {chip: work.seconds(*peaks) / batch for chip, peaks in PEAKS.items()}
    about = {"multiply_adds": work.multiply_adds / batch, "bytes": work.bytes / batch}
    return {"program": program, "stage": stage, **about, "seconds": seconds}


def sum_row(program: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the sum of all stages."""
    return {
        "program": program,
        "stage": "all",
        **{name: sum(row[name] for row in rows) for name in ("multiply_adds", "bytes")},
        "seconds": {chip: sum(row["seconds"][chip] for row in rows) for chip in PEAKS},
    }


def print_stages(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of a program's stages, whose last row is the sum."""
    header = ["stage", "multiply-adds, G", "MB", *(f"{chip}, ms" for chip in PEAKS)]
    lines: list[list[Any]] = [
        [row["stage"], row["multiply_adds"] / 1e9, row["bytes"] / 1e6, *(1e3 * s for s in row["seconds"].values())]
        for row in rows
    ]
    lines.append(["images/s", None, None, *(1 / seconds for seconds in rows[-1]["seconds"].values())])
    print_table(f"Least work and time per image, {title}", header, lines)


if __name__ == "__main__":
    main()
