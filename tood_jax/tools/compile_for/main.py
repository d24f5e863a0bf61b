"""compile_for.py: compile a config for other devices, and report memory, work and communication.

The training step and the evaluation step are compiled for a TPU slice (with `pip install "jax[tpu]"`, without a TPU),
for NVIDIA GPUs (with `pip install "jax[cuda12]"`, without a GPU) or for the devices here (`--topology here`).
Nothing is run.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from tood_jax.cli.command_line import parse
from tood_jax.cli.common import report_errors
from tood_jax.cli.outputs import check_output_file, check_output_folder, starts_with_keys
from tood_jax.config import Config, to_dict
from tood_jax.distributed.compiler_options import compiler_options
from tood_jax.distributed.mesh import DATA, SPACE
from tood_jax.distributed.sharding import make_mesh
from tood_jax.files import write_atomically
from tood_jax.tools.compile_for.chips import HERE, Chip, devices_of
from tood_jax.tools.compile_for.programs import lower_detect_step, lower_train_step, platform_of
from tood_jax.tools.compile_for.report import collectives_of, memory_of, sum_by_kind, work_of
from tood_jax.tools.compile_for.search import DoesNotFit, largest_batch, read_out_of_memory
from tood_jax.untrusted.terminal import print_line

PROG = "compile_for.py"
GIB = 2**30
Row = dict[str, Any]


@dataclass(frozen=True)
class Args:
    topology: str = HERE
    """A TPU slice, kind and shape (v5e:2x4, v5e:16x16, v6e:2x4, v5p:4x4x4, tpu7x:2x2x1), GPUs (h200:8, h100:8, a100:8;
    h100:4x8 is four hosts of eight), or here."""
    per_chip_batch: int = 1
    """Images per chip (if chips share an image: their images divided by their number); 0 searches for the largest
    number that fits."""
    canvas: tuple[int, ...] = ()
    """Height and width in pixels, 800,1344; empty for the largest of data.buckets."""
    num_classes: int = 80
    """Number of classes."""
    program: Literal["train", "evaluate", "both"] = "both"
    """Which steps to compile."""
    json: str = ""
    """Also write the report to this file."""
    hlo: str = ""
    """Also write the compiled programs (HLO text) to this folder."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run `compile_for.py`; exit status 1 if a program does not fit its device."""
    argv = sys.argv[1:] if argv is None else argv
    args, config = parse(Args, argv, prog=prog, description=__doc__ or "")
    with report_errors(prog):
        check_outputs(args)
        rows = compile_all(args, config)
    if args.json:
        versions: Row = {"jax": jax.__version__, "date": time.strftime("%Y-%m-%d")}
        versions["effort"] = jax.config.jax_exec_time_optimization_effort  # type: ignore[attr-defined]
        record = {"command": [prog, *argv], **versions, "config": to_dict(config), "rows": rows}
        write_atomically(args.json, f"{json.dumps(record, indent=1)}\n".encode())
    fitting = {row["program"] for row in rows if row["fits"]}
    raise SystemExit(0 if fitting == set(programs(args)) else 1)


def check_outputs(args: Args) -> None:
    """Refuse outputs that would replace files of other programs. Raises ConfigError."""
    if args.json:
        check_output_file("--json", args.json, starts_with_keys("command", "jax", "date"))
    if args.hlo:
        check_output_folder("--hlo", args.hlo)
        for program in programs(args):
            for file in sorted(Path(args.hlo).glob(f"{program}_*.txt")):
                check_output_file("--hlo", file, lambda start: start.startswith(b"HloModule"))


def programs(args: Args) -> tuple[str, ...]:
    """Return the names of the steps to compile."""
    return ("train", "evaluate") if args.program == "both" else (args.program,)


def compile_all(args: Args, config: Config) -> list[Row]:
    """Compile the steps, print a paragraph on each trial, and return its numbers."""
    devices, chip = devices_of(args.topology)
    mesh = make_mesh(devices, config.parallel.space)
    canvas = _canvas(args, config)
    known = f", {chip.name} with {chip.memory / GIB:.0f} GiB each" if chip else ""
    print_line(
        f"{config.name}, {config.train.precision}, canvas {canvas[0]}×{canvas[1]}, for {args.topology}: "
        f"{mesh.size} devices{known}; mesh data {mesh.shape[DATA]} × space {mesh.shape[SPACE]}."
    )
    rows: list[Row] = []
    for program in programs(args):
        lower = lower_train_step if program == "train" else lower_detect_step

        def attempt(images: int, lower: Callable = lower, program: str = program) -> float:
            total = images * mesh.size
            lowering = partial(lower, config, args.num_classes, total, canvas, mesh)
            row: Row = {"program": program, "topology": args.topology, "per_chip_batch": images, "global_batch": total}
            row["platform"] = platform_of(mesh)
            row["loops"] = config.train.scan_blocks or config.train.accumulate_steps > 1
            row |= compile_one(lowering, mesh, chip, Path(args.hlo) / f"{program}_{images}.txt" if args.hlo else None)
            row["chip_memory"] = chip.memory if chip else None
            row["compiler_options"] = compiler_options(config, mesh)
            rows.append(row)
            print_line(describe(row, chip))
            if not row["fits"]:
                raise DoesNotFit(row["needed"])
            return row["memory"]["total"]

        if args.per_chip_batch:
            with contextlib.suppress(DoesNotFit):
                attempt(args.per_chip_batch)
        else:
            points = largest_batch(attempt, chip.memory if chip else math.inf, first=2)
            best = max((point.images for point in points if point.fits), default=0)
            print_line(f"{program}: the largest batch that fits is {best} images per chip.")
    return rows


def compile_one(lower: Callable[[], Any], mesh: Mesh, chip: Chip | None, hlo: Path | None = None) -> Row:
    """Return the numbers of a compilation; "fits" is False if it needs more memory than a known chip has."""
    start = time.perf_counter()
    lowered = lower()
    middle, used = time.perf_counter(), time.process_time()

    def seconds() -> dict[str, float]:
        compile_ = {"compile": time.perf_counter() - middle, "compile_cpu": time.process_time() - used}
        return {name: round(value, 1) for name, value in {"lower": middle - start, **compile_}.items()}

    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = read_out_of_memory(str(error))
        if refusal is None:
            raise
        return {"fits": False, "seconds": seconds(), "needed": refusal.needed, "refusal": str(error)[:600]}
    row: Row = {"fits": True, "seconds": seconds()}
    if hlo:
        hlo.parent.mkdir(parents=True, exist_ok=True)
        hlo.write_text(compiled.as_text())
    memory = memory_of(compiled)
    row["memory"] = {**memory._asdict(), "total": memory.total}
    if chip and memory.total > chip.memory:
        refusal_text = "the compiler accepted it, but it needs more memory than the chip has"
        row |= {"fits": False, "needed": memory.total, "refusal": refusal_text}
    row["work"] = work_of(compiled)._asdict()
    row["collectives"] = [
        {**collective._asdict(), "count": count}
        for collective, count in sum_by_kind(collectives_of(compiled.as_text(), mesh))
    ]
    return row


def describe(row: Row, chip: Chip | None) -> str:
    """Return a paragraph about a compilation."""
    seconds, images = row["seconds"], row["per_chip_batch"]
    head = (
        f"{row['program']}, {images} images per chip ({row['global_batch']} in all): lowered in "
        f"{seconds['lower']:.0f} s, compiled in {seconds['compile']:.0f} s ({seconds['compile_cpu']:.0f} s of CPU time)"
    )
    if not row["fits"]:
        head += f"; doesn't fit: {row['refusal'].splitlines()[0][:200]}"
        if "memory" not in row:
            return head
    memory, work = row["memory"], row["work"]
    accessed = work["bytes_accessed"]
    of = f" of {chip.memory / GIB:.0f} GiB" if chip else ""
    lines = [
        head,
        f"  memory per chip: {memory['total'] / GIB:.2f}{of} "
        f"({memory['temporaries'] / GIB:.2f} temporaries, {memory['arguments'] / GIB:.2f} state and batch)",
        f"  work per image: {work['flops'] / images / 1e12:.3f} TFLOP, "
        f"{work['hbm_bytes'] / images / 1e9:.1f} GB of HBM traffic"
        + ("" if accessed is None else f" ({accessed / images / 1e9:.1f} GB accessed by the compiler's count)")
        + ("; loops counted once" if row["loops"] and accessed is not None else ""),
    ]
    if row["platform"] == "gpu":
        lines.append(f"  {work['kernels']} kernels per step")
    if work["cycles"]:
        lines.append(f"  {work['cycles'] / 1e6:.0f} M cycles per step by the compiler's estimate without overlap")
    if chip:
        flops, memory_s = work["flops"] / chip.bfloat16, work["hbm_bytes"] / chip.bandwidth
        lines.append(
            f"  least time per step: {flops * 1e3:.0f} ms for the products at the chip's bfloat16 peak; "
            f"{memory_s * 1e3:.0f} ms for the HBM traffic"
        )
    for entry in row["collectives"]:
        lines.append(
            f"  {entry['count']} {entry['kind']} over {entry['axis'] or 'one device'}: {entry['bytes'] / 2**20:.2f} MiB"
        )
    return "\n".join(lines if row["collectives"] else [*lines, "  no collectives"])


def _canvas(args: Args, config: Config) -> tuple[int, int]:
    """Return the canvas (height, width) of the options, or the largest of the config."""
    if args.canvas:
        height, width = args.canvas
        return height, width
    return max(config.data.buckets, key=lambda bucket: (bucket[0] * bucket[1], bucket[1]))
