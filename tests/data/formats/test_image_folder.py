"""Images that are missing in the folder: all are found at once, with the remedy."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.config import SplitConfig
from tood_jax.data.errors import DataError
from tood_jax.data.formats import image_folder
from tood_jax.data.formats.coco import load_coco
from tood_jax.data.formats.image_folder import check_names, find_missing


def split_of(folder, names, sizes=True):
    """Return a split with these images; with their sizes, so that no image is read."""
    size = {"width": 9, "height": 9} if sizes else {}
    tree = {
        "images": [{"id": i, "file_name": name, **size} for i, name in enumerate(names)],
        "annotations": [],
        "categories": [{"id": 1, "name": "x"}],
    }
    (folder / "a.json").write_text(json.dumps(tree))
    return SplitConfig(str(folder / "images"), str(folder / "a.json"))


@pytest.fixture
def folder(tmp_path):
    """A folder with four images in it and its subfolders."""
    for name in ("a.png", "B.JPG", "deep/c.png", unicodedata.normalize("NFD", "Züge/é.png")):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found", "remedy"),
    [
        ("b.jpg", "B.JPG", "the upper and lower case of the files"),
        ("Deep/C.png", "deep/c.png", "the upper and lower case of the files"),
        ("deep\\c.png", "deep/c.png", r"write / in place of \\"),
        ("Züge/é.png", "Zu\\u0308ge/e\\u0301.png", r"the same Unicode normal form \(NFC\)"),
        ("d.png", "", "restore the files, remove their entries, or .*data.broken_images=skip"),
        ("deep/deeper/c.png", "", "restore the files"),
        ("a.png/c.png", "", "restore the files"),
        ("deep", "", "restore the files"),
    ],
)
def test_a_missing_image_comes_with_its_remedy(folder, name, found, remedy):
    with pytest.raises(DataError, match=remedy) as caught:
        load_coco(split_of(folder, ["a.png", name]))
    message = str(caught.value)
    assert "1 of the 2 images" in message
    assert f"but there is {found}" in message.replace("'", "") if found else "but there is" not in message
    assert "\n" not in message


def test_many_missing_images_are_counted_and_three_named(folder):
    with pytest.raises(DataError, match=r"5 of the 6 images .* \(0\.png, 1\.png, 2\.png, …\)"):
        load_coco(split_of(folder, ["a.png", *(f"{i}.png" for i in range(5))]))


def test_if_all_images_are_missing_the_message_names_the_folder(folder):
    with pytest.raises(DataError, match=r"None of the 2 images .*: set data\.\*\.images to the folder"):
        load_coco(split_of(folder, ["train/a.png", "train/c.png"]))


def test_missing_images_are_only_reported_if_broken_ones_are_skipped(folder):
    dataset = load_coco(split_of(folder, ["a.png", "d.png"]), "skip")
    assert len(dataset.images) == 2
    assert "1 images missing in the folder (d.png)" in dataset.report.summary()


def test_broken_links_pipes_and_folders_are_not_images(folder):
    images = folder / "images"
    (images / "link.png").symlink_to(images / "gone.png")
    (images / "loop.png").symlink_to(images / "loop.png")
    (images / "good.png").symlink_to(images / "a.png")
    os.mkfifo(images / "pipe.png")
    (images / "folder.png").mkdir()
    names = ["link.png", "loop.png", "pipe.png", "folder.png"]
    assert [image.name for image in find_missing(images, [*names, "good.png"])] == names


def test_each_folder_is_listed_once_and_no_image_is_accessed(folder, monkeypatch):
    listed = []
    genuine = os.scandir
    monkeypatch.setattr(image_folder.os, "scandir", lambda path: listed.append(Path(path)) or genuine(path))
    monkeypatch.setattr(Path, "is_file", lambda self: pytest.fail(f"{self} was accessed"))
    names = ["a.png", "deep/c.png", "B.JPG", "deep/c.png"] * 50
    assert find_missing(folder / "images", names) == []
    assert sorted(listed) == [folder / "images", folder / "images/deep"]


def test_a_file_system_that_accepts_other_spellings_has_the_image(folder, monkeypatch):
    monkeypatch.setattr(image_folder.os.path, "isfile", lambda path: True)
    assert find_missing(folder / "images", ["A.PNG"]) == []
    assert len(find_missing(folder / "images", ["other.png"])) == 1


@pytest.mark.skipif(os.getuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_named(folder):
    (folder / "images").chmod(0)
    with pytest.raises(DataError, match="can't be listed"):
        find_missing(folder / "images", ["a.png"])


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../a.png", "deep/../../a.png", "..\\a.png", "C:\\a.png", "\\\\host\\a.png", "a\0.png", ".."],
)
def test_names_that_leave_the_folder_are_refused(folder, name):
    with pytest.raises(DataError, match="leads out of the image folder: write names relative to") as caught:
        load_coco(split_of(folder, ["a.png", name]))
    assert str(caught.value).isprintable()


@given(st.lists(st.text(st.sampled_from("ab./\\:A\0é~"), min_size=1, max_size=12), min_size=1))
def test_a_name_that_is_accepted_stays_in_the_folder(names):
    for name in names:
        try:
            check_names([name], "x.json")
        except DataError:
            continue
        inside = os.path.normpath(os.path.join("/images", name))
        assert inside == "/images" or inside.startswith("/images/")
        assert "\0" not in name
