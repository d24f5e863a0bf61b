"""A COCO directory as records: identical samples, and clear errors for incomplete and damaged folders."""

import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.helpers import SETTINGS, assert_batches_equal, take_all, write_array_record_folder
from tood_jax.cli import to_array_record
from tood_jax.config import SplitConfig
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.formats import array_record
from tood_jax.data.formats.array_record import load_array_record, pack, split_evenly, unpack, write_array_record
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.loader import eval_batches, train_batches


@pytest.fixture(scope="session")
def written(shapes, tmp_path_factory):
    """`shapes` as records in four shards."""
    folder = tmp_path_factory.mktemp("records") / "shapes"
    write_array_record_folder(shapes, folder, shards=4)
    return folder


@pytest.fixture
def copy(written, tmp_path):
    """A copy of `written` that tests may change."""
    folder = tmp_path / "copy"
    shutil.copytree(written, folder)
    return folder


def shards_of(folder):
    return sorted(folder.glob("*.array_record"))


def test_the_data_set_is_that_of_the_directory(written, shapes_set):
    dataset = load_dataset(SplitConfig(records=str(written)))
    assert dataset.classes == shapes_set.classes
    assert dataset.report == shapes_set.report
    assert dataset.ground_truth() == shapes_set.ground_truth()
    assert dataset.fingerprint == shapes_set.fingerprint
    for image, expected in zip(dataset.images, shapes_set.images, strict=True):
        assert image.path.name == expected.path.name
        assert image.path.read_bytes() == expected.path.read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_batches_are_those_of_the_directory(written, batches, data_config, workers):
    data = replace(data_config, workers=workers)
    assert_batches_equal(take_all(train_batches(load_array_record(str(written)), data, **SETTINGS)), batches)


def test_the_evaluation_batches_are_those_of_the_directory(written, shapes_set, data_config):
    batches = take_all(eval_batches(load_array_record(str(written)), data_config, batch_size=4))
    assert_batches_equal(batches, take_all(eval_batches(shapes_set, data_config, batch_size=4)))


def test_subfolders_and_unusual_names(write_coco, tree, tmp_path):
    tree["images"].append({"id": 3, "file_name": "deep/ç.png", "width": 10, "height": 10})
    split = write_coco(tree)
    (Path(split.images) / "deep/c.png").rename(Path(split.images) / "deep/ç.png")
    write_array_record_folder(split, tmp_path / "out")
    found, directory = load_array_record(str(tmp_path / "out")), load_dataset(split)
    assert [image.path.name for image in found.images] == ["a.png", "b.png", "ç.png"]
    assert [image.path.read_bytes() for image in found.images] == [
        image.path.read_bytes() for image in directory.images
    ]
    assert str(found.images[2].path).endswith("out: deep/ç.png (record 2)")


def test_missing_image_sizes_are_read_from_the_records(write_coco, tree, tmp_path):
    del tree["images"][1]["width"]
    write_array_record_folder(write_coco(tree), tmp_path / "out")
    assert [(image.height, image.width) for image in load_array_record(str(tmp_path / "out")).images] == [
        (30, 40),
        (50, 20),
    ]


def test_a_broken_image_is_also_broken_in_records(breakable, data_config, shapes, tmp_path):
    dataset, truncate = breakable
    truncate(3)
    write_array_record_folder(replace(shapes, images=str(dataset.images[0].path.parent)), tmp_path / "out")
    found = load_array_record(str(tmp_path / "out"))
    with pytest.raises(BrokenImageError, match=r"out: 000004\.jpg \(record 3\) is truncated"):
        take_all(eval_batches(found, data_config, batch_size=4))


def test_images_can_be_pickled_to_another_process(written):
    found = load_array_record(str(written))
    assert len(pickle.dumps(found.images)) < 10_000  # all share a single reader
    again = pickle.loads(pickle.dumps(found.images))
    assert again[22].path.read_bytes() == found.images[22].path.read_bytes()


@pytest.mark.parametrize(("count", "parts"), [(23, 4), (4, 4), (5, 1), (7, 3)])
def test_lengths_of_parts_differ_by_at_most_1(count, parts):
    ranges = split_evenly(count, parts)
    assert [i for part in ranges for i in part] == list(range(count))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_a_record_is_unpacked_or_refused():
    assert unpack(pack("deep/ç.png", b"image")) == ("deep/ç.png", b"image")
    for invalid in (b"", b"\x01\x00", b"\xff\xff\xff\xffname"):
        with pytest.raises(OSError, match="not a record"):
            unpack(invalid)


def test_there_are_never_more_shards_than_images(write_coco, tree, tmp_path):
    write_array_record_folder(write_coco(tree), tmp_path / "out", shards=9)
    assert len(shards_of(tmp_path / "out")) == 2


# interrupted writing


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("images_before", [0, 3, 6, 7, 15, 22])
def test_interrupted_writing_is_continued(shapes, shapes_set, written, tmp_path, images_before, capsys):
    annotations = Path(shapes.annotations).read_bytes()
    images = [(image.path.name, image.path) for image in shapes_set.images]
    written_images = 0

    def interrupt(count):
        nonlocal written_images
        written_images += count
        if written_images > images_before:
            raise Interrupted

    with pytest.raises(Interrupted):
        write_array_record(annotations, images, tmp_path / "out", 4, interrupt)
    complete = shards_of(tmp_path / "out")
    assert len(complete) == sum(images_before >= edge for edge in (6, 12, 18))  # shards of 6, 6, 6 and 5
    with pytest.raises(DataError, match=r"no records\.json: writing it was interrupted; run the same command again"):
        load_array_record(str(tmp_path / "out"))
    times = [shard.stat().st_mtime_ns for shard in complete]
    write_array_record_folder(shapes, tmp_path / "out", shards=4)
    assert [shard.stat().st_mtime_ns for shard in complete] == times
    already = f" ({len(complete)} of them existed)" if complete else ""
    assert f"23 images in 4 shards{already}, " in capsys.readouterr().out
    for file, expected in zip(sorted((tmp_path / "out").iterdir()), sorted(written.iterdir()), strict=True):
        assert (file.name, file.read_bytes()) == (expected.name, expected.read_bytes())


def test_a_complete_folder_is_not_written_again(copy, shapes):
    times = {shard: shard.stat().st_mtime_ns for shard in shards_of(copy)}
    write_array_record_folder(shapes, copy, shards=4)
    assert {shard: shard.stat().st_mtime_ns for shard in shards_of(copy)} == times


def test_a_damaged_shard_is_written_again(copy, shapes, written):
    shard = shards_of(copy)[2]
    data = bytearray(shard.read_bytes())
    data[data.index(b"000014.jpg") + 500] ^= 1
    shard.write_bytes(data)
    write_array_record_folder(shapes, copy, shards=4)
    assert shard.read_bytes() == (written / shard.name).read_bytes()


def test_temporary_files_are_removed_only_if_their_writer_is_dead(copy, shapes):
    (copy / "records.json").unlink()
    dead, alive = (copy / f".images-00000-of-00004.array_record.{pid}.tmp" for pid in (2**22 + 1, os.getppid()))
    dead.write_bytes(b"cut")
    alive.write_bytes(b"cut")
    write_array_record_folder(shapes, copy, shards=4)
    assert alive.exists()
    assert not dead.exists()
    assert len(load_array_record(str(copy)).images) == 23


def test_a_full_disk_raises_and_leaves_no_shard(shapes_set, tmp_path, monkeypatch):
    class FullDisk:
        def __init__(self, name, options):
            Path(name).write_bytes(b"the beginning")

        def write(self, record):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr("array_record.python.array_record_module.ArrayRecordWriter", FullDisk)
    with pytest.raises(DataError, match=r"could not be written \(write\(\) failed: No space .*free disk space and run"):
        write_array_record(b"{}", [("a.jpg", shapes_set.images[0].path)], tmp_path / "out", 1, lambda count: None)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["instances.json"]


def test_a_shard_is_verified_before_it_gets_its_name(shapes_set, tmp_path, monkeypatch):
    monkeypatch.setattr(array_record, "is_intact", lambda file, names: False)
    with pytest.raises(DataError, match="differs from what was written"):
        write_array_record(b"{}", [("a.jpg", shapes_set.images[0].path)], tmp_path / "out", 1, lambda count: None)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["instances.json"]


# folders that cannot be read


def expect_error(folder, message):
    with pytest.raises(DataError, match=message) as caught:
        load_array_record(str(folder))
    assert "\n" not in str(caught.value)


def test_folders_without_a_valid_index(tmp_path, copy):
    expect_error(tmp_path / "none", r"none has no records\.json: write such a folder with python -m")
    for content, message in (
        ("{", r"is damaged \(it is not JSON"),
        ("[]", "is damaged"),
        ('{"format": 9}', "format 9"),
    ):
        (copy / "records.json").write_text(content)
        expect_error(copy, message)


def test_truncated_and_missing_shards(copy):
    shard = shards_of(copy)[1]
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size // 2)
    expect_error(copy, f"images-00001-of-00004.array_record has {size // 2:,} bytes instead of {size:,}: write")
    shard.unlink()
    expect_error(copy, r"images-00001-of-00004\.array_record can't be read \(No such file or directory\)")


def remove_checksum(folder):
    """Convert to a folder of November 2026 or before, whose index has no checksum of the annotations."""
    index = json.loads((folder / "records.json").read_text())
    del index["instances_sha256"]
    (folder / "records.json").write_text(json.dumps(index))


def test_a_folder_without_a_checksum_is_loaded(copy, shapes_set):
    remove_checksum(copy)
    assert load_array_record(str(copy)).ground_truth() == shapes_set.ground_truth()


def test_changed_annotations_are_detected(copy):
    text = (copy / "instances.json").read_text()
    (copy / "instances.json").write_text(text.replace('"disc"', '"dish"'))
    expect_error(copy, r"instances\.json is not the file that records\.json was written for \(wrong checksum\)")


@pytest.mark.parametrize(
    "name", ["../x.array_record", "/x.array_record", "..\\\\x.array_record", "instances.json", ".."]
)
def test_shards_outside_the_folder_are_refused(copy, name):
    text = (copy / "records.json").read_text()
    (copy / "records.json").write_text(text.replace("images-00000-of-00004.array_record", name))
    expect_error(copy, "which is not a file of this folder")


def test_a_shard_that_is_not_a_file_is_refused(copy):
    shard = shards_of(copy)[0]
    size = shard.stat().st_size
    shard.unlink()
    os.mkfifo(shard)
    index = (copy / "records.json").read_text()
    (copy / "records.json").write_text(index.replace(str(size), "0"))
    expect_error(copy, "can't be read .it is not a regular file.")


def paths_in(tree, path=()):
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from paths_in(value, (*path, key))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["\ud800", "\x1b[2J.array_record", "\0.array_record", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(data=st.data())
def test_any_index_loads_or_raises_a_data_error(written, tmp_path_factory, data):
    tree = {"root": json.loads((written / "records.json").read_text())}
    path = data.draw(st.sampled_from(list(paths_in(tree))[1:]))
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = data.draw(ANYTHING)
    folder = tmp_path_factory.mktemp("index")
    for file in written.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "records.json").unlink()
    (folder / "records.json").write_text(json.dumps(tree["root"]))
    message = ""
    try:
        load_array_record(str(folder))
    except DataError as error:
        message = str(error)
    assert message.isprintable()


def test_another_number_of_annotated_images_is_an_error(copy):
    remove_checksum(copy)
    tree = json.loads((copy / "instances.json").read_text())
    del tree["images"][5]
    (copy / "instances.json").write_text(json.dumps(tree))
    expect_error(copy, r"has 23 records for the 22 images of its instances\.json")


def test_records_in_another_order_are_detected_when_they_are_read(copy, data_config):
    remove_checksum(copy)
    tree = json.loads((copy / "instances.json").read_text())
    tree["images"][5:7] = tree["images"][6:4:-1]
    (copy / "instances.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"Record \d of .*copy holds 00000\d\.jpg, not 00000\d\.jpg"):
        take_all(eval_batches(load_array_record(str(copy)), data_config, batch_size=4))


def test_a_wrong_bit_makes_a_broken_image(copy, data_config):
    shard = shards_of(copy)[0]
    data = bytearray(shard.read_bytes())
    data[data.index(b"000003.jpg") + 500] ^= 1
    shard.write_bytes(data)
    found = load_array_record(str(copy))
    with pytest.raises(BrokenImageError, match=r"000003\.jpg \(record 2\) can't be read \(RuntimeError: .*mismatch"):
        take_all(eval_batches(found, data_config, batch_size=4))
    iterator = eval_batches(found, replace(data_config, broken_images="skip"), batch_size=4)
    take_all(iterator)
    assert sum(iterator.counts.broken.values()) == 1


# the command


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (lambda folder: (folder / "instances.json").write_text("{}"), {}, "holds the records of other annotations"),
        (lambda folder: None, {"shards": 3}, "holds another number of shards .*00004"),
        (lambda folder: (folder / "instances.json").unlink(), {}, "exists and holds other files"),
        (lambda folder: None, {"shards": -1}, "--shards=-1 must be at least 0"),
        (lambda folder: None, {"out": "gs://bucket/x"}, "--out=gs://bucket/x must be a local folder"),
        (lambda folder: None, {"images": "/nowhere"}, "no image folder /nowhere"),
    ],
)
def test_the_command_refuses_wrong_arguments(copy, shapes, capsys, prepare, options, message):
    prepare(copy)
    with pytest.raises(SystemExit) as ended:
        write_array_record_folder(shapes, **{"out": copy, "shards": 4, **options})
    assert ended.value.code == 1
    errors = capsys.readouterr().err
    assert errors.startswith("python -m tood_jax.cli.to_array_record: ")
    assert re.search(message, errors)


def test_a_missing_image_is_found_before_writing(shapes, tmp_path, capsys):
    folder = tmp_path / "train"
    shutil.copytree(shapes.images, folder)
    (folder / "000013.jpg").unlink()
    with pytest.raises(SystemExit):
        write_array_record_folder(replace(shapes, images=str(folder)), tmp_path / "out", shards=2)
    assert re.search(r"1 of the 23 images of .* \(000013\.jpg\): restore the files", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_an_unreadable_image_stops_the_writing(shapes, tmp_path, capsys, monkeypatch):
    genuine = to_array_record.write_array_record

    def after_deleting_an_image(annotations, images, *more):
        images[13][1].unlink()
        return genuine(annotations, images, *more)

    folder = tmp_path / "train"
    shutil.copytree(shapes.images, folder)
    monkeypatch.setattr(to_array_record, "write_array_record", after_deleting_an_image)
    with pytest.raises(SystemExit):
        write_array_record_folder(replace(shapes, images=str(folder)), tmp_path / "out", shards=2)
    assert re.search(r"\.jpg can't be read \(No such file or directory\): restore the file", capsys.readouterr().err)
    assert len(shards_of(tmp_path / "out")) == 1


def test_a_split_has_a_single_format(shapes, written):
    dataset = load_dataset(replace(shapes, records=str(written)))  # as on the command line, over a config's directory
    assert str(dataset.images[0].path).startswith(str(written))
    with pytest.raises(DataError, match=r"records=.* and tfds=/x each name the whole split: set only one"):
        load_dataset(SplitConfig(records=str(written), tfds="/x"))
