"""A COCO directory as records: the same samples bit for bit, nothing torn taken for whole, errors as sentences."""

import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.conftest import SETTINGS, assert_equal, take
from tood_jax.cli.to_array_record import main
from tood_jax.config import SplitConfig
from tood_jax.data import records
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.pipeline import eval_batches, train_batches
from tood_jax.data.records import load_records, pack, split_evenly, unpack, write_records
from tood_jax.data.sets import load_set


def write(split, out, *more):
    main(["--images", split.images, "--annotations", split.annotations, "--out", str(out), *more])


@pytest.fixture(scope="session")
def written(shapes, tmp_path_factory):
    """The generated set as records in four shards."""
    folder = tmp_path_factory.mktemp("records") / "shapes"
    write(shapes, folder, "--shards", "4")
    return folder


@pytest.fixture
def copy(written, tmp_path):
    """The same, to be damaged."""
    folder = tmp_path / "copy"
    shutil.copytree(written, folder)
    return folder


def shards_of(folder):
    return sorted(folder.glob("*.array_record"))


def test_the_set_is_that_of_the_directory(written, shapes_set):
    found = load_set(SplitConfig(records=str(written)))
    assert found.classes == shapes_set.classes
    assert found.report == shapes_set.report
    assert found.ground_truth() == shapes_set.ground_truth()
    for one, other in zip(found.images, shapes_set.images, strict=True):
        assert (one.id, one.path.name, one.height, one.width) == (other.id, other.path.name, other.height, other.width)
        assert one.path.read_bytes() == other.path.read_bytes()
        assert one.boxes.tobytes() == other.boxes.tobytes()
        assert one.labels.tobytes() == other.labels.tobytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_those_of_the_directory_bit_for_bit(written, batches, data_config, workers):
    data = replace(data_config, workers=workers)
    assert_equal(take(train_batches(load_records(str(written)), data, **SETTINGS)), batches)


def test_evaluation_too(written, shapes_set, data_config):
    ones = take(eval_batches(load_records(str(written)), data_config, batch_size=4))
    assert_equal(ones, take(eval_batches(shapes_set, data_config, batch_size=4)))


def test_sub_folders_and_odd_names(coco, tree, tmp_path):
    tree["images"].append({"id": 3, "file_name": "deep/ç.png", "width": 10, "height": 10})
    split = coco(tree)
    (Path(split.images) / "deep/c.png").rename(Path(split.images) / "deep/ç.png")
    write(split, tmp_path / "out")
    found, directory = load_records(str(tmp_path / "out")), load_set(split)
    assert [one.path.name for one in found.images] == ["a.png", "b.png", "ç.png"]
    assert [one.path.read_bytes() for one in found.images] == [one.path.read_bytes() for one in directory.images]
    assert str(found.images[2].path).endswith("out: deep/ç.png (record 2)")


def test_sizes_that_the_annotations_lack_are_read_from_the_records(coco, tree, tmp_path):
    del tree["images"][1]["width"]
    write(coco(tree), tmp_path / "out")
    assert [(one.height, one.width) for one in load_records(str(tmp_path / "out")).images] == [(30, 40), (50, 20)]


def test_a_broken_image_is_as_broken_in_records(damaged, data_config, shapes, tmp_path):
    dataset, damage = damaged
    damage(3)
    write(replace(shapes, images=str(dataset.images[0].path.parent)), tmp_path / "out")
    found = load_records(str(tmp_path / "out"))
    with pytest.raises(BrokenImageError, match=r"out: 000004\.jpg \(record 3\) is truncated"):
        take(eval_batches(found, data_config, batch_size=4))


def test_a_reader_travels_to_another_process(written):
    found = load_records(str(written))
    assert len(pickle.dumps(found.images)) < 10_000  # one reader for all of them
    again = pickle.loads(pickle.dumps(found.images))
    assert again[22].path.read_bytes() == found.images[22].path.read_bytes()


@pytest.mark.parametrize(("count", "parts"), [(23, 4), (4, 4), (5, 1), (7, 3)])
def test_shares_differ_by_one_at_most(count, parts):
    shares = split_evenly(count, parts)
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_record():
    assert unpack(pack("deep/ç.png", b"image")) == ("deep/ç.png", b"image")
    for torn in (b"", b"\x01\x00", b"\xff\xff\xff\xffname"):
        with pytest.raises(OSError, match="not a record"):
            unpack(torn)


def test_more_shards_than_images(coco, tree, tmp_path):
    write(coco(tree), tmp_path / "out", "--shards", "9")
    assert len(shards_of(tmp_path / "out")) == 2


# what was broken off


class Broken(Exception):
    pass


@pytest.mark.parametrize("images_before", [0, 3, 6, 7, 15, 22])
def test_writing_goes_on_where_it_was_broken_off(shapes, shapes_set, written, tmp_path, images_before, capsys):
    annotations = Path(shapes.annotations).read_bytes()
    images = [(one.path.name, one.path) for one in shapes_set.images]
    seen = 0

    def stop(count):
        nonlocal seen
        seen += count
        if seen > images_before:
            raise Broken

    with pytest.raises(Broken):
        write_records(annotations, images, tmp_path / "out", 4, stop)
    whole = shards_of(tmp_path / "out")
    assert len(whole) == sum(images_before >= edge for edge in (6, 12, 18))  # shards of 6, 6, 6 and 5
    with pytest.raises(DataError, match=r"no records\.json: its writing was broken off; run the same command again"):
        load_records(str(tmp_path / "out"))
    times = [one.stat().st_mtime_ns for one in whole]
    write(shapes, tmp_path / "out", "--shards", "4")
    assert [one.stat().st_mtime_ns for one in whole] == times
    already = f" ({len(whole)} were there already)" if whole else ""
    assert f"23 images in 4 shards{already}, " in capsys.readouterr().out
    for one, other in zip(sorted((tmp_path / "out").iterdir()), sorted(written.iterdir()), strict=True):
        assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())


def test_a_whole_folder_is_left_as_it_is(copy, shapes):
    times = {one: one.stat().st_mtime_ns for one in shards_of(copy)}
    write(shapes, copy, "--shards", "4")
    assert {one: one.stat().st_mtime_ns for one in shards_of(copy)} == times


def test_a_damaged_shard_is_written_again(copy, shapes, written):
    victim = shards_of(copy)[2]
    data = bytearray(victim.read_bytes())
    data[data.index(b"000014.jpg") + 500] ^= 1
    victim.write_bytes(data)
    write(shapes, copy, "--shards", "4")
    assert victim.read_bytes() == (written / victim.name).read_bytes()


def test_what_a_killed_writer_left_is_removed_and_that_of_a_living_one_is_not(copy, shapes):
    (copy / "records.json").unlink()
    dead, alive = (copy / f".images-00000-of-00004.array_record.{pid}.tmp" for pid in (2**22 + 1, os.getppid()))
    dead.write_bytes(b"torn")
    alive.write_bytes(b"torn")
    write(shapes, copy, "--shards", "4")
    assert alive.exists()
    assert not dead.exists()
    assert len(load_records(str(copy)).images) == 23


def test_a_full_disk_is_one_sentence_and_leaves_no_shard(shapes_set, tmp_path, monkeypatch):
    class Full:
        def __init__(self, name, options):
            Path(name).write_bytes(b"the beginning")

        def write(self, record):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr("array_record.python.array_record_module.ArrayRecordWriter", Full)
    with pytest.raises(DataError, match=r"could not be written \(write\(\) failed: No space .*make room and run"):
        write_records(b"{}", [("a.jpg", shapes_set.images[0].path)], tmp_path / "out", 1, lambda count: None)
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["instances.json"]


def test_what_was_written_is_read_back_before_it_counts(shapes_set, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_fits", lambda file, names: False)
    with pytest.raises(DataError, match="was not written as it should be"):
        write_records(b"{}", [("a.jpg", shapes_set.images[0].path)], tmp_path / "out", 1, lambda count: None)
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["instances.json"]


# what can't be read


def expect(folder, message):
    with pytest.raises(DataError, match=message) as caught:
        load_records(str(folder))
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_records(tmp_path, copy):
    expect(tmp_path / "none", r"none has no records\.json: write such a folder with python -m")
    for content, message in (
        ("{", r"is damaged \(JSONDecodeError"),
        ("[]", "is damaged"),
        ('{"format": 9}', "format 9"),
    ):
        (copy / "records.json").write_text(content)
        expect(copy, message)


def test_torn_and_missing_shards(copy):
    victim = shards_of(copy)[1]
    size = victim.stat().st_size
    with victim.open("r+b") as file:
        file.truncate(size // 2)
    expect(copy, f"images-00001-of-00004.array_record has {size // 2:,} bytes instead of {size:,}: write")
    victim.unlink()
    expect(copy, r"images-00001-of-00004\.array_record can't be read \(No such file or directory\)")


def test_annotations_of_another_number(copy):
    tree = json.loads((copy / "instances.json").read_text())
    del tree["images"][5]
    (copy / "instances.json").write_text(json.dumps(tree))
    expect(copy, r"has 23 records for the 22 images of its instances\.json")


def test_records_in_another_order_are_noticed_when_read(copy, data_config):
    tree = json.loads((copy / "instances.json").read_text())
    tree["images"][5:7] = tree["images"][6:4:-1]
    (copy / "instances.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"Record \d of .*copy holds 00000\d\.jpg, not 00000\d\.jpg"):
        take(eval_batches(load_records(str(copy)), data_config, batch_size=4))


def test_a_flipped_bit_is_a_broken_image(copy, data_config):
    victim = shards_of(copy)[0]
    data = bytearray(victim.read_bytes())
    data[data.index(b"000003.jpg") + 500] ^= 1
    victim.write_bytes(data)
    found = load_records(str(copy))
    with pytest.raises(BrokenImageError, match=r"000003\.jpg \(record 2\) can't be read \(RuntimeError: .*mismatch"):
        take(eval_batches(found, data_config, batch_size=4))
    stream = eval_batches(found, replace(data_config, broken_images="skip"), batch_size=4)
    take(stream)
    assert sum(stream.counts.broken.values()) == 1


# what can't be written


@pytest.mark.parametrize(
    ("prepare", "more", "message"),
    [
        (lambda folder: (folder / "instances.json").write_text("{}"), [], "holds the records of other annotations"),
        (lambda folder: None, ["--shards=3"], "holds shards of another number .*00004"),
        (lambda folder: (folder / "instances.json").unlink(), [], "exists and holds something else"),
        (lambda folder: None, ["--shards=-1"], "--shards=-1 must be at least 0"),
        (lambda folder: None, ["--out=gs://bucket/x"], "--out=gs://bucket/x must be a local folder"),
        (lambda folder: None, ["--images=/nowhere"], "no image folder /nowhere"),
    ],
)
def test_refusals_of_the_command(copy, shapes, capsys, prepare, more, message):
    prepare(copy)
    with pytest.raises(SystemExit) as ended:
        write(shapes, copy, *(more if "--shards" in str(more) else ["--shards=4", *more]))
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("python -m tood_jax.cli.to_array_record: ")
    assert re.search(message, said)


def test_an_image_that_can_not_be_read_stops_the_writing(shapes, tmp_path, capsys):
    folder = tmp_path / "train"
    shutil.copytree(shapes.images, folder)
    (folder / "000013.jpg").unlink()
    with pytest.raises(SystemExit):
        write(replace(shapes, images=str(folder)), tmp_path / "out", "--shards=2")
    assert "000013.jpg can't be read (No such file or directory): restore the file" in capsys.readouterr().err
    assert len(shards_of(tmp_path / "out")) == 1


def test_one_form_a_split(shapes, written):
    found = load_set(replace(shapes, records=str(written)))  # as on the command line, over a config's directory
    assert str(found.images[0].path).startswith(str(written))
    with pytest.raises(DataError, match=r"records=.* and tfds=/x each name the whole split: set one\."):
        load_set(SplitConfig(records=str(written), tfds="/x"))
