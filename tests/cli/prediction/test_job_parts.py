"""An interrupted job: each image has one row, wherever the kill came."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.cli.prediction.job import JobFolder, Part
from tood_jax.config import ConfigError
from tood_jax.data.errors import DataError

CHUNK = 4


def row(position):
    return {"path": f"ä{position}.jpg", "scores": [position / 7] * (position % 3)}


def own_positions(index, processes, images):
    return [position for position in range(images) if position // CHUNK % processes == index]


def write(folder, index, processes, images, stop=None):
    """What a process writes until it is stopped, after those rows that it keeps."""
    part = Part(folder.part(index, processes), CHUNK)
    own = own_positions(index, processes, images)
    assert list(part.kept_paths()) == [row(position)["path"] for position in own[: part.kept]]
    for position in own[part.kept :][:stop]:
        part.append(row(position))
    part.close()


@given(data=st.data(), images=st.integers(0, 40), processes=st.integers(1, 3))
def test_any_number_of_kills_at_any_byte_gives_each_row_once(tmp_path_factory, data, images, processes):
    folder = JobFolder(tmp_path_factory.mktemp("out"))
    folder.begin({"a": 1})
    for _ in range(data.draw(st.integers(0, 3))):
        for index in range(processes):
            write(folder, index, processes, images, data.draw(st.integers(0, 12)))
            file = folder.part(index, processes)
            file.write_bytes(file.read_bytes()[: data.draw(st.integers(0, file.stat().st_size))])
        assert folder.resume({"a": 1}) is False
    for index in range(processes):
        write(folder, index, processes, images)
    assert list(folder.rows(processes, CHUNK)) == [row(position) for position in range(images)]


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    part = Part(tmp_path / "part", 1)
    part.append(row(1))
    write = os.write

    def full(descriptor, data):
        monkeypatch.setattr(os, "write", failing)
        return write(descriptor, bytes(data[:7]))

    def failing(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        part.append(row(2))
    monkeypatch.undo()
    part.append(row(3))
    assert [json.loads(line) for line in (tmp_path / "part").read_text().splitlines()] == [row(1), row(3)]


def test_another_job_is_not_continued(tmp_path):
    folder = JobFolder(tmp_path)
    assert folder.resume({"batch": 1, "images": ["a"]}) is False  # there was none
    with pytest.raises(ConfigError, match=r"can't be continued \(batch was 1 and is 2\): give the options"):
        folder.resume({"batch": 2, "images": ["a"]})
    write(folder, 0, 1, 4)
    folder.complete()
    assert not folder.part(0, 1).exists()
    assert JobFolder(tmp_path).resume({"batch": 1, "images": ["a"]}) is True
    folder.begin({"batch": 2})
    assert folder.resume({"batch": 2}) is False


def test_a_damaged_row_is_named(tmp_path):
    (tmp_path / "part").write_bytes(b"\0\0\n")
    with pytest.raises(DataError, match=r"part is not JSON .*: start anew without --resume"):
        list(Part(tmp_path / "part", 1).kept_paths())


def test_two_programs_do_not_share_a_folder(tmp_path):
    folder = JobFolder(tmp_path)
    folder.lock()
    folder.begin({})
    for use in (JobFolder(tmp_path).lock, lambda: [Part(folder.part(0, 1), 1), Part(folder.part(0, 1), 1)]):
        with pytest.raises(ConfigError, match=r"detections\.parts is in use by another predict\.py"):
            use()
    folder.close()
    JobFolder(tmp_path).lock()
