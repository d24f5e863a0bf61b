"""Temporary files and shared memory of killed processes are removed by the next run, and no other files."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.helpers import SETTINGS
from tood_jax.data.temporary_files import owner_prefix, remove_stale_files

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import pickle, sys, time
from tood_jax.data.loader import train_batches
if __name__ == "__main__":
    dataset, data, settings = pickle.load(open(sys.argv[1], "rb"))
    iterator = train_batches(dataset, data, **settings)
    next(iterator)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def files_of(pid, *folders):
    return [file for folder in folders for file in folder.glob(f"tood_jax-*-{pid}-*")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux shows its shared memory as files")
def test_files_of_a_run_that_was_killed_with_all_its_workers_are_removed(shapes_set, data_config, temporary, tmp_path):
    """SLURM and the kernel may kill all processes at once, so that none is left to remove its files."""
    shared = Path("/dev/shm")
    data = replace(data_config, workers=2, threads=1)
    (tmp_path / "arguments").write_bytes(pickle.dumps((shapes_set, data, {**SETTINGS, "num_steps": 100_000})))
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, str(tmp_path / "child.py"), str(tmp_path / "arguments")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=-1, text=True, start_new_session=True)
    try:
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 30
        while not files_of(process.pid, shared) and time.monotonic() < deadline:
            time.sleep(0.05)
        held = {*files_of(process.pid, shared), *files_of(process.pid, temporary)}
        assert {file.parent for file in held} == {shared, temporary}
        assert not held & {*remove_stale_files()}  # the process is running
        assert {*files_of(process.pid, temporary)} <= held
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert files_of(process.pid, shared)
    assert {*remove_stale_files()} >= {*files_of(process.pid, temporary)}
    assert not files_of(process.pid, shared, temporary)


def test_only_files_of_dead_processes_are_removed(temporary):
    prefix = owner_prefix()
    machine = prefix.split("-")[1]
    kept = [
        f"{prefix}x",
        "tood_jax-00000000-1-1-x",  # of another machine, or another container
        f"tood_jax-{machine}-1-x",
        "tood_jax-notes.txt",
        f"other-{machine}-99999999-1-x",
    ]
    gone = [f"tood_jax-{machine}-{os.getpid()}-1-x", f"tood_jax-{machine}-99999999-5-active_reads_y"]
    for name in [*kept, *gone]:
        (temporary / name).touch()
    assert sorted(file.name for file in remove_stale_files() if file.parent == temporary) == sorted(gone)
    assert sorted(file.name for file in temporary.iterdir()) == sorted(kept)
