"""Data in an object store: a file system in memory takes the place of gs://, read through etils.epath and fsspec."""

import io
import os
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from etils.epath import backend
from fsspec.registry import _registry as registry

from tests.data.helpers import SETTINGS, assert_batches_equal, take_all, write_array_record_folder
from tests.data.object_store import FakeStore
from tood_jax.config import SplitConfig
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.formats.coco import load_coco
from tood_jax.data.image_io import decode_image
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.loader import train_batches
from tood_jax.data.paths import as_path, cache_folder, is_remote, local_copy, read_bytes


@pytest.fixture
def written_records(shapes, tmp_path):
    write_array_record_folder(shapes, tmp_path / "records", shards=2)
    return tmp_path / "records"


def test_local_paths_are_those_of_pathlib():
    assert as_path("/a/b") == as_path("file:///a/b") == Path("/a/b")
    assert not is_remote(as_path("a/b"))


def test_a_stored_path_has_a_name_and_can_be_pickled(store):
    path = as_path("gs://bucket/deep") / "a.jpg"
    assert (path.name, str(path)) == ("a.jpg", "gs://bucket/deep/a.jpg")
    assert is_remote(path)
    assert str(pickle.loads(pickle.dumps(path))) == str(path)  # as worker processes receive it


def test_a_directory_in_a_store_gives_the_same_batches(store, shapes, batches, data_config):
    store(shapes.images, "train")
    store(shapes.annotations, "instances.json")
    dataset = load_dataset(SplitConfig("gs://bucket/train", "gs://bucket/instances.json"))
    assert str(dataset.images[4].path) == "gs://bucket/train/000005.jpg"
    assert dataset.ground_truth() == load_coco(shapes).ground_truth()
    assert_batches_equal(take_all(train_batches(dataset, data_config, **SETTINGS)), batches)


def test_records_in_a_store_are_copied_once(store, shapes, batches, data_config, tmp_path):
    store(shapes.images, "train")
    store(shapes.annotations, "instances.json")
    write_array_record_folder(
        SplitConfig("gs://bucket/train", "gs://bucket/instances.json"), tmp_path / "records", shards=3
    )
    store(tmp_path / "records", "records")
    dataset = load_dataset(SplitConfig(records="gs://bucket/records"))
    assert_batches_equal(take_all(train_batches(dataset, data_config, **SETTINGS)), batches)
    copies = sorted((tmp_path / "cache").rglob("*.array_record"))
    assert len(copies) == 3
    times = [copy.stat().st_mtime_ns for copy in copies]
    load_dataset(SplitConfig(records="gs://bucket/records"))
    assert [copy.stat().st_mtime_ns for copy in copies] == times
    copies[0].write_bytes(b"cut")
    load_dataset(SplitConfig(records="gs://bucket/records"))
    assert copies[0].stat().st_size > 3
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_only_one_of_several_processes_copies_a_shard(store, written_records, monkeypatch):
    """Locks of threads that each open the file exclude each other as those of processes do."""
    store(written_records, "records")
    shard = as_path(f"gs://bucket/records/{min(written_records.glob('*.array_record')).name}")
    content = FakeStore().cat_file(str(shard))
    reads = []

    class SlowFile(io.BytesIO):
        def read(self, *args):
            time.sleep(0.2)
            return super().read(*args)

    def open_slowly(self, path, mode="rb", **options):
        reads.append(path)
        return SlowFile(content)

    monkeypatch.setattr(FakeStore, "open", open_slowly)
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(lambda _: local_copy(shard).read_bytes(), range(4)))
    assert len(reads) == 1
    assert copies == [content] * 4


def test_a_truncated_shard_in_a_store_is_an_error(store, written_records):
    store(written_records, "records")
    shard = min(written_records.glob("*.array_record"))
    FakeStore().pipe_file(f"gs://bucket/records/{shard.name}", b"cut")
    with pytest.raises(DataError, match=r"gs://bucket/records/images-00000.* should have [\d,]+ bytes but has 3"):
        load_dataset(SplitConfig(records="gs://bucket/records"))


def test_a_full_disk_is_reported_before_copying(store, written_records, monkeypatch):
    store(written_records, "records")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(DataError, match=r"but only 10 are free in .*, where shards are kept: free disk space"):
        local_copy(as_path("gs://bucket/records/records.json"))


def test_missing_objects_are_reported_like_missing_files(store, shapes):
    with pytest.raises(DataError, match=r"no annotation file gs://bucket/none\.json"):
        load_dataset(SplitConfig("gs://bucket/train", "gs://bucket/none.json"))
    with pytest.raises(DataError, match=r"gs://bucket/none has no records\.json"):
        load_dataset(SplitConfig(records="gs://bucket/none"))
    with pytest.raises(BrokenImageError, match=r"gs://bucket/none\.jpg can't be read"):
        decode_image(as_path("gs://bucket/none.jpg"))


def test_errors_of_a_store_are_not_broken_images(store):
    class Path:
        name = "a.jpg"

        def read_bytes(self):
            raise type("HttpError", (Exception,), {})("Anonymous caller, 401")

        def __str__(self):
            return "gs://bucket/a.jpg"

    with pytest.raises(DataError, match=r"gs://bucket/a\.jpg can't be read \(HttpError: Anonymous caller") as error:
        decode_image(Path())
    assert not isinstance(error.value, BrokenImageError)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    for name in ("gs", "gcs"):
        monkeypatch.delitem(registry, name, raising=False)
    backend.fsspec_backend._get_filesystem.cache_clear()
    with pytest.raises(DataError, match=r"gs://b/a\.json can't be opened, .*: pip install gcsfs, or copy the data to"):
        load_dataset(SplitConfig("gs://b/train", "gs://b/a.json"))
    with pytest.raises(DataError, match="pip install gcsfs"):
        read_bytes(as_path("gs://b/a.jpg"))


def test_other_schemes_are_refused():
    with pytest.raises(DataError, match=r"http://a/b\.json begins with http://, which can't be read; give a"):
        load_dataset(SplitConfig("http://a/b", "http://a/b.json"))


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "a.json"
    {"FIFO": lambda: os.mkfifo(path), "folder": path.mkdir, "device": lambda: path.symlink_to("/dev/zero")}[kind]()
    with pytest.raises(OSError, match=f"it is a {kind}, not a regular file"):
        read_bytes(path)


def test_a_missing_home_folder_is_an_error(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(DataError, match="set XDG_CACHE_HOME"):
        cache_folder()
