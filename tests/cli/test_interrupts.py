"""Ctrl-C in programs that have nothing to save."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal, time
from tood_jax.cli import common
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
common._INTERRUPT_SECONDS = 0.5
with common.report_errors("tood eval"):
    print("ready", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        if {is_lost}:
            time.sleep(60)
        raise
"""


@pytest.mark.parametrize("is_lost", [False, True])
def test_ctrl_c_ends_a_program_also_where_a_library_loses_it(is_lost):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(is_lost=is_lost)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "tood eval: stopped at once.\n"
    assert process.returncode == 130
