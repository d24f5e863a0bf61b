"""Count the operations of compiled programs, which do not depend on the speed of the machine.

    python -m benchmarks.cases.operation_counts         # compare with the committed counts; status 1 if they differ
    python -m benchmarks.cases.operation_counts --keep  # write the counts to the file that is committed

A small TOOD is compiled for one CPU with AVX2, whatever this machine has. `tests/tools/compile_for/test_compile_for.py`
counts collectives. `tests/benchmarks/test_operation_counts.py` makes the same comparison in CI.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from benchmarks.harness.options import R50, RESULTS, ROOT, Options, read_options
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.tables import print_table
from tood_jax.cli.command_line import parse
from tood_jax.config import Config
from tood_jax.distributed.sharding import make_mesh
from tood_jax.tools.compile_for.programs import lower_detect_step, lower_train_step

NAME = "operation_counts"
FILE = RESULTS / "operation_counts.json"
SMALL = [
    "--backbone.depth=18",
    "--backbone.width=16",
    "--neck.channels=32",
    "--head.channels=32",
    "--head.norm_groups=8",
    "--head.num_convs=2",
]
CANVAS, CLASSES = (64, 64), 8
MARGINS = {"flops": 0.02, "bytes accessed": 0.05, "fusions": 0.05}  # other counts must be equal
COMPILER = {"xla_cpu_max_isa": "AVX2", "xla_cpu_use_fusion_emitters": True}  # tests/conftest.py switches these off


@dataclass(frozen=True)
class Args(Options):
    """Options of the case."""

    keep: bool = False
    """Write the counts to benchmarks/results/operation_counts.json, or to --out."""


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Count, and print the table; exit status 1 if counts differ from the committed ones by more than their margins."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Count the operations of compiled programs.")
    report = begin_report(NAME, argv, args) if args.keep else None
    found, committed = count(), json.loads(FILE.read_text())["results"] if FILE.exists() else {}
    rows = [
        [program, what, value, committed.get(program, {}).get(what)]
        for program, counts in found.items()
        for what, value in counts.items()
    ]
    print_table("Counts of a small TOOD", ["program", "what", "now", "committed"], rows)
    if report is not None:
        return finish_report(report, args, results=found)
    changed = differences(found, committed)
    print("\n".join(changed) or "All counts are as committed.")
    if changed:
        raise SystemExit(1)
    return None


def config() -> Config:
    """Return the config of the small TOOD."""
    return parse(Options, ["--config", str(ROOT / R50), *SMALL], prog=NAME)[1]


def count() -> dict[str, dict[str, float]]:
    """Return for each program the numbers of operations, bytes, fusions, loops, sorts and scatters."""
    mesh, images = make_mesh(jax.devices()[:1]), 2
    programs = {"training step": lower_train_step, "evaluation step": lower_detect_step}
    return {name: _count(lower(config(), CLASSES, images, CANVAS, mesh)) for name, lower in programs.items()}


def _count(lowered: Any) -> dict[str, float]:
    compiled = lowered.compile(compiler_options=COMPILER)
    text, cost = compiled.as_text(), compiled.cost_analysis()
    kinds = {"fusions": "fusion", "loops": "while", "sorts": "sort", "scatters": "scatter"}
    found = {"flops": cost["flops"], "bytes accessed": cost["bytes accessed"]}
    return found | {what: len(re.findall(rf" {kind}\(", text)) for what, kind in kinds.items()}


def differences(found: dict[str, dict[str, float]], committed: dict[str, dict[str, float]]) -> list[str]:
    """Return a sentence for each count that differs from the committed one by more than its margin."""
    return [
        f"{program}: {what} {value:g}, committed {committed[program][what]:g} (±{MARGINS.get(what, 0):.0%})."
        for program, counts in found.items()
        for what, value in counts.items()
        if abs(value - committed[program][what]) > MARGINS.get(what, 0) * committed[program][what]
    ]


if __name__ == "__main__":
    main()
