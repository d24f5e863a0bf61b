"""tood data: its text, its page and its exit status; and its conversion, which the same reader reads back."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.data.formats.layouts import SIZES, WRITERS, coco_tree, write_images, write_json
from tood_jax.cli.main import main
from tood_jax.data.load_folder import load_folder

HOSTILE = '<img src=x onerror="alert(1)">'


def run(*words):
    try:
        main(["data", *map(str, words)])
    except SystemExit as ended:
        return ended.code or 0
    return 0


def test_a_sound_folder(tmp_path, capsys):
    WRITERS["ultralytics"](tmp_path / "set")
    assert run(tmp_path / "set", "--out", tmp_path / "pages/page.html") == 0
    output = capsys.readouterr().out
    assert re.search(r"train +2 +1 +2 +1\.0 +2 +10×10 to 40×30, median 25×20\n", output)
    assert re.search(r"cat +2 +1 +1\n", output)
    assert "note: train: 1 images without objects (c.png)" in output
    page = (tmp_path / "pages/page.html").read_text()
    assert page.count("<figure>") == len(SIZES)
    assert not re.search(r'(src|href)="(?!data:|#)', page), "the page needs no other file"
    assert run(tmp_path / "set", "--out", tmp_path / "pages/page.html") == 0, "it replaces its own page"


def test_errors_give_status_1_and_names_are_only_text(tmp_path, capsys):
    WRITERS["plain coco"](tmp_path / "set")
    tree = coco_tree(("a.png", "c.png"))
    tree["categories"][0]["name"] = HOSTILE
    (tmp_path / "set/train/a.png").write_bytes(b"")
    write_json(tmp_path / "set/annotations/instances_train.json", tree)
    assert run(tmp_path / "set", "--out", tmp_path / "page.html") == 1
    output = capsys.readouterr().out
    assert "error: train: 1 images that can't be read (a.png is empty)" in output
    assert f"both need the same names with the same ids (1 {HOSTILE}, 1 dog)" in output
    page = (tmp_path / "page.html").read_text()
    assert "onerror" in page
    assert "<img src=x" not in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "tood data: name one folder: tood data FOLDER, or tood data convert FOLDER --out DIR."),
        (("a", "b"), "tood data: name one folder: "),
        (("convert",), "tood data: name one folder: "),
        (("convert", "{}"), "tood data: --out is empty: name a folder."),
        (("{}/missing",), "can't be listed (No such file or directory)"),
        (("{}", "--out={}/mine.html"), "exists and was not written by this program"),
        (("{}", "--config=small_sett"), "There is no config small_sett. Did you mean small_set"),
        (("convert", "{}", "--out={}"), "is not empty: name a folder that is empty or does not exist."),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tmp_path, capsys, words, message):
    (tmp_path / "mine.html").write_text("my own page")
    WRITERS["plain coco"](tmp_path)
    assert run(*(word.format(tmp_path) for word in words)) == 1
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1
    assert (tmp_path / "mine.html").read_text() == "my own page"


@pytest.mark.parametrize("form", ["coco", "records"])
@pytest.mark.parametrize("layout", ["roboflow yolo", "voc", "official coco"])
def test_a_converted_folder_is_the_same_data_set(tmp_path, capsys, layout, form):
    WRITERS[layout](tmp_path / "set")
    assert run("convert", tmp_path / "set", "--out", tmp_path / "new", f"--format={form}") == 0
    assert f"Written: {tmp_path}/new" in capsys.readouterr().out
    for split in ("train", "val"):
        old, new = (load_folder(str(tmp_path / name), split, 0) for name in ("set", "new"))
        assert new.fingerprint == old.fingerprint
        assert new.classes == old.classes
        assert new.annotations == old.annotations
        assert [image.path.read_bytes() for image in new.images] == [image.path.read_bytes() for image in old.images]


def test_marks_of_objects_are_converted(tmp_path):
    write_images(tmp_path / "set/train", ("a.png",))
    write_images(tmp_path / "set/val", ("b.png",))
    for split, name in (("train", "a.png"), ("val", "b.png")):
        tree = coco_tree((name,))
        tree["annotations"][0]["difficult"] = 1
        write_json(tmp_path / f"set/annotations/{split}.json", tree)
    assert run("convert", tmp_path / "set", "--out", tmp_path / "new") == 0
    old, new = (load_folder(str(tmp_path / name), "train", 0) for name in ("set", "new"))
    assert new.fingerprint == old.fingerprint
    assert [one.get("ignore") for one in new.annotations] == [1] + [None] * (len(new.annotations) - 1)


def test_images_of_one_name_in_two_folders_are_both_written(tmp_path):
    for folder in ("train/x", "train/y"):
        write_images(tmp_path / folder, ("a.png",))
    write_images(tmp_path / "val", ("b.png",))
    tree = coco_tree(("a.png", "b.png"))
    for image, name in zip(tree["images"], ("x/a.png", "y/A.png"), strict=True):
        image |= {"file_name": name, "height": 30, "width": 40}
    Path(tmp_path / "train/y/a.png").rename(tmp_path / "train/y/A.png")
    write_json(tmp_path / "annotations/train.json", tree)
    write_json(tmp_path / "annotations/val.json", coco_tree(("b.png",)))
    assert run("convert", tmp_path, "--out", tmp_path / "new/set") == 0
    written = json.loads((tmp_path / "new/set/annotations/instances_train.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["a.png", "A_2.png"]
    np.testing.assert_array_equal(
        load_folder(str(tmp_path / "new/set"), "train", 0).images[1].boxes,
        load_folder(str(tmp_path), "train", 0).images[1].boxes,
    )
