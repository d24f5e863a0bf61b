"""Files that outlive a full disk: whole records, in their order, once."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tood_jax.run_log import appender
from tood_jax.run_log.appender import Appender

ROOT = Path(__file__).resolve().parents[2]


def test_records_are_appended(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "x").write_bytes(b"0\n")
    out = Appender(tmp_path / "x", told.append)
    out.append(b"1\n")
    out.append(b"2\n")
    assert (tmp_path / "x").read_bytes() == b"0\n1\n2\n"
    assert not told


LIMITED = """
import resource, sys
from pathlib import Path
from tood_jax.run_log.appender import Appender
told = []
out = Appender(Path(sys.argv[1]), told.append)
out.append(b"a" * 9 + b"\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (25, resource.RLIM_INFINITY))
for letter in b"bcd":  # the kernel writes the first five bytes of the third
    out.append(bytes([letter]) * 9 + b"\\n")
assert Path(sys.argv[1]).stat().st_size == 20, Path(sys.argv[1]).read_bytes()
assert len(told) == 1 and "File too large" in told[0] and "waits for room" in told[0], told
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
out.append(b"e" * 9 + b"\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
out.append(b"f")
assert len(told) == 2, told
"""


def test_the_kernel_cuts_a_record_off(tmp_path: Path) -> None:
    """By the limit of a process on the size of its files, which works for every user and file system."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "x")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x").read_text() == "".join(letter * 9 + "\n" for letter in "abcde")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # the child's affair


def test_the_trouble_may_be_told_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    out = Appender(tmp_path / "x", lambda text: out.append(text.encode() + b"\n"))
    with monkeypatch.context() as patch:
        patch.setattr(appender.os, "write", full)
        out.append(b"1\n")
        out.append(b"2\n")
    out.append(b"3\n")
    lines = (tmp_path / "x").read_text().splitlines()
    assert [lines[0], *lines[2:]] == ["1", "2", "3"]
    assert "No space left on device" in lines[1]


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "_MAX_PENDING", 10)
    out = Appender(tmp_path / "not there" / "x", lambda text: None)
    for number in range(100):
        out.append(f"{number:02d}\n".encode())
    out.file.parent.mkdir()
    out.append(b"!\n")
    assert out.file.read_text().splitlines() == ["97", "98", "99", "!"]
