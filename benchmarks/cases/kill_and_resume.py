"""Kill and resume a training run at random moments: it must end exactly as an uninterrupted run.

    python -m benchmarks.cases.kill_and_resume --kills 20

trains a small detector twice by `train.py`, in processes of their own: once without interruption, and once with --kills
signals (mostly SIGKILL, besides SIGTERM, SIGUSR1 and SIGINT), a quarter of them during the start, the others spread
over steps, evaluations and saves. Parameters, optimizer state, moving average, the checkpoint's metadata and
metrics.jsonl must be bit-identical; otherwise the exit status is 1. --draw repeats the random choices; the moments of
the signals depend on the machine too.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.options import ROOT, Options, read_options
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.tables import print_table
from tood_jax.checkpoint.store import open_checkpoint
from tood_jax.config import (
    AssignerConfig,
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    NeckConfig,
    OptimizerConfig,
    SplitConfig,
    TrainConfig,
    save_config,
)
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.run_log.goodput import Mark, goodput_sentence, goodput_shares, read_marks

NAME = "kill_and_resume"
EPOCH_STEPS, BATCH, SIDE = 12, 4, 64
STEPS_PER_KILL = 12
NOT_COMPARED = ("time", "speed")  # fields of metrics.jsonl that depend on the machine
SIGNALS = {signal.SIGKILL: 6, signal.SIGTERM: 2, signal.SIGINT: 1, signal.SIGUSR1: 1}  # weights
# A signal that arrives before train.py has installed its handlers ends the process.
EXPECTED_STATUS = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {75, -signal.SIGTERM},
    signal.SIGUSR1: {75, -signal.SIGUSR1},
    signal.SIGINT: {130, -signal.SIGINT},
}


@dataclass(frozen=True)
class Args(Options):
    """Options of the case; --repeats and --seed have no effect."""

    kills: int = 20
    """Number of signals."""
    draw: int = -1
    """Seed of the signals and moments; -1 draws one and prints it."""
    folder: str = "build/kill_and_resume"
    """Folder of runs and images; emptied first."""


class ResumeError(RuntimeError):
    """The interrupted run did not end like the uninterrupted one, or not at all."""


def small_config(folder: Path, name: str, kills: int) -> Config:
    """Return a config that compiles in seconds, with steps of milliseconds and frequent evaluations and saves."""
    data = folder / "images"
    return Config(
        name=name,
        backbone=BackboneConfig(depth=18, width=8, norm="batch", frozen_stages=-1),
        neck=NeckConfig(channels=16, norm="group"),
        head=HeadConfig(channels=16, num_convs=2, norm_groups=4),
        assigner=AssignerConfig(warmup_epochs=1),
        data=DataConfig(
            train=SplitConfig(str(data / "train"), str(data / "annotations/instances_train.json")),
            val=SplitConfig(str(data / "val"), str(data / "annotations/instances_val.json")),
            train_short_side=(SIDE, SIDE),
            eval_short_side=SIDE,
            max_long_side=SIDE,
            buckets=((SIDE, SIDE),),
            max_objects=8,
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.01, learning_rate_batch=BATCH, warmup_steps=10, step_epochs=(2,), ema_decay=0.9
        ),
        train=TrainConfig(
            epochs=-(-kills * STEPS_PER_KILL // EPOCH_STEPS) + 1,
            batch_size=BATCH,
            eval_batch_size=BATCH,
            checkpoint_every_steps=5,
            log_every_steps=3,
            eval_every_epochs=2,
            workdir=str(folder / name),
        ),
    )


def main(argv: Sequence[str] | None = None) -> Report:
    """Train both runs, compare them, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, __doc__ or "")
    draw = args.draw if args.draw >= 0 else random.SystemRandom().randrange(1 << 30)
    print(f"draw {draw}", flush=True)
    report = begin_report(NAME, [*argv, *([] if args.draw >= 0 else ["--draw", str(draw)])], args)
    folder = Path(args.folder).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    shapes = ShapesConfig(
        train_images=EPOCH_STEPS * BATCH, val_images=6, height=(SIDE, SIDE), width=(SIDE, SIDE), seed=3
    )
    write_shapes(folder / "images", shapes)
    for name in ("unbroken", "broken"):
        save_config(small_config(folder, name, args.kills), folder / f"{name}.json")

    started = time.perf_counter()
    _finish(_start(folder, "unbroken"))
    seconds = {"unbroken": time.perf_counter() - started}
    marks = read_marks((folder / "unbroken" / "goodput.jsonl").read_text().splitlines())
    start_seconds = marks[0].time - marks[0].began
    kills = _interrupt(folder, args.kills, start_seconds, random.Random(draw))
    _finish(_start(folder, "broken"))
    seconds["broken"] = time.perf_counter() - started - seconds["unbroken"]
    compare(folder / "unbroken", folder / "broken")

    broken = read_marks((folder / "broken" / "goodput.jsonl").read_text().splitlines())
    print_table(
        f"{args.kills} kills of a run of {marks[-1].step} steps: bit-identical to an uninterrupted run",
        ["signal", "where", "seconds after its start", "at step", "status"],
        [[kill[key] for key in ("signal", "where", "seconds", "step", "status")] for kill in kills],
    )
    for name, these in (("unbroken", marks), ("broken", broken)):
        print(f"{name}: {seconds[name]:.0f} s. {goodput_sentence(these)}")
    return finish_report(
        report,
        args,
        draw=draw,
        kills=kills,
        seconds=seconds,
        start_seconds=start_seconds,
        goodput={"unbroken": goodput_shares(marks), "broken": goodput_shares(broken)},
    )


def _interrupt(folder: Path, number: int, start_seconds: float, rng: random.Random) -> list[dict[str, Any]]:
    """Start and interrupt the run `number` times; return a row for each signal."""
    # In ascending order, so that the run advances from signal to signal and does not end before the last one.
    steps = sorted(rng.randrange(number * STEPS_PER_KILL) for _ in range(number))
    killed = []
    for step in steps:
        is_during_start = rng.random() < 0.25
        which = rng.choices(list(SIGNALS), list(SIGNALS.values()))[0]
        delay = rng.uniform(0, 1.2 * start_seconds) if is_during_start else rng.uniform(0, 0.4)
        process = _start(folder, "broken")
        process_started = time.perf_counter()
        if not is_during_start:
            while process.poll() is None and _step_of_process(folder / "broken", process.pid) < step:
                time.sleep(0.01)
        if process.poll() is None:
            time.sleep(delay)
        process.send_signal(which)
        seconds = time.perf_counter() - process_started
        output = process.communicate()[0]
        if process.returncode not in EXPECTED_STATUS[which]:
            raise ResumeError(
                f"{which.name} {seconds:.2f} s after a start ended the run with status {process.returncode}:\n{output}"
            )
        killed.append(
            {
                "signal": which.name,
                "where": "start" if is_during_start else f"step ≥ {step}",
                "seconds": round(seconds, 2),
                "step": _newest_step(folder / "broken"),
                "status": process.returncode,
            }
        )
    return killed


def _marks(workdir: Path) -> list[Mark]:
    try:
        return read_marks((workdir / "goodput.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return []


def _newest_step(workdir: Path) -> int:
    marks = _marks(workdir)
    return marks[-1].step if marks else 0


def _step_of_process(workdir: Path, pid: int) -> int:
    """Return the newest step that this process recorded; -1 before its first record."""
    process_start = _start_time(pid)
    return max((mark.step for mark in _marks(workdir) if mark.began >= process_start), default=-1)


def _start_time(pid: int) -> float:
    import psutil

    try:
        return psutil.Process(pid).create_time() - 0.01
    except psutil.NoSuchProcess:
        return float("inf")


def _start(folder: Path, name: str) -> "subprocess.Popen[str]":
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    command = [sys.executable, "train.py", "--config", str(folder / f"{name}.json")]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _finish(process: "subprocess.Popen[str]") -> None:
    output = process.communicate()[0]
    if process.returncode:
        raise ResumeError(f"a run without a signal ended with status {process.returncode}:\n{output}")


def compare(run: Path, other: Path) -> None:
    """Compare two runs bit by bit.

    Raises:
        ResumeError: they differ; the message names what does.
    """
    first, second = open_checkpoint(run, "latest"), open_checkpoint(other, "latest")
    differences = [] if first.step == second.step else [f"step {first.step} and {second.step}"]
    differences += [name for name in first.leaves if first.leaves[name] != second.leaves.get(name)]  # checksums
    differences += [key for key in ("data", "metrics", "unlogged") if first.about[key] != second.about[key]]
    for group in first.groups:
        differences += [] if _are_equal(first.arrays(group), second.arrays(group)) else [group]
    if _rows(run) != _rows(other):
        differences.append("metrics.jsonl")
    if differences:
        raise ResumeError(f"{run} and {other} differ in {', '.join(differences)}")


def _are_equal(tree: Any, other: Any) -> bool:
    if isinstance(tree, dict):
        return tree.keys() == other.keys() and all(_are_equal(tree[key], other[key]) for key in tree)
    return bool(np.array_equal(tree, other))


def _rows(workdir: Path) -> list[dict[str, Any]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in NOT_COMPARED} for line in lines]


if __name__ == "__main__":
    try:
        main()
    except ResumeError as error:
        raise SystemExit(f"{NAME}: {error}") from None
