"""Show what training needs on TPUs and GPUs, by their own compilers without the devices: records of `compile_for.py`.

    python -m benchmarks.cases.accelerator_compilation                        # show the committed records
    python -m benchmarks.cases.accelerator_compilation --compile v5e-8 v6e-8  # compile first (jax[tpu]; no TPU)
    python -m benchmarks.cases.accelerator_compilation --compile h200-1       # compile first (jax[cuda12]; no GPU)

Each record is a JSON file in benchmarks/results/pods/ and contains its own command. docs/compile_for.md explains the
columns.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.harness.options import RESULTS, ROOT, program_name
from benchmarks.harness.tables import print_table

NAME = "accelerator_compilation"
FOLDER = RESULTS / "pods"
SLICES = {
    "v5e-8": "v5e:2x4",
    "v5e-256": "v5e:16x16",
    "v6e-8": "v6e:2x4",
    "v5p-64": "v5p:4x4x4",
    "tpu7x-4": "tpu7x:2x2x1",
    "h200-1": "h200:1",
    "h200-8": "h200:8",
    "h100-8": "h100:8",
    "a100-8": "a100:8",
}
CONFIGS = {
    "r50": "tood_r50_fpn_1x_coco",
    "x101_dcn": "tood_x101_64x4d_fpn_dconv_c4_c5_ms_2x_coco",
}
HEADER = (
    "config, slice, effort, options",
    "images a chip",
    "HBM GiB a chip",
    "of",
    "TFLOP an image",
    "HBM GB an image",
    "M cycles an image",
    "kernels",
    "collectives",
    "compile s (CPU s)",
)


@dataclass(frozen=True)
class Args:
    """Options of the case."""

    compile: tuple[str, ...] = ()
    """Slices to compile again: v5e-8, v5e-256, v6e-8, v5p-64, tpu7x-4 (four chips, eight devices), h200-1, h200-8,
    h100-8, a100-8."""
    configs: tuple[str, ...] = tuple(CONFIGS)
    """Models to compile."""
    program: Literal["train", "evaluate"] = "train"
    """Step to compile."""
    batch: int = 0
    """Images per chip; 0 searches for the largest number that fits."""
    effort: float = 0.0
    """JAX's exec_time_optimization_effort, −1 to 1: −1 compiles in a quarter of the time to a slower program."""
    folder: Path = FOLDER
    """Folder of the records."""


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table of the records; return the rows as `compile_for.py` wrote them."""
    args = tyro.cli(Args, args=argv, prog=program_name(NAME), description=__doc__, use_underscores=True)
    for slice_name in args.compile:
        for config in args.configs:
            compile_record(config, slice_name, args)
    records = [json.loads(file.read_text()) for file in sorted(args.folder.glob("*.json"))]
    rows = [{**row, "of": record} for record in records for row in record["rows"]]
    for program, title in (("train", "Training step"), ("evaluate", "Evaluation step, with NMS")):
        chosen = [table_line(row) for row in rows if row["program"] == program]
        if chosen:
            print_table(f"{title}, 800×1344, bfloat16", HEADER, chosen)
    return rows


def compile_record(config: str, slice_name: str, args: Args) -> None:
    """Write one record by a process of its own, so that the effort is set before JAX starts."""
    if slice_name not in SLICES or config not in CONFIGS:
        raise SystemExit(f"{config} on {slice_name} must be one of {', '.join(CONFIGS)} on one of {', '.join(SLICES)}.")
    batch = f"_{args.batch}images" if args.batch else ""
    step = "_evaluate" if args.program == "evaluate" else ""
    file = args.folder / f"{config}{step}_{slice_name}{batch}_effort{args.effort:g}.json"
    command = [sys.executable, "compile_for.py", "--topology", SLICES[slice_name], "--program", args.program]
    command += ["--config", f"configs/{CONFIGS[config]}.py", "--canvas", "800,1344", "--json", str(file)]
    command += ["--per_chip_batch", str(args.batch), "--train.precision=bfloat16"]
    environment = {"JAX_PLATFORMS": "cpu", "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": str(args.effort)}
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False)  # status 1: a program does not fit


def table_line(row: dict[str, Any]) -> list[Any]:
    """Return a line of the table."""
    record, images, chip = row["of"], row["per_chip_batch"], row.get("chip_memory")
    train = record["config"]["train"]
    options = row.get("compiler_options", {})  # records before 28 November 2026 have only those of the config
    choices = [f"{name}={train[name]}" for name in ("remat", "scan_blocks") if train[name] not in ("none", False)]
    choices += [f"{name}={value}" for name, value in options.items()] or train["compiler_options"]
    name = ", ".join([record["config"]["name"], row["topology"], f"{record['effort']:g}", *choices])
    of = f"{chip / 2**30:.0f}" if chip else None
    seconds = f"{row['seconds']['compile']:.0f} ({row['seconds']['compile_cpu']:.0f})"
    if not row["fits"]:
        needed = row["needed"] and row["needed"] / 2**30
        return [name, images, f"{needed:.1f}: doesn't fit" if needed else "doesn't fit", of, *[None] * 5, seconds]
    work, memory = row["work"], row["memory"]["total"]
    collectives = "; ".join(
        f"{found['count']} {found['kind']} over {found['axis']}, {found['bytes'] / 2**20:.1f} MiB"
        for found in row["collectives"]
    )
    flops = f"{work['flops'] / images / 1e12:.3f}"
    traffic = f"{work['hbm_bytes'] / images / 1e9:.1f}"
    # None for GPUs, and in records before 28 November 2026.
    cycles = f"{work['cycles'] / images / 1e6:.1f}" if work.get("cycles") else None
    kernels = work["kernels"] if row.get("platform") == "gpu" else None
    return [name, images, f"{memory / 2**30:.2f}", of, flops, traffic, cycles, kernels, collectives or "none", seconds]


if __name__ == "__main__":
    main()
