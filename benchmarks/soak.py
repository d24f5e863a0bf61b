"""Soak: a run is killed and started again at random, and must end as if nothing had happened.

    python -m benchmarks.soak --kills 20

trains a small detector twice by `train.py`, in processes of their own: once unbroken, and once with so many kills
(SIGKILL mostly, mixed with SIGTERM, SIGUSR1 and Ctrl-C), a quarter of them anywhere in the start, the others spread
over the steps, the evaluations and the saves. Parameters, optimizer, moving average, the checkpoint's own numbers and
metrics.jsonl must be equal to the bit; the exit status is 1 if they aren't. The draw is repeated by --draw, though the
moments of the kills depend on the machine too.
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

from benchmarks.common import ROOT, Options, Report, begin_report, finish_report, print_table, read_options
from tood_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    LearningConfig,
    NeckConfig,
    OptimizerConfig,
    SplitConfig,
    TrainConfig,
    save_config,
)
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.training.checkpoints import open_checkpoint
from tood_jax.training.goodput import Mark, goodput_sentence, goodput_shares, read_marks

NAME = "soak"
EPOCH_STEPS, BATCH, SIDE = 12, 4, 64
STEPS_A_KILL = 12
NOT_COMPARED = ("time", "speed")  # of a line of metrics.jsonl: they tell of the machine, not of the run
SIGNALS = {signal.SIGKILL: 6, signal.SIGTERM: 2, signal.SIGINT: 1, signal.SIGUSR1: 1}  # weights
# A signal that comes before train.py has its handlers ends the process by itself.
STATUS = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {75, -signal.SIGTERM},
    signal.SIGUSR1: {75, -signal.SIGUSR1},
    signal.SIGINT: {130, -signal.SIGINT},
}


@dataclass(frozen=True)
class Args(Options):
    kills: int = 20
    """How often the run is killed."""
    draw: int = -1
    """Of the signals and moments; -1 draws one and prints it."""
    folder: str = "build/soak"
    """Runs and images; emptied first."""


class SoakError(RuntimeError):
    """The broken run didn't end like the unbroken one, or not at all."""


def soak_config(folder: Path, name: str, kills: int) -> Config:
    """A detector of seconds to compile and milliseconds a step, with evaluations and saves close together."""
    data = folder / "images"
    return Config(
        name=name,
        backbone=BackboneConfig(depth=18, width=8, norm="batch", frozen_stages=-1),
        neck=NeckConfig(channels=16, norm="group"),
        head=HeadConfig(channels=16, num_convs=2, norm_groups=4),
        learning=LearningConfig(warmup_epochs=1),
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
            epochs=-(-kills * STEPS_A_KILL // EPOCH_STEPS) + 1,
            batch_size=BATCH,
            eval_batch_size=BATCH,
            checkpoint_every_steps=5,
            log_every_steps=3,
            eval_every_epochs=2,
            workdir=str(folder / name),
        ),
    )


def main(argv: Sequence[str]) -> Report:
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
        save_config(soak_config(folder, name, args.kills), folder / f"{name}.json")

    begun = time.perf_counter()
    _finish(_start(folder, "unbroken"))
    seconds = {"unbroken": time.perf_counter() - begun}
    marks = read_marks((folder / "unbroken" / "goodput.jsonl").read_text().splitlines())
    start_seconds = marks[0].time - marks[0].began
    kills = _break(folder, args.kills, start_seconds, random.Random(draw))
    _finish(_start(folder, "broken"))
    seconds["broken"] = time.perf_counter() - begun - seconds["unbroken"]
    compare(folder / "unbroken", folder / "broken")

    broken = read_marks((folder / "broken" / "goodput.jsonl").read_text().splitlines())
    print_table(
        f"{args.kills} kills of a run of {marks[-1].step} steps: equal to the bit",
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


def _break(folder: Path, number: int, start_seconds: float, dice: random.Random) -> list[dict[str, Any]]:
    """Starts and kills the run so often; what was done, kill by kill."""
    # The later a kill, the later its step: the run makes way, and isn't done before the last.
    steps = sorted(dice.randrange(number * STEPS_A_KILL) for _ in range(number))
    killed = []
    for step in steps:
        in_the_start = dice.random() < 0.25
        which = dice.choices(list(SIGNALS), list(SIGNALS.values()))[0]
        delay = dice.uniform(0, 1.2 * start_seconds) if in_the_start else dice.uniform(0, 0.4)
        process = _start(folder, "broken")
        begun = time.perf_counter()
        if not in_the_start:
            while process.poll() is None and _progress(folder / "broken", process.pid) < step:
                time.sleep(0.01)
        if process.poll() is None:
            time.sleep(delay)
        process.send_signal(which)
        seconds = time.perf_counter() - begun
        output = process.communicate()[0]
        if process.returncode not in STATUS[which]:
            raise SoakError(f"{which.name} {seconds:.2f} s after a start led to {process.returncode}:\n{output}")
        killed.append(
            {
                "signal": which.name,
                "where": "start" if in_the_start else f"step ≥ {step}",
                "seconds": round(seconds, 2),
                "step": _newest(folder / "broken"),
                "status": process.returncode,
            }
        )
    return killed


def _marks(workdir: Path) -> list[Mark]:
    try:
        return read_marks((workdir / "goodput.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return []


def _newest(workdir: Path) -> int:
    marks = _marks(workdir)
    return marks[-1].step if marks else 0


def _progress(workdir: Path, pid: int) -> int:
    """The newest step marked by the start that is running now; -1 before its first mark."""
    began = _began(pid)
    return max((mark.step for mark in _marks(workdir) if mark.began >= began), default=-1)


def _began(pid: int) -> float:
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
        raise SoakError(f"a run that nobody disturbed ended with {process.returncode}:\n{output}")


def compare(one: Path, other: Path) -> None:
    """Raises SoakError unless both runs ended in the same bits."""
    first, second = open_checkpoint(one, "latest"), open_checkpoint(other, "latest")
    differences = [] if first.step == second.step else [f"step {first.step} and {second.step}"]
    differences += [name for name in first.leaves if first.leaves[name] != second.leaves.get(name)]  # checksums
    differences += [key for key in ("data", "metrics", "unlogged") if first.about[key] != second.about[key]]
    for group in first.groups:  # and what they are checksums of
        ours, theirs = first.arrays(group), second.arrays(group)
        differences += [] if _same(ours, theirs) else [group]
    if _rows(one) != _rows(other):
        differences.append("metrics.jsonl")
    if differences:
        raise SoakError(f"{one} and {other} differ in {', '.join(differences)}")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(np.array_equal(one, other))


def _rows(workdir: Path) -> list[dict[str, Any]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in NOT_COMPARED} for line in lines]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SoakError as error:
        raise SystemExit(f"soak: {error}") from None
