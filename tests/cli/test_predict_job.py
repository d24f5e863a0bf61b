"""Which files predict.py reads and which it may write, before it detects anything."""

import json
import math
import os
import socket
import sys
import unicodedata

import cv2
import numpy as np
import pytest

from tood_jax.cli.prediction.image_search import LeftOutFiles
from tood_jax.cli.prediction.options import Args
from tood_jax.cli.prediction.plan import plan_job
from tood_jax.cli.prediction.readers import Images
from tood_jax.cli.prediction.unique_names import UniqueNames, drawing_name
from tood_jax.cli.written_files import WrittenFiles
from tood_jax.config import ConfigError
from tood_jax.data.errors import DataError

IMAGE = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.BMP", "deep/c.png"):
        (folder / name).write_bytes(IMAGE)
    return folder


def names_of(files):
    return [file.name for file in files]


def find_images(patterns, out=None):
    left_out = LeftOutFiles()
    return list(Images(patterns, out).find(left_out)), left_out


def write_drawings(images, out):
    """Write a file of each planned name; the plan and the files that it reads."""
    plan = plan_job(Args(images=(str(images),), out=str(out)))
    files, names = list(plan.images.find()), UniqueNames()
    for file in files:
        plan.written.write(names(drawing_name(file.name)), b"drawing")
    return plan, files


def test_the_folder_of_the_input_images_is_refused_as_output(images):
    before = {one: one.read_bytes() for one in images.rglob("*") if one.is_file()}
    with pytest.raises(ConfigError, match=r"the drawing a\.jpg would replace an input image"):
        plan_job(Args(images=(str(images),), out=str(images)))
    assert {one: one.read_bytes() for one in images.rglob("*") if one.is_file()} == before


@pytest.mark.parametrize("link", ["symbolic", "hard", "folder"])
def test_links_to_images_are_not_replaced(images, tmp_path, link):
    out = tmp_path / "out"
    if link == "folder":
        out.symlink_to(images)
    else:
        out.mkdir()
        (os.symlink if link == "symbolic" else os.link)(images / "a.jpg", out / "a.jpg")
    with pytest.raises(ConfigError, match="would replace an input image"):
        plan_job(Args(images=(str(images / "*.jpg"),), out=str(out)))
    assert (images / "a.jpg").read_bytes() == IMAGE


@pytest.mark.parametrize("kind", ["file", "link to nowhere", "folder"])
def test_a_file_of_the_user_is_not_replaced(images, tmp_path, kind):
    out = tmp_path / "out"
    out.mkdir()
    target = out / "b.jpg"  # the drawing of b.BMP
    if kind == "file":
        target.write_bytes(b"mine")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere.jpg")
    with pytest.raises(ConfigError, match=r"has a file b\.jpg that predict\.py did not write"):
        plan_job(Args(images=(str(images),), out=str(out)))
    plan_job(Args(images=(str(images),), out=str(out), draw=False))


def test_a_bmp_beside_a_jpg_of_its_name(tmp_path):
    for name in ("a.bmp", "a.jpg"):
        (tmp_path / name).write_bytes(IMAGE)
    with pytest.raises(ConfigError, match=r"has a file a\.jpg that predict\.py did not write"):
        plan_job(Args(images=(str(tmp_path / "a.bmp"),), out=str(tmp_path)))


@pytest.mark.parametrize("name", ["json", "jsonl", "csv", "parquet"])
def test_other_results_are_not_replaced(images, tmp_path, name):
    (tmp_path / f"detections.{name}").write_text('{"images": []}')
    with pytest.raises(ConfigError, match=rf"detections\.{name} exists and was not written by this program"):
        plan_job(Args(images=(str(images),), out=str(tmp_path), draw=False, format=(name,)))


def test_a_missing_package_is_named_before_anything_is_computed(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="Parquet needs the package pyarrow: pip install pyarrow"):
        plan_job(Args(images=(str(images),), out=str(tmp_path), format=("parquet",)))


@pytest.mark.parametrize("name", ["labels/notes.txt", "detections.parts/notes.txt"])
def test_folders_of_the_user_are_not_used(images, tmp_path, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=r"was not written by predict\.py|that predict\.py did not write"):
        plan_job(Args(images=(str(images),), out=str(tmp_path), format=("yolo",)))


@pytest.mark.parametrize("place", ["beside", "inside", "same"])
def test_a_second_run_reads_and_writes_the_same(tmp_path, images, place):
    out = {"beside": tmp_path / "out", "inside": images / "out", "same": images}[place]
    if place == "same":
        (images / "a.jpg").rename(images / "a.bmp")
        (images / "deep" / "c.png").rename(images / "deep" / "c.bmp")
    plan, first = write_drawings(images, out)
    plan.job.begin({})
    for name in ("detections.csv", "detections.jsonl", "detections.parts/detections.csv"):
        (out / name).touch()
    (out / "detections.json").write_text("[]")
    (out / "labels").mkdir()
    (out / "labels" / "a.txt").touch()
    plan, second = write_drawings(images, out)
    assert second == first
    assert len(first) == 3
    messages = " ".join(plan.left_out.messages())
    assert ("3 drawings of earlier runs" in messages) == (place != "beside")
    assert "detections" not in messages
    assert "a.txt" not in messages
    third = plan_job(Args(images=(str(images),), out=str(tmp_path / "third")))
    assert list(third.images.find()) == first  # another --out finds no drawings either


def test_files_of_the_user_in_the_output_folder_are_left_out_and_named(images):
    (images / "out").mkdir()
    (images / "out" / "mine.jpg").write_bytes(IMAGE)
    for pattern in (str(images), f"{images}/**/*.*"):
        files, left_out = find_images([pattern], images / "out")
        assert names_of(files) == ["a.jpg", "b.BMP", "c.png"]
        assert "1 files in the output folder" in " ".join(left_out.messages())
    files, _ = find_images([str(images / "out")], images / "out")  # asked for
    assert names_of(files) == ["mine.jpg"]


def test_other_files_are_left_out_and_named(images, monkeypatch):
    for name in ("notes.txt", "d.heic", "e.gif", "f.avif", "g\n\x1b.raw"):
        (images / name).write_bytes(b"x")
    (images / "h.jpg").mkdir()
    (images / "h.jpg" / "i.jpg").write_bytes(IMAGE)
    os.mkfifo(images / "fifo.jpg")
    (images / "zero.png").symlink_to("/dev/zero")
    (images / "lost.png").symlink_to("nowhere")
    monkeypatch.chdir(images)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket.jpg")
    files, left_out = find_images([str(images)])
    assert names_of(files) == ["a.jpg", "b.BMP", "c.png", "i.jpg"]
    messages = left_out.messages()
    assert any("5 files with another ending" in message for message in messages)
    assert any("4 names of images that are no regular files" in message for message in messages)
    assert all(message.isprintable() for message in messages)
    assert names_of(find_images(["*.jpg"])[0]) == ["a.jpg"]
    with pytest.raises(DataError, match="is a FIFO, not a file with an image"):
        find_images(["fifo.jpg"])


def test_a_named_file_may_have_any_ending(images):
    (images / "d.xyz").write_bytes(IMAGE)
    assert names_of(find_images([str(images / "d.xyz")])[0]) == ["d.xyz"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": ()}, "name images"),
        ({"images": ("",)}, "--images is empty"),
        ({"images": ("IMAGES", "")}, "--images is empty"),
        ({"out": ""}, "--out is empty"),
        ({"threshold": math.nan}, "--threshold=nan must be a number from 0 to 1"),
        ({"threshold": -0.1}, "from 0 to 1"),
        ({"threshold": 1.5}, "from 0 to 1"),
        ({"threshold": math.inf}, "from 0 to 1"),
        ({"batch": -1}, "--batch=-1 must be at least 1"),
        ({"format": ()}, "--format is empty: name one of json"),
    ],
)
def test_invalid_options_are_refused(images, tmp_path, changed, message):
    images = tuple(str(images) if one == "IMAGES" else one for one in changed.get("images", (str(images),)))
    with pytest.raises(ConfigError, match=message):
        plan_job(Args(**{"out": str(tmp_path / "out"), **changed, "images": images}))
    assert not (tmp_path / "out").exists()


def test_names_of_drawings_differ_on_every_file_system(tmp_path):
    accents = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    files = [tmp_path / str(i) / name for i, name in enumerate(["a.jpg", "A.JPG", "a.bmp", "a_2.jpg", *accents])]
    unique = UniqueNames()
    names = [unique(drawing_name(file.name)) for file in files]
    folded = {unicodedata.normalize("NFC", name).casefold() for name in names}
    assert len(folded) == len(files)


def test_the_list_of_written_files_is_not_read_as_an_image(tmp_path):
    WrittenFiles(tmp_path).write("a.jpg", IMAGE)
    with pytest.raises(DataError, match=r"no folder with images.*1 drawings of earlier runs"):
        find_images([str(tmp_path)])
    assert json.loads((tmp_path / ".tood_jax_files.jsonl").read_text())["name"] == "a.jpg"
