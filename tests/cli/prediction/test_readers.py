"""Every kind of --images yields the same images, which are read only when they are asked for."""

import io
import os
import tarfile

import cv2
import numpy as np
import pytest

from tests.data.conftest import store  # noqa: F401  a fixture
from tood_jax.cli.prediction.image_search import LeftOutFiles
from tood_jax.cli.prediction.readers import Images
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.formats.array_record import write_array_record
from tood_jax.data.image_io import decode_image

NAMES = ["a.jpg", "b/c.png", "b/d.JPG", "e.jpg"]


@pytest.fixture
def folder(tmp_path):
    """Four images of other grey levels, and a file that is no image."""
    for level, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix, np.full((8, 8, 3), 40 * level, np.uint8))[1].tobytes())
    (tmp_path / "images" / "b" / "notes.md").write_text("notes")
    return tmp_path / "images"


def write_tar(path, folder, mode="w"):
    with tarfile.open(path, mode) as tar:
        for file in sorted(folder.rglob("*"), key=str):
            tar.add(file, file.relative_to(folder), recursive=False)
    return str(path)


def levels(patterns):
    """The grey level of every image, and what was left out."""
    left_out = LeftOutFiles()
    found = list(Images(patterns).find(left_out))
    return [round(decode_image(path).mean() / 40) for path in found], [str(path) for path in found], left_out


def test_folder_glob_list_tar_and_records_have_the_same_images(folder, tmp_path):
    files = [folder / name for name in NAMES]
    lines = tmp_path / "list.txt"
    lines.write_text("\ufeff" + "\n\n".join(map(str, files)) + "\r\n", encoding="utf-8")
    (tmp_path / "list").write_text("\n".join(map(str, files)))
    write_array_record(b"{}", list(zip(NAMES, files, strict=True)), tmp_path / "records", 2, lambda _: None)
    write_tar(tmp_path / "one.tar", folder)
    for pattern in (
        folder,
        folder / "**" / "*.[jJp]*",
        lines,
        f"@{tmp_path / 'list'}",
        tmp_path / "*.tar",
        tmp_path / "records",
    ):
        found, paths, _ = levels([str(pattern)])
        assert (pattern, found) == (pattern, [0, 1, 2, 3])
        assert [path[-5:] for path in paths] == [name[-5:] for name in NAMES]
    assert levels([str(tmp_path / "one.tar")])[1][1] == f"{tmp_path / 'one.tar'}/b/c.png"
    assert levels([str(tmp_path / "records")])[1][1] == f"{tmp_path / 'records'}/b/c.png"
    assert "notes.md" in " ".join(levels([str(tmp_path / "one.tar")])[2].messages())


def test_an_image_of_several_patterns_comes_once(folder):
    assert levels([str(folder / "e.jpg"), str(folder), str(folder / "*.jpg")])[0] == [3, 0, 1, 2]


def test_an_object_store(store, folder):  # noqa: F811
    store(folder, "set")
    assert levels(["gs://bucket/set"])[:2] == ([0, 1, 2, 3], [f"gs://bucket/set/{name}" for name in NAMES])
    assert levels(["gs://bucket/set/*.jpg"])[0] == [0, 3]
    assert levels(["gs://bucket/set/**/*.png", "gs://bucket/set/e.jpg"])[0] == [1, 3]
    with pytest.raises(DataError, match=r"gs://bucket/none/\*\.jpg has no images"):
        levels(["gs://bucket/none/*.jpg"])


def test_a_missing_file_of_a_list_is_a_broken_image_and_not_the_end(folder, tmp_path):
    (tmp_path / "list.txt").write_text(f"/nowhere.jpg\n{folder / 'a.jpg'}\n")
    first, second = Images([str(tmp_path / "list.txt")]).find()
    with pytest.raises(BrokenImageError, match=r"/nowhere\.jpg can't be read"):
        decode_image(first)
    assert decode_image(second).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("@none", r"@none can't be read \(.*No such file"),
        ("fifo.txt", "fifo.txt is a FIFO, not a file with a list"),
        ("empty.txt", "empty.txt has no images"),
        ("none.tar", "none.tar can't be read"),
        ("cut.tar", "cut.tar is no complete, uncompressed tar file"),
        ("packed.tar.gz", "packed.tar.gz is no complete, uncompressed tar file"),
        ("text.tar", "text.tar is no complete, uncompressed tar file"),
        ("ftp://host/a.jpg", "ftp://, which can't be read"),
        ("web.txt", "https://, which can't be read"),
    ],
)
def test_errors_are_one_sentence(folder, tmp_path, monkeypatch, pattern, message):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "web.txt").write_text("https://example.org/a.jpg")
    (tmp_path / "text.tar").write_text("no tar" * 200)
    write_tar(tmp_path / "packed.tar.gz", folder, "w:gz")
    write_tar(tmp_path / "cut.tar", folder)
    os.truncate(tmp_path / "cut.tar", 700)
    with pytest.raises(DataError, match=message) as error:
        levels([pattern])
    assert "\n" not in str(error.value)


def test_members_of_a_tar_that_are_no_files_are_not_read(folder, tmp_path):
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("fifo.jpg", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        data = (folder / "a.jpg").read_bytes()
        member = tarfile.TarInfo("../../outside\n.jpg")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    assert levels([str(tmp_path / "odd.tar")])[0] == [0]
    assert not (tmp_path.parent / "outside\n.jpg").exists()
