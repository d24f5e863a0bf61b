"""Files are written whole or not at all."""

import errno
import os

import pytest

from tood_jax.files import write_atomically


def test_links_and_permissions_stay(tmp_path):
    target = tmp_path / "deep" / "a.json"
    (tmp_path / "link").symlink_to(target)
    write_atomically(tmp_path / "link", b"one")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"one"
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask()
    target.chmod(0o640)
    write_atomically(target, b"two")
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o640


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failure_keeps_the_former_file_and_names_it(tmp_path, monkeypatch, call):
    target = tmp_path / "a.json"
    write_atomically(target, b"one")

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("builtins.open" if call == "open" else f"os.{call}", fail)
    with pytest.raises(OSError, match=f"No space left on device: '{target}'"):
        write_atomically(target, b"two")
    monkeypatch.undo()
    assert target.read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_is_no_regular_file_is_written_to(tmp_path):
    write_atomically("/dev/null", b"x")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        write_atomically(tmp_path, b"x")
