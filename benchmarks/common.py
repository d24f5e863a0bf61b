"""What the benchmarks share: options, the record of machine and versions, interleaved timing, memory, tables, JSON.

Every benchmark is `main(argv) -> report`: it prints tables and writes the report, all of what it found, as JSON.
Units: seconds, bytes and floating-point operations, unless a name says otherwise (`ms`, `MiB`).
"""

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import tyro
from jax.sharding import Mesh, SingleDeviceSharding

from tood_jax.ahead_of_time.chips import devices_of
from tood_jax.ahead_of_time.traffic import estimated_cycles, hbm_bytes
from tood_jax.cli.options import parse
from tood_jax.config import Config, ConfigError, to_dict
from tood_jax.detectors.detector import Detector, canvas_pyramid
from tood_jax.training.sharding import make_mesh
from tood_jax.typed import to_plain
from tood_jax.types import Batch, Predictions

ROOT = Path(__file__).resolve().parent.parent
R50 = "configs/tood_r50_fpn_1x_coco.py"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "opencv-python-headless")
MEBI = 2**20
Report = dict[str, Any]
Row = dict[str, Any]
Args = TypeVar("Args", bound="Options")


@dataclass(frozen=True)
class Options:
    """What every benchmark can be told."""

    repeats: int = 5
    """Timed rounds; all cases are run once a round, one after the other. The first, untimed round is told apart."""
    seed: int = 0
    """Of the random inputs."""
    out: str = ""
    """The JSON file; empty means benchmarks/results/NAME.json."""
    compilation_cache: bool = False
    """Use JAX's persistent compilation cache where one is set; compile times then say nothing."""


@dataclass(frozen=True)
class ModelOptions(Options):
    """Of the benchmarks that run a whole model; the config's batch size isn't used."""

    batch: int = 2
    """Images a step, over all devices."""
    height: int = 256
    """Canvas height, pixels, a multiple of 32."""
    width: int = 256
    """Canvas width, pixels, a multiple of 32."""
    classes: int = 80
    """C."""
    devices: int = 1
    """Devices to use; 0 for all."""


def read_options(args_type: type[Args], argv: Sequence[str], name: str, description: str) -> Args:
    """The options of a benchmark without a config."""
    prog = f"python -m benchmarks.{name}"
    args = tyro.cli(args_type, args=list(argv), prog=prog, description=description, use_underscores=True)
    return _prepared(args)


def read_options_and_config(
    args_type: type[Args], argv: Sequence[str], name: str, description: str
) -> tuple[Args, Config]:
    """The options of a benchmark with `--config`, and the config with its overrides."""
    args, config = parse(args_type, argv, prog=f"python -m benchmarks.{name}", description=description)
    return _prepared(args), config


def with_config(argv: Sequence[str]) -> list[str]:
    """The words with R50's config before them, if they name none."""
    return [*argv] if any(word.startswith("--config") for word in argv) else [f"--config={R50}", *argv]


def _prepared(args: Args) -> Args:
    if args.repeats < 1:
        raise SystemExit(f"--repeats={args.repeats} must be at least 1.")
    if not args.compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    return args


# record


def begin_report(name: str, argv: Sequence[str], args: Options, config: Config | None = None) -> Report:
    """The head of a report: when, where, with what and by which command."""
    return {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *argv]),
        "commit": _commit(),
        "machine": machine(),
        "versions": versions(),
        "load_average_before": os.getloadavg()[0],
        "options": to_plain(args),
        "config": None if config is None else to_dict(config),
    }


def finish_report(report: Report, args: Options, **results: Any) -> Report:
    """Add the results, write the JSON and say where it is."""
    report = {**report, "load_average_after": os.getloadavg()[0], "memory": process_memory(), **results}
    path = Path(args.out) if args.out else ROOT / "benchmarks" / "results" / f"{report['benchmark']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        f"\n{_said(report['machine'])}; JAX {report['versions']['jax']}; {report['date']}; "
        f"load {report['load_average_before']:.1f} before, {report['load_average_after']:.1f} after; {path}"
    )
    return report


def machine() -> dict[str, Any]:
    """CPU, memory and accelerators of this machine, as far as this process may use them."""
    devices = [device for device in jax.devices() if device.platform != "cpu"]
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerators": [device.device_kind for device in devices],
        "backend": jax.default_backend(),
        "system": platform.platform(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "allocator": {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "GLIBC_"))},
    }


def versions() -> dict[str, str]:
    """Python and the packages that decide about speed."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def _said(machine: dict[str, Any]) -> str:
    where = ", ".join(machine["accelerators"]) or "no accelerator"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, {where}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _commit() -> str | None:
    """The commit of the tree, with `-dirty` if files differ from it; None outside git. Takes no lock."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


# timing

PAUSE, SHORT = 0.05, 1.0  # seconds, see `interleaved`


def interleaved(cases: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds of each case. A round runs every case once, so that a busy moment of the machine hits all of them.

    Threads of a case, OpenMP's above all, wait for more work in a busy loop, which takes a core from whoever comes
    next. So before each run there is a pause; and what takes less than SHORT runs untimed for as long as the pause, for
    in it threads fell asleep and caches were lost.

    Args:
        cases: functions that start the work and return its arrays; they are waited for.
        repeats: timed rounds, after one that is told apart.

    Returns:
        For each case `spread` of its timed rounds, and `first_seconds`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(1 + repeats):
        for name, run in cases.items():
            time.sleep(PAUSE)
            until = time.perf_counter() + PAUSE
            while seconds[name] and seconds[name][0] < SHORT and time.perf_counter() < until:
                jax.block_until_ready(run())
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: {"first_seconds": found[0], **spread(found[1:])} for name, found in seconds.items()}


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and quartiles of some durations, and the durations themselves."""
    low, quarter, median, three_quarters, high = np.percentile(seconds, [0, 25, 50, 75, 100]).tolist()
    return {
        "median_seconds": median,
        "min_seconds": low,
        "max_seconds": high,
        "quartile_seconds": [quarter, three_quarters],
        "all_seconds": list(seconds),
    }


# programs


class Program(NamedTuple):
    """A compiled function and what its compiler says of it."""

    run: Callable[..., Any]
    about: dict[str, Any]  # trace_seconds, compile_seconds, flops, bytes_accessed, memory (bytes a kind)


def compile_program(function: Any, *arguments: Any) -> Program:
    """Compile a jitted function for these arguments.

    `flops` and `bytes_accessed` are XLA's own count, both sides of a branch included; None where it gives none.
    `memory` is what the program asks of the device: `total` = arguments + outputs + temporaries − reused arguments.
    """
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    about: dict[str, Any] = {"trace_seconds": traced - start, "compile_seconds": time.perf_counter() - traced}
    cost = compiled.cost_analysis() or {}
    about |= {"flops": cost.get("flops"), "bytes_accessed": cost.get("bytes accessed")}
    return Program(compiled, {**about, "memory": _program_memory(compiled.memory_analysis())})


def compiled_run(function: Any, *arguments: Any) -> tuple[Callable[[], Any], Program]:
    """A jitted function, compiled for these arguments, as one without any; and its program."""
    program = compile_program(function, *arguments)
    return functools.partial(program.run, *arguments), program


def compiled_work(program: Program) -> Row:
    """What a compiled program says, unrun: "hbm_bytes", "cycles" (ahead_of_time/traffic.py), "compile_seconds"."""
    text = program.run.as_text()  # type: ignore[attr-defined]
    work = {"hbm_bytes": hbm_bytes(text), "cycles": estimated_cycles(text)}
    return work | {"compile_seconds": program.about["compile_seconds"]}


def _program_memory(analysis: Any) -> dict[str, int] | None:
    if analysis is None:
        return None
    sizes = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "reused_arguments": analysis.alias_size_in_bytes,
    }
    return {**sizes, "total": sum(sizes.values()) - 2 * sizes["reused_arguments"]}


def process_memory() -> dict[str, int | None]:
    """Peaks of this process so far: resident memory, compiling included, and memory of the fullest device (or None)."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if found and "peak_bytes_in_use" in found]
    return {"peak_resident_bytes": _peak_resident(), "peak_device_bytes": max(peaks, default=None)}


def _peak_resident() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


# inputs


def load_peers(mend: str = "pip install torch==2.13.0") -> Any:
    """`benchmarks.peers` on JAX's device; imports PyTorch, and ends with what to do where that isn't installed."""
    try:
        from benchmarks import peers
    except ImportError as error:
        raise SystemExit(f"The peer is PyTorch: {mend} ({error}).") from None
    peers.use_device("cuda" if jax.default_backend() == "gpu" else "cpu")
    return peers


def mesh_of(devices: int) -> Mesh:
    """The mesh of the first so many devices; 0 takes all."""
    return make_mesh(jax.devices()[: devices or None])


def absent_chip(topology: str) -> SingleDeviceSharding:
    """The first chip of a TPU that isn't there, "v5e:2x2", to compile for; where libtpu is absent, what to do."""
    try:
        return SingleDeviceSharding(devices_of(topology)[0][0])
    except ConfigError as error:
        raise SystemExit(str(error)) from None


def filled_variables(model: Detector, seed: int) -> tuple[Any, Any]:
    """(params, batch_stats) of a model, on the host: scaled noise in the kernels, 1 in scales and variances, else 0.

    Speed doesn't depend on the values, and this takes a second where the model's own initialisation takes many.
    """
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 64, 64, 3))), key)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if name in ("kernel", "reduction"):
            deviation = np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
            return rng.standard_normal(leaf.shape, np.float32) * deviation
        return np.full(leaf.shape, name in ("scale", "scales", "var"), np.float32)

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    return variables["params"], variables.get("batch_stats", {})


def random_batch(
    batch: int, height: int, width: int, *, objects: int, max_objects: int, classes: int, seed: int
) -> Batch:
    """Noise that fills the canvas, with `objects` objects an image in rows of `max_objects`, on the host."""
    rng = np.random.default_rng(seed)
    canvas = np.array([width, height])
    sides = np.exp(rng.uniform(np.log(0.02), np.log(0.6), (batch, max_objects, 2))) * canvas
    corner = rng.uniform(0, 1, (batch, max_objects, 2)) * (canvas - sides)
    mask = np.broadcast_to(np.arange(max_objects) < objects, (batch, max_objects))
    return Batch(
        images=rng.integers(0, 256, (batch, height, width, 3), np.uint8),
        sizes=np.tile(np.array([[height, width]], np.int32), (batch, 1)),
        scales=np.ones((batch, 2), np.float32),
        gt_boxes=(np.concatenate([corner, corner + sides], axis=-1) * mask[..., None]).astype(np.float32),
        gt_labels=(rng.integers(0, classes, (batch, max_objects)) * mask).astype(np.int32),
        gt_mask=mask.copy(),
        image_indices=np.arange(batch, dtype=np.int32),
    )


def random_predictions(batch: Batch, classes: int, seed: int) -> Predictions:
    """What a head might say: few high scores, a box around each cell's point; on the host."""
    rng = np.random.default_rng(seed)
    cells = canvas_pyramid(batch)
    count, num_cells = len(batch.images), len(cells.points)
    distances = rng.uniform(0.5, 6, (count, num_cells, 2, 2)).astype(np.float32)  # left-top, right-bottom, strides
    points = cells.points / cells.strides[:, None]  # [N, 2]
    boxes = np.concatenate([points - distances[:, :, 0], points + distances[:, :, 1]], axis=-1)  # [B, N, 4]
    return Predictions(rng.uniform(0, 1, (count, num_cells, classes)).astype(np.float32) ** 8, boxes)


# tables


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A Markdown table, columns aligned; None is printed as a dash."""
    cells = [[_cell(value) for value in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    print("\n".join(["", title, "", lines[0], rule, *lines[1:]]))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def ms(timing: Mapping[str, Any]) -> str:
    """Median and extremes of a `spread`, milliseconds: `12.3 (11.9–14.0)`."""
    parts = (_cell(1000 * timing[f"{name}_seconds"]) for name in ("median", "min", "max"))
    return "{} ({}–{})".format(*parts)


def mebi(size: float | None) -> float | None:
    """Bytes as MiB; None stays None."""
    return None if size is None else size / MEBI
