"""Data in an object store: an in-memory file system stands for gs://, read through etils.epath and fsspec."""

import pickle
import sys
from pathlib import Path

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as registry

from tests.data.conftest import SETTINGS, assert_equal, take
from tests.data.test_array_records import write
from tood_jax.config import SplitConfig
from tood_jax.data.coco import load_coco
from tood_jax.data.decode import decode_image
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.paths import as_path, is_remote, local_copy, read_bytes
from tood_jax.data.pipeline import train_batches
from tood_jax.data.sets import load_set


class FakeStore(MemoryFileSystem):
    """gs://bucket/name, in memory."""

    protocol = ("gs", "gcs")
    store = {}  # noqa: RUF012 - as fsspec has it
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("gs://", "/").replace("gcs://", "/"))


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A function that puts a file or folder under gs://bucket/NAME."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(registry, "gcs", FakeStore)
    monkeypatch.setitem(registry, "gs", FakeStore)
    backend.fsspec_backend._get_filesystem.cache_clear()
    system = FakeStore()

    def put(source, name):
        source = Path(source)
        for file in [source] if source.is_file() else sorted(one for one in source.rglob("*") if one.is_file()):
            inside = "" if source.is_file() else f"/{file.relative_to(source)}"
            system.pipe_file(f"gs://bucket/{name}{inside}", file.read_bytes())

    yield put
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_local_paths_are_ordinary_ones():
    assert as_path("/a/b") == as_path("file:///a/b") == Path("/a/b")
    assert not is_remote(as_path("a/b"))


def test_the_parts_of_a_stored_path(store):
    path = as_path("gs://bucket/deep") / "a.jpg"
    assert (path.name, str(path)) == ("a.jpg", "gs://bucket/deep/a.jpg")
    assert is_remote(path)
    assert str(pickle.loads(pickle.dumps(path))) == str(path)  # as worker processes get it


def test_a_directory_in_a_store_gives_the_same_batches(store, shapes, batches, data_config):
    store(shapes.images, "train")
    store(shapes.annotations, "instances.json")
    found = load_set(SplitConfig("gs://bucket/train", "gs://bucket/instances.json"))
    assert str(found.images[4].path) == "gs://bucket/train/000005.jpg"
    assert found.ground_truth() == load_coco(shapes).ground_truth()
    assert_equal(take(train_batches(found, data_config, **SETTINGS)), batches)


def test_records_in_a_store_are_copied_once(store, shapes, batches, data_config, tmp_path):
    store(shapes.images, "train")
    store(shapes.annotations, "instances.json")
    write(SplitConfig("gs://bucket/train", "gs://bucket/instances.json"), tmp_path / "records", "--shards=3")
    store(tmp_path / "records", "records")
    found = load_set(SplitConfig(records="gs://bucket/records"))
    assert_equal(take(train_batches(found, data_config, **SETTINGS)), batches)
    copies = sorted((tmp_path / "cache").rglob("*.array_record"))
    assert len(copies) == 3
    times = [one.stat().st_mtime_ns for one in copies]
    load_set(SplitConfig(records="gs://bucket/records"))
    assert [one.stat().st_mtime_ns for one in copies] == times
    copies[0].write_bytes(b"torn")
    load_set(SplitConfig(records="gs://bucket/records"))
    assert copies[0].stat().st_size > 4
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_torn_shard_in_a_store(store, written_records):
    store(written_records, "records")
    shard = min(written_records.glob("*.array_record"))
    FakeStore().pipe_file(f"gs://bucket/records/{shard.name}", b"torn")
    with pytest.raises(DataError, match=r"gs://bucket/records/images-00000.* should have [\d,]+ bytes and has 4"):
        load_set(SplitConfig(records="gs://bucket/records"))


@pytest.fixture
def written_records(shapes, tmp_path):
    write(shapes, tmp_path / "records", "--shards=2")
    return tmp_path / "records"


def test_a_full_disk_is_told_before_it_is(store, written_records, monkeypatch):
    store(written_records, "records")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(DataError, match=r"but only 10 are free in .*, where shards are kept: make room, or set XDG"):
        local_copy(as_path("gs://bucket/records/records.json"))


def test_what_is_not_there_is_said_as_of_files(store, shapes):
    with pytest.raises(DataError, match=r"no annotation file gs://bucket/none\.json"):
        load_set(SplitConfig("gs://bucket/train", "gs://bucket/none.json"))
    with pytest.raises(DataError, match=r"gs://bucket/none has no records\.json"):
        load_set(SplitConfig(records="gs://bucket/none"))
    with pytest.raises(BrokenImageError, match=r"gs://bucket/none\.jpg can't be read"):
        decode_image(as_path("gs://bucket/none.jpg"))


def test_errors_of_a_library_s_own_become_broken_images(store):
    class Path:
        name = "a.jpg"

        def read_bytes(self):
            raise type("HttpError", (Exception,), {})("Anonymous caller, 401")

        def __str__(self):
            return "gs://bucket/a.jpg"

    with pytest.raises(BrokenImageError, match=r"gs://bucket/a\.jpg can't be read \(HttpError: Anonymous caller"):
        decode_image(Path())


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it weren't installed
    for name in ("gs", "gcs"):
        monkeypatch.delitem(registry, name, raising=False)
    backend.fsspec_backend._get_filesystem.cache_clear()
    with pytest.raises(DataError, match=r"gs://b/a\.json can't be opened, .*: pip install gcsfs, or copy the data to"):
        load_set(SplitConfig("gs://b/train", "gs://b/a.json"))
    with pytest.raises(DataError, match="pip install gcsfs"):
        read_bytes(as_path("gs://b/a.jpg"))


def test_addresses_of_other_kinds():
    with pytest.raises(DataError, match=r"http://a/b\.json begins with http://, which can't be read; give a"):
        load_set(SplitConfig("http://a/b", "http://a/b.json"))
