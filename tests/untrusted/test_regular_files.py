"""Only regular files of bounded size are read."""

import os
import socket

import pytest

from tood_jax.untrusted.regular_files import NotRegularError, file_kind, read_regular


def make(path, kind):
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", ["FIFO", "folder", "socket", "device"])
def test_only_regular_files_are_read(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = make(tmp_path / "a.jpg", kind)
    assert file_kind(path) == f"a {kind}"
    with pytest.raises(NotRegularError, match=f"it is a {kind}, not a regular file") as error:
        read_regular(path)
    assert error.value.strerror


def test_a_file_that_becomes_a_fifo_after_the_check_is_also_refused(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    regular = os.stat(tmp_path / "a")
    os.mkfifo(tmp_path / "b")
    monkeypatch.setattr("tood_jax.untrusted.regular_files.os.stat", lambda path: regular)
    with pytest.raises(NotRegularError, match="FIFO"):
        read_regular(tmp_path / "b")


@pytest.mark.parametrize("size", [0, 1, 100, 3_000_000])
def test_the_whole_content_and_no_more_than_allowed(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_regular(tmp_path / "link") == content
    assert read_regular(tmp_path / "a", size) == content
    if size:
        with pytest.raises(NotRegularError, match="larger than"):
            read_regular(tmp_path / "a", size - 1)


def test_a_sparse_file_of_terabytes_is_not_read(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(NotRegularError, match="larger than"):
        read_regular(tmp_path / "a")


def test_files_without_a_size_are_read_to_the_end():
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc")
    assert b"Name:" in read_regular("/proc/self/status")
    with pytest.raises(NotRegularError, match="larger than 10 bytes"):
        read_regular("/proc/self/status", 10)


def test_a_missing_file_is_an_ordinary_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none")
