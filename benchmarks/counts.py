"""Counts of compiled programs that don't depend on the machine's speed: a change of them is a change of the product.

    python -m benchmarks.counts         # beside the committed ones; exit status 1 where they differ too much
    python -m benchmarks.counts --keep  # commit these

A small TOOD is compiled for one CPU with AVX2, whatever the one at hand has; collectives are counted by
`tests/ahead_of_time/test_compile_for.py`. `tests/benchmarks/test_counts.py` does the same in CI.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from benchmarks.common import R50, ROOT, Options, Report, begin_report, finish_report, print_table, read_options
from tood_jax.ahead_of_time.programs import lower_detect_step, lower_train_step
from tood_jax.cli.options import parse
from tood_jax.config import Config
from tood_jax.training.sharding import make_mesh

NAME = "counts"
FILE = ROOT / "benchmarks" / "results" / "counts.json"
SMALL = [
    "--backbone.depth=18",
    "--backbone.width=16",
    "--neck.channels=32",
    "--head.channels=32",
    "--head.norm_groups=8",
    "--head.num_convs=2",
]
CANVAS, CLASSES = (64, 64), 8
MARGINS = {"flops": 0.02, "bytes accessed": 0.05, "fusions": 0.05}  # of others none
COMPILER = {"xla_cpu_max_isa": "AVX2", "xla_cpu_use_fusion_emitters": True}  # the tests switch these off


@dataclass(frozen=True)
class Args(Options):
    """Of the counts."""

    keep: bool = False
    """Write benchmarks/results/counts.json (or --out) anew."""


def main(argv: Sequence[str] | None = None) -> Report | None:
    """Count, print beside the committed counts; exit status 1 if they differ by more than their margins."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Count what compiled programs do.")
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
    complaints = differences(found, committed)
    print("\n".join(complaints) or "As committed.")
    if complaints:
        raise SystemExit(1)
    return None


def config() -> Config:
    """The small TOOD."""
    return parse(Options, ["--config", str(ROOT / R50), *SMALL], prog=NAME)[1]


def count() -> dict[str, dict[str, float]]:
    """By program: operations, bytes, fusions, loops, sorts and scatters."""
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
    """A sentence for each count that differs from the committed one by more than its margin."""
    return [
        f"{program}: {what} {value:g}, committed {committed[program][what]:g} (±{MARGINS.get(what, 0):.0%})."
        for program, counts in found.items()
        for what, value in counts.items()
        if abs(value - committed[program][what]) > MARGINS.get(what, 0) * committed[program][what]
    ]


if __name__ == "__main__":
    main()
