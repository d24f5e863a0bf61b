"""Two processes that exchange values through the coordinator's store; nothing is compiled."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tood_jax.cli.launch import free_port
from tood_jax.training.folder_lock import WAIT_SECONDS, FolderLock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def start(tmp_path):
    """Starts a function of two_processes.py in two processes."""
    started = []

    def start(function, folder=tmp_path / "run"):
        address = f"127.0.0.1:{free_port()}"
        for index in range(2):
            own = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
            environment = {**os.environ, **own, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", WAIT_SECONDS: "0"}
            command = [sys.executable, "-m", "tests.distributed.two_processes", function, str(folder)]
            started.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            )
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


def finish(processes, status=0, timeout=240):
    said = [process.communicate(timeout=timeout)[0] for process in processes]
    assert [process.returncode for process in processes] == [status, status], said
    return said


@pytest.mark.parametrize("function", ["exchange", "save", "fail_to_save"])
def test_keys_in_the_store_do_not_grow(start, function):
    """At least 20 saves or 50 exchanges lie between the two counts, which differ by the keys of waits under way."""
    for said in finish(start(function)):
        early, late = map(int, re.findall(r"keys (\d+)", said))
        assert late <= early + 10
        assert late < 30


def test_processes_that_disagree_all_say_who_has_what(start):
    for said in finish(start("disagree"), status=1):
        assert "data.train: process 0 has 12 images, process 1 has 8 images. Give all" in said
        assert "same:" not in said
        assert "Traceback" not in said


def test_a_held_folder_ends_all_processes_with_its_status(start, tmp_path):
    lock = FolderLock(tmp_path / "run")
    assert lock.acquire(0, print) == ""
    try:
        for said in finish(start("share"), status=73):
            assert f"in use by another run (process {os.getpid()} on" in said
    finally:
        lock.release()


def test_a_process_that_waits_ends_on_a_second_sigterm(start):
    processes = start("hang")
    for process in processes:
        for line in process.stdout:
            if "waiting" in line:
                break
    time.sleep(2)
    first = processes[0]
    first.send_signal(signal.SIGTERM)
    time.sleep(3)
    assert first.poll() is None  # one may be meant for its next step
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 75
    assert "the other processes of this run do not come" in said
