"""The bar of a run in a terminal: what it shows, and that log lines stand above it; nothing of it in a file or pipe."""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tood_jax.run_log.log import RunLog

ROOT = Path(__file__).resolve().parents[2]

RUN = """
import sys
from tood_jax.run_log.log import RunLog

with RunLog(sys.argv[1], 10) as log:
    log.info("begins")
    for step in range(1, 101):
        log.live_step(step, 100, 1 / step, 4, 0.5 * step)
        if step == 50:
            for batch in range(3):
                log.live_evaluation(batch, 3)
            log.live_evaluation(3, 3)
            log.info("evaluated")
        if step % 10 == 0:
            log.progress(step, 100, {"loss": 1 / step})
    log.info("ends")
"""


def screen_of(output: str, width: int) -> list[str]:
    """The lines that stand on a terminal in the end: carriage returns write over what is there."""
    screen = []
    for line in output.replace("\r\n", "\n").split("\n"):
        cells = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        assert len(cells) <= width
        screen.append("".join(cells).rstrip())
    return screen


@pytest.mark.parametrize("width", [100, 50])
def test_a_terminal_shows_the_log_above_a_bar(tmp_path, width):
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=other, stderr=other, env=environment)
    os.close(other)
    output = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # the terminal is closed
            break
        if not part:
            break
        output += part
    os.close(main)
    assert process.wait() == 0
    text = output.decode()
    lines = [f"step {step}/100  loss {1 / step:.4g}" for step in range(10, 101, 10)]
    assert [line for line in screen_of(text, width) if line] == ["begins", *lines[:4], "evaluated", *lines[4:], "ends"]
    if width == 100:
        assert "| 50/100  evaluating, batch 2 of 3" in text
        assert "| 50/100  loss 0.02  8.0 images/s  00:00:25 left" in text
        assert "100% |████████████████████| 100/100  loss 0.01  8.0 images/s  00:00:00 left" in text
    logged = (tmp_path / "run" / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line[21:] for line in logged] == ["begins", *lines[:4], "evaluated", *lines[4:], "ends"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_there_is_no_bar_unless_both_streams_are_a_terminal(tmp_path, monkeypatch, name):
    """`train.py > file` and `train.py 2> file`: the file has plain lines, as a pipe has."""
    streams = {"stdout": io.StringIO(), "stderr": io.StringIO(), name: Terminal()}
    for one, stream in streams.items():
        monkeypatch.setattr(sys, one, stream)
    with RunLog(tmp_path, 2) as log:
        for step in range(1, 5):
            log.live_step(step, 4, 0.25, 4, 0.5 * step)
            log.live_evaluation(1, 2)
            log.progress(step, 4, {"loss": 0.25})
    assert streams["stdout"].getvalue() == "step 2/4  loss 0.25\nstep 4/4  loss 0.25\n"
    assert streams["stderr"].getvalue() == ""


def test_a_terminal_that_is_lost_ends_no_run(tmp_path, monkeypatch):
    class Lost(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Lost())
    monkeypatch.setattr(sys, "stderr", Lost())
    with RunLog(tmp_path, 1) as log:
        for step in range(1, 4):
            log.live_step(step, 3, 0.25, 4, 0.5 * step)
            log.live_evaluation(1, 2)
            log.progress(step, 3, {"loss": 0.25})
    assert len((tmp_path / "train.log").read_text().splitlines()) == 3
