"""One run folder, one run: who gets in, who is kept out, and what a killed or lost holder leaves."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tood_jax.training import folder_lock
from tood_jax.training.folder_lock import FolderInUseError, FolderLock, Timing, hold_folder

ROOT = Path(__file__).resolve().parents[2]
QUICK = Timing(beat=0.05, stale=0.4, settle=0.1, poll=0.02)
HOLD = """
import errno, fcntl, sys, time
from pathlib import Path
from tood_jax.training import folder_lock

def refuse(descriptor, operation):
    raise OSError(errno.ENOTSUP, "no locks here")

if sys.argv[2] == "heartbeat":
    fcntl.flock = refuse
lock = folder_lock.FolderLock(Path(sys.argv[1]), folder_lock.Timing(0.05, 0.4, 0.1, 0.02))
print(lock.acquire(0.0, print) or "held", flush=True)
time.sleep(float(sys.argv[3]))
lock.release()
"""


@pytest.fixture(params=["flock", "ENOLCK", "ENOTSUP"])
def means(request, monkeypatch):
    """With flock, and on file systems that have none."""
    if request.param == "flock":
        return "flock"

    def refuse(descriptor, operation):
        raise OSError(getattr(errno, request.param), "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    return "heartbeat"


@pytest.fixture
def holder(tmp_path, means):
    """Another process that holds the folder `tmp_path / "run"`, for a minute."""
    process = hold(tmp_path / "run", means, 60)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def hold(folder, means, seconds):
    command = [sys.executable, "-c", HOLD, str(folder), means, str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=-1, text=True)


def acquire(folder, wait=0.0, log=lambda text: None):
    lock = FolderLock(folder, QUICK)
    return lock, lock.acquire(wait, log)


def test_a_second_run_is_told_who_holds_the_folder(tmp_path, holder):
    messages: list[str] = []
    _, refusal = acquire(tmp_path / "run", 0.3, messages.append)
    assert f"process {holder.pid} on {os.uname().nodename}, since 20" in refusal
    assert f"kill -TERM {holder.pid}" in refusal
    assert str(tmp_path / "run") in refusal
    assert len(messages) == 1
    assert "waiting for it to end, 0.3 s at most" in messages[0]


def test_a_second_run_waits_for_the_first_to_end(tmp_path, holder):
    """SLURM's requeue beside a job that still saves."""
    threading.Timer(0.3, holder.kill).start()
    lock, refusal = acquire(tmp_path / "run", 30)
    assert refusal == ""
    lock.release()


def test_a_killed_holder_keeps_nobody_out(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    begin = time.monotonic()
    lock, refusal = acquire(tmp_path / "run")
    assert refusal == ""
    assert time.monotonic() - begin < 0.35  # no heartbeat was waited for
    lock.release()


def test_one_process_can_hold_one_folder_after_another_and_again(tmp_path, means):
    for _ in range(3):
        for name in ("a", "b"):
            with_lock, refusal = acquire(tmp_path / name)
            assert refusal == ""
            assert "in use by another run (process" in acquire(tmp_path / name)[1]
            with_lock.release()
            with_lock.release()  # twice is harmless
            assert (tmp_path / name / "run.lock").read_bytes() == b""


def of_a_lost_machine(folder, **fields):
    """The lock file of a process on another machine."""
    lock, _ = acquire(folder)
    content = json.loads((folder / "run.lock").read_text())
    lock.release()
    other = {**content, "host": "node007", "kernel": "other", "pid_space": "other", **fields}
    (folder / "run.lock").write_text(json.dumps(other))


def test_a_lost_machine_keeps_nobody_out(tmp_path, means):
    of_a_lost_machine(tmp_path)
    begin = time.monotonic()
    lock, refusal = acquire(tmp_path)
    assert refusal == ""
    assert QUICK.stale <= time.monotonic() - begin < QUICK.stale + 2
    lock.release()


def test_a_machine_that_gives_signs_of_life_keeps_others_out(tmp_path, means):
    """Whatever its clock says: the file's time lies far in the past and moves."""
    of_a_lost_machine(tmp_path, pid=1)
    ended = threading.Event()

    def beat():
        count = 0
        while not ended.wait(0.02):
            count += 1
            os.utime(tmp_path / "run.lock", (count, count))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        _, refusal = acquire(tmp_path, wait=1.0)
    finally:
        ended.set()
        thread.join()
    assert "process 1 on node007" in refusal
    assert "kill -TERM" not in refusal  # not to be typed on this machine


@pytest.mark.parametrize("content", [b"", b"\x00\xff{", b"[]", b'{"pid": 1e99}', b"[" * 4000])
def test_a_damaged_lock_file_keeps_nobody_out_for_long(tmp_path, means, content):
    (tmp_path / "run.lock").write_bytes(content)
    lock, refusal = acquire(tmp_path)
    assert refusal == ""
    lock.release()


def test_of_two_that_start_at_once_one_gets_in(tmp_path, means):
    processes = [hold(tmp_path, means, 2) for _ in range(3)]
    said = [process.communicate()[0] for process in processes]
    assert sum(text.endswith("held\n") for text in said) == 1, said
    assert sum("in use by another run" in text for text in said) == 2


def test_a_holder_hears_that_it_was_taken_for_dead(tmp_path, means):
    lost: list[str] = []
    lock = FolderLock(tmp_path, QUICK, lost.append)
    assert lock.acquire(0, print) == ""
    of = json.loads((tmp_path / "run.lock").read_text())
    (tmp_path / "run.lock").write_text(json.dumps({**of, "host": "node9", "token": "another"}))
    deadline = time.monotonic() + 10
    while not lost and time.monotonic() < deadline:
        time.sleep(0.01)
    assert f"{tmp_path} was taken over by process {os.getpid()} on node9" in lost[0]
    lock.release()
    assert b"node9" in (tmp_path / "run.lock").read_bytes()  # the other's lock stays


def test_a_request_to_stop_ends_the_waiting(tmp_path, holder):
    lock = FolderLock(tmp_path / "run", QUICK)
    assert "in use" in lock.acquire(3600, lambda text: None, is_stopped=lambda: True)


def test_a_recycled_process_id_keeps_nobody_out(tmp_path, means):
    lock, _ = acquire(tmp_path)
    content = json.loads((tmp_path / "run.lock").read_text())
    lock.release()
    alive = psutil.Process().parent()
    (tmp_path / "run.lock").write_text(json.dumps({**content, "pid": alive.pid, "pid_began": 1.0}))
    lock, refusal = acquire(tmp_path)
    assert refusal == ""
    lock.release()


def test_the_context_holds_and_refuses(tmp_path, monkeypatch):
    monkeypatch.setenv(folder_lock.WAIT_SECONDS, "0")
    with hold_folder(tmp_path):
        with pytest.raises(FolderInUseError, match="in use by another run") as refused, hold_folder(tmp_path):
            pass
        assert refused.value.status == 73
    with pytest.raises(ZeroDivisionError), hold_folder(tmp_path):
        raise ZeroDivisionError
    with hold_folder(tmp_path):
        pass
