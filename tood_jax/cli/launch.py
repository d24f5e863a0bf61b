"""python -m tood_jax.cli.launch -n 2 [--devices_per_process 2] train.py --config …: one run in several processes here.

Each is given its place by the environment that `tood_jax/training/processes.py` reads. The first one keeps the
terminal; the others' output goes to files. A Ctrl-C or a SIGTERM is passed on to all, once. When one of them fails,
the others, which can't go on without it, get a few seconds to say so and are then killed.
"""

import argparse
import ctypes
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

STOPPED = (130, 75)  # asked to stop, and did in good order
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
GRACE = 10.0  # seconds for the rest after one has failed
LAST_LINES = 15  # shown of the log of a process that failed


@dataclass(frozen=True)
class Ended:
    """A process that is gone."""

    index: int
    status: int  # as subprocess has it: minus the signal, if one killed it

    @property
    def is_failure(self) -> bool:
        return self.status not in (0, *STOPPED)

    @property
    def exit_status(self) -> int:
        """As shells have it."""
        return self.status if self.status >= 0 else 128 - self.status

    def __str__(self) -> str:
        how = f"with status {self.status}" if self.status >= 0 else f"by {signal.Signals(-self.status).name}"
        return f"process {self.index} ended {how}"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command in n processes; the exit status is that of the first failure, else the largest."""
    args = _parse(argv)
    gpus = visible_gpus(os.environ)
    try:
        shares = gpu_shares(gpus, args.n, args.devices_per_process)
    except ValueError as error:
        print(f"launch: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    place = f"127.0.0.1:{free_port()}"
    environments = [
        {**os.environ, **process_environment(place, args.n, index, shares[index], args.devices_per_process or 1)}
        for index in range(args.n)
    ]
    raise SystemExit(run([sys.executable, *args.command], environments, Path(args.logs)))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    summary, _, description = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m tood_jax.cli.launch", usage=summary.partition(":")[0], description=description
    )
    parser.add_argument("-n", type=int, required=True, help="number of processes")
    parser.add_argument(
        "--devices_per_process", "--devices-per-process", type=int, default=0,
        help="GPUs of each process (by default an equal share of all), or virtual devices where there is no GPU (1)",
    )  # fmt: skip
    default = f"runs/launch/{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    parser.add_argument("--logs", default=default, help="folder for the output of all processes but the first")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="train.py or eval.py with their options")
    args = parser.parse_args(argv)
    if args.n < 1 or args.devices_per_process < 0:
        parser.error("-n and --devices_per_process must be at least 1")
    if not args.command:
        parser.error("name a program to run, as in: train.py --config configs/NAME.py")
    return args


# ---------------------------------------------------------------- each process's place


def free_port() -> int:
    """A port of this machine that nobody listens to now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def visible_gpus(environment: Mapping[str, str]) -> list[int]:
    """Numbers of the NVIDIA GPUs that a process sees, counted from 0; none where JAX_PLATFORMS names others only."""
    if not {"", "cuda", "gpu"} & {*environment.get("JAX_PLATFORMS", "").split(",")}:
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return list(range(len([one for one in environment["CUDA_VISIBLE_DEVICES"].split(",") if one.strip()])))
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return list(range(sum(line.startswith("GPU ") for line in listed.splitlines())))


def gpu_shares(gpus: Sequence[int], processes: int, each: int = 0) -> list[list[int]]:
    """GPUs of each process: `each` of them, or equal shares with 0; empty lists without GPUs. Raises ValueError."""
    if not gpus:
        return [[] for _ in range(processes)]
    each = each or len(gpus) // processes
    if not each or each * processes > len(gpus):
        raise ValueError(f"{processes} processes need {processes * max(each, 1)} GPUs, but {len(gpus)} are visible.")
    return [list(gpus[index * each : (index + 1) * each]) for index in range(processes)]


def process_environment(
    address: str, count: int, index: int, gpus: Sequence[int] = (), cpu_devices: int = 1
) -> dict[str, str]:
    """What tells one process its place."""
    own = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    if gpus:
        return own | {"JAX_LOCAL_DEVICE_IDS": ",".join(map(str, gpus))}
    return own | {"JAX_NUM_CPU_DEVICES": str(cpu_devices)}


# ---------------------------------------------------------------- running them


def run(command: Sequence[str], environments: Sequence[Mapping[str, str]], logs: Path, grace: float = GRACE) -> int:
    """Runs the command once in each environment and waits; returns the exit status.

    Args:
        grace: seconds from the first failure to the killing of the rest.
    """
    processes: list[subprocess.Popen] = []
    ends: queue.SimpleQueue[Ended | None] = queue.SimpleQueue()
    former = {number: signal.signal(number, _passing_on(processes)) for number in SIGNALS}
    try:
        for index, environment in enumerate(environments):
            processes.append(_start(command, environment, _log_file(logs, index) if index else None))
            threading.Thread(target=_await, args=(index, processes[index], ends), daemon=True).start()
        ended = _wait(processes, ends, grace)
    finally:
        for process in processes:
            _kill(process)
        for number, handler in former.items():
            signal.signal(number, handler)
    failures = [one for one in ended if one.is_failure]
    if not failures:
        return max(one.exit_status for one in ended)
    _tell(failures[0], ended, logs)
    return failures[0].exit_status


def _start(command: Sequence[str], environment: Mapping[str, str], log: Path | None) -> subprocess.Popen:
    """In a session of its own: a terminal sends Ctrl-C to all of its group, and each shall hear it once, from here."""
    die = _dying_with_parent()
    if log is None:
        return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=die)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as out:
        return subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            preexec_fn=die,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def _dying_with_parent() -> Callable[[], None] | None:
    """On Linux: makes a process get SIGTERM when the launcher is killed, so that it saves and ends."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, set_parent_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_parent_death_signal, int(signal.SIGTERM), 0, 0, 0) and None


def _await(index: int, process: subprocess.Popen, ends: "queue.SimpleQueue[Ended | None]") -> None:
    ends.put(Ended(index, process.wait()))


def _wait(processes: Sequence[subprocess.Popen], ends: "queue.SimpleQueue[Ended | None]", grace: float) -> list[Ended]:
    """All ends, in their order."""
    ended: list[Ended] = []
    deadline = None
    while len(ended) < len(processes):
        # In short waits: Python hears signals only between them.
        try:
            one = ends.get(timeout=0.2)
        except queue.Empty:
            if deadline is not None and time.monotonic() > deadline:
                for process in processes:
                    _kill(process)
                deadline = None
            continue
        if one is not None:
            ended.append(one)
            if one.is_failure and deadline is None and len(ended) < len(processes):
                print(f"launch: {one}; the others get {grace:g} s to end.", file=sys.stderr, flush=True)
                deadline = time.monotonic() + grace
    return ended


def _kill(process: subprocess.Popen) -> None:
    """With its data workers."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        process.wait()


def _passing_on(processes: Sequence[subprocess.Popen]) -> Callable[[int, FrameType | None], None]:
    def hear(number: int, frame: FrameType | None) -> None:
        del frame
        for process in processes:
            if process.returncode is None:
                process.send_signal(number)

    return hear


def _tell(first: Ended, ended: Sequence[Ended], logs: Path) -> None:
    """Which one failed first, and the last lines of the logs of those that failed."""
    print(f"launch: {first}" + ("" if len(ended) == 1 else ", the first of the failures") + ".", file=sys.stderr)
    for one in ended:
        log = _log_file(logs, one.index)
        if one.index and (one is first or (one.is_failure and first.index == 0)) and log.exists():
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            print(f"launch: the end of {log} ({one}):", *lines, sep="\n  ", file=sys.stderr)


def _log_file(logs: Path, index: int) -> Path:
    return logs / f"process_{index}.log"


if __name__ == "__main__":
    main()
