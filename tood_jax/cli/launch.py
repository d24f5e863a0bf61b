"""python -m tood_jax.cli.launch -n 2 [--devices_per_process 2] train.py --config …: one run in several processes here.

Each process gets its index by the environment that `tood_jax/distributed/cluster_environment.py` reads. The primary
process keeps the terminal; the output of the others goes to files. A Ctrl-C or a SIGTERM is sent to all, once. When a
process fails, the others, which cannot continue without it, get a few seconds to report that and are then killed.
"""

import argparse
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

from tood_jax.config.repeated_options import repeated_option
from tood_jax.untrusted.terminal import prepare_streams, print_warning

STOPPED = (130, 75)  # exit statuses of a process that stopped on request
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
GRACE = 10.0  # seconds for the other processes after one has failed
LAST_LINES = 15  # shown of the log of a process that failed

# Asks the kernel for a signal at the parent's death, then becomes the command. `preexec_fn` of subprocess would do the
# same between fork and exec, which is not safe in a process with threads.
_END_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):  # the launcher has ended already
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    index: int
    status: int  # of subprocess: minus the signal, if one killed it

    @property
    def is_failure(self) -> bool:
        return self.status not in (0, *STOPPED)

    @property
    def exit_status(self) -> int:
        """The status as shells report it."""
        return self.status if self.status >= 0 else 128 - self.status

    def __str__(self) -> str:
        how = f"with status {self.status}" if self.status >= 0 else f"by {signal.Signals(-self.status).name}"
        return f"process {self.index} ended {how}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command in n processes; the exit status is that of the first failure, otherwise the largest."""
    prepare_streams()
    args = parse_arguments(argv)
    gpus = visible_gpus(os.environ)
    try:
        shares = gpu_shares(gpus, args.n, args.devices_per_process)
    except ValueError as error:
        print_warning(f"launch: {error}")
        raise SystemExit(2) from None
    address = f"127.0.0.1:{free_port()}"
    environments = [
        {**os.environ, **process_environment(address, args.n, index, shares[index], args.devices_per_process or 1)}
        for index in range(args.n)
    ]
    raise SystemExit(run([sys.executable, *args.command], environments, Path(args.logs)))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    summary, _, description = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m tood_jax.cli.launch",
        usage=summary.partition(":")[0],
        description=description,
        allow_abbrev=False,
    )
    parser.add_argument("-n", type=int, required=True, help="number of processes")
    parser.add_argument(
        "--devices_per_process", "--devices-per-process", type=int, default=0,
        help="GPUs of each process (by default an equal share of all), or virtual devices where there is no GPU (1)",
    )  # fmt: skip
    default = f"runs/launch/{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    parser.add_argument("--logs", default=default, help="folder for the output of all processes but the first")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="train.py or eval.py with their options")
    words = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(words)
    if message := repeated_option(words[: len(words) - len(args.command)]):  # the program checks its own options
        parser.error(message)
    if args.n < 1 or args.devices_per_process < 0:
        parser.error("-n and --devices_per_process must be at least 1")
    if not args.command:
        parser.error("name a program to run, as in: train.py --config configs/NAME.py")
    return args


# ---------------------------------------------------------------- environment of each process


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def visible_gpus(environment: Mapping[str, str]) -> list[int]:
    """Return the indices of the visible NVIDIA GPUs; none where JAX_PLATFORMS names other platforms only."""
    if not {"", "cuda", "gpu"} & {*environment.get("JAX_PLATFORMS", "").split(",")}:
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return list(range(len([gpu for gpu in environment["CUDA_VISIBLE_DEVICES"].split(",") if gpu.strip()])))
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return list(range(sum(line.startswith("GPU ") for line in listed.splitlines())))


def gpu_shares(gpus: Sequence[int], processes: int, each: int = 0) -> list[list[int]]:
    """Return the GPUs of each process: `each` of them, or equal shares with 0; empty lists without GPUs.

    Raises:
        ValueError: there are too few.
    """
    if not gpus:
        return [[] for _ in range(processes)]
    each = each or len(gpus) // processes
    if not each or each * processes > len(gpus):
        raise ValueError(f"{processes} processes need {processes * max(each, 1)} GPUs, but {len(gpus)} are visible.")
    return [list(gpus[index * each : (index + 1) * each]) for index in range(processes)]


def process_environment(
    address: str, count: int, index: int, gpus: Sequence[int] = (), cpu_devices: int = 1
) -> dict[str, str]:
    """Return the environment variables that describe one process of the run."""
    own = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    if gpus:
        return own | {"JAX_LOCAL_DEVICE_IDS": ",".join(map(str, gpus))}
    return own | {"JAX_NUM_CPU_DEVICES": str(cpu_devices)}


# ---------------------------------------------------------------- the processes


def run(command: Sequence[str], environments: Sequence[Mapping[str, str]], logs: Path, grace: float = GRACE) -> int:
    """Run the command once in each environment, wait, and return the exit status.

    Args:
        grace: seconds from the first failure until the other processes are killed.
    """
    processes: list[subprocess.Popen] = []
    ends: queue.SimpleQueue[Ended] = queue.SimpleQueue()
    former = {number: signal.signal(number, _forward_signals(processes)) for number in SIGNALS}
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
    failures = [end for end in ended if end.is_failure]
    if not failures:
        return max(end.exit_status for end in ended)
    _report(failures[0], ended, logs)
    return failures[0].exit_status


def _start(command: Sequence[str], environment: Mapping[str, str], log: Path | None) -> subprocess.Popen:
    """Start a process in a session of its own: a terminal would send Ctrl-C to it a second time."""
    command = _ending_with_parent(command)
    if log is None:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as out:
        return subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def _ending_with_parent(command: Sequence[str]) -> list[str]:
    """Return the command so that, on Linux, it gets SIGTERM when the launcher is killed: then it saves and ends."""
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-ISc", _END_WITH_PARENT, str(os.getpid()), *command]


def _await(index: int, process: subprocess.Popen, ends: "queue.SimpleQueue[Ended]") -> None:
    ends.put(Ended(index, process.wait()))


def _wait(processes: Sequence[subprocess.Popen], ends: "queue.SimpleQueue[Ended]", grace: float) -> list[Ended]:
    """Return the ends of all processes, in their order."""
    ended: list[Ended] = []
    deadline = None
    while len(ended) < len(processes):
        # In short waits: Python handles signals only between them.
        try:
            end = ends.get(timeout=0.2)
        except queue.Empty:
            if deadline is not None and time.monotonic() > deadline:
                for process in processes:
                    _kill(process)
                deadline = None
            continue
        ended.append(end)
        if end.is_failure and deadline is None and len(ended) < len(processes):
            print_warning(f"launch: {end}; the others get {grace:g} s to end.")
            deadline = time.monotonic() + grace
    return ended


def _kill(process: subprocess.Popen) -> None:
    """Kill a process and its data workers."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        process.wait()


def _forward_signals(processes: Sequence[subprocess.Popen]) -> Callable[[int, FrameType | None], None]:
    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        for process in processes:
            if process.returncode is None:
                process.send_signal(number)

    return forward


def _report(first: Ended, ended: Sequence[Ended], logs: Path) -> None:
    """Print which process failed first, and the last lines of the logs of those that failed."""
    print_warning(f"launch: {first}" + ("" if len(ended) == 1 else ", the first of the failures") + ".")
    for end in ended:
        log = _log_file(logs, end.index)
        if end.index and (end is first or (end.is_failure and first.index == 0)) and log.exists():
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            print_warning("\n  ".join([f"launch: the end of {log} ({end}):", *lines]))


def _log_file(logs: Path, index: int) -> Path:
    return logs / f"process_{index}.log"


if __name__ == "__main__":
    main()
