"""Any text can be printed on any kind of output."""

import io
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.untrusted.terminal import encodable, end_quietly_when_closed, prepare_streams, print_line, print_warning

ANY_TEXT = st.text(st.characters(exclude_categories=()))
ENCODINGS = ("utf-8", "latin-1", "ascii", "cp437", "koi8-r", "shift_jis", "utf-16")


@given(ANY_TEXT, st.sampled_from(ENCODINGS))
def test_any_text_is_printed_in_any_encoding(text, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    assert print_line(text, stream)
    told = raw.getvalue().decode(encoding)
    assert told.replace("\n", "").isprintable()


def test_characters_of_the_encoding_are_unchanged():
    assert encodable("≥ é a", io.TextIOWrapper(io.BytesIO(), encoding="latin-1")) == "? é a"
    assert encodable("≥ é a", io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) == "≥ é a"


def test_missing_streams(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert not print_line("x")
    assert not print_warning("x")
    prepare_streams()
    assert print_line("x")
    print("x", file=sys.stderr)


def test_a_closed_or_full_stream(tmp_path):
    with open(tmp_path / "a", "w") as closed:
        pass
    assert not print_line("x", closed)
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb", buffering=0) as full:
            assert not print_line("x", io.TextIOWrapper(full, write_through=True))


PROGRAM = """
from tood_jax.untrusted.terminal import prepare_streams, print_line
prepare_streams()
for i in range(20000): print_line(f"line {i} ≥")
print("…")
import sys; sys.exit(7)
"""


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_a_closed_pipe_does_not_change_the_exit_status(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert program.stdout.readline().startswith(b"line 0")
    program.stdout.close()
    assert program.wait(60) == 7
    assert program.stderr.read() == b""


@pytest.mark.parametrize("lines", [3, 20_000])
def test_help_may_go_to_a_closed_pipe(lines):
    code = f"""
import sys, time
from tood_jax.untrusted.terminal import end_quietly_when_closed
@end_quietly_when_closed()
def show():
    print("first", flush=True)
    time.sleep(0.5)
    for i in range({lines}): print("line")
    raise SystemExit(0)
show()
"""
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout.readline() == b"first\n"
    program.stdout.close()
    assert program.wait(60) == 0
    assert program.stderr.read() == b""


def test_errors_are_not_hidden():
    with pytest.raises(KeyError), end_quietly_when_closed():
        raise KeyError
    with pytest.raises(SystemExit) as end, end_quietly_when_closed():
        raise SystemExit(2)
    assert end.value.code == 2
