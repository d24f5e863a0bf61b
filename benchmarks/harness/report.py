"""The JSON report of a case: its command, date, machine, versions, options and results."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import psutil

from benchmarks.harness.memory import process_memory
from benchmarks.harness.options import RESULTS, ROOT, Options, program_name
from tood_jax.config import Config, to_dict
from tood_jax.config.conversion import to_plain

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "opencv-python-headless")
Report = dict[str, Any]
Row = dict[str, Any]


def begin_report(name: str, argv: Sequence[str], args: Options, config: Config | None = None) -> Report:
    """Return the first part of a report: the case, its command, and when and where it runs."""
    return {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*program_name(name).split(), *argv]),
        "commit": _commit(),
        "machine": machine(),
        "versions": versions(),
        "load_average_before": os.getloadavg()[0],
        "options": to_plain(args),
        "config": None if config is None else to_dict(config),
    }


def finish_report(report: Report, args: Options, **results: Any) -> Report:
    """Add the results, write the JSON file and print its path."""
    report = {**report, "load_average_after": os.getloadavg()[0], "memory": process_memory(), **results}
    path = Path(args.out) if args.out else RESULTS / f"{report['benchmark']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        f"\n{_describe(report['machine'])}; JAX {report['versions']['jax']}; {report['date']}; "
        f"load {report['load_average_before']:.1f} before, {report['load_average_after']:.1f} after; {path}"
    )
    return report


def machine() -> dict[str, Any]:
    """Return the CPU, memory and accelerators that this process may use."""
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
    """Return the versions of Python and of the packages that affect speed."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def _describe(machine: dict[str, Any]) -> str:
    accelerators = ", ".join(machine["accelerators"]) or "no accelerator"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, {accelerators}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _commit() -> str | None:
    """Return the commit, with `-dirty` if files differ from it; None outside git. Takes no lock."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
