"""One import: a loaded detector takes images in any form, in batches, and its detections go anywhere."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import cv2
import jax
import numpy as np
import PIL.Image
import pytest

import tood_jax
from tests.runs import save_random_run
from tests.tiny import tiny_config
from tood_jax.api import Detections
from tood_jax.data.dataset import ClassInfo
from tood_jax.data.errors import DataError

CLASSES = (ClassInfo(3, "disc"), ClassInfo(7, "a/b box"))
SIZES = [(60, 40), (90, 30), (64, 64), (30, 60), (80, 40)]  # (height, width) of the pictures, on two canvases


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of noise in pictures/, and a checkpoint of random weights in run/."""
    root = tmp_path_factory.mktemp("api")
    (root / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        cv2.imwrite(str(root / "pictures" / f"{number}.png"), rng.integers(0, 256, (*size, 3), np.uint8))
    config = tiny_config(root, root / "run")
    config = replace(
        config,
        data=replace(config.data, buckets=((64, 32), (64, 64))),
        detect=replace(config.detect, score_threshold=0.001, max_detections=20),
    )
    save_random_run(config, CLASSES, rng)
    return root


@pytest.fixture(scope="module")
def model(folder):
    return tood_jax.load(folder / "run")


def files(folder):
    return sorted((folder / "pictures").iterdir())


def assert_same(one, other):
    assert len(one) == len(other) > 0
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)


def test_an_image_in_any_form_gives_the_same_detections(folder, model):
    path = files(folder)[0]
    expected = model(str(path))
    assert isinstance(expected, Detections)
    pixels = cv2.imread(str(path))[:, :, ::-1].copy()
    for image in (path, pixels, PIL.Image.open(path), PIL.Image.fromarray(pixels).convert("RGBA")):
        assert_same(model(image), expected)
    assert expected.boxes.shape == (len(expected), 4)
    assert set(expected.names) <= {"disc", "a/b box"}
    assert repr(expected) == f"<{len(expected)} detections in {path}>"


def test_a_list_a_glob_and_a_generator_give_a_list_in_their_order(folder, model, caplog):
    """Whatever the batch; and the two canvases are compiled once for a size of the batch."""
    expected = [model(path) for path in files(folder)]
    arrays = (cv2.imread(str(path))[:, :, ::-1] for path in files(folder))
    for images, batch, compilations in (
        (files(folder), 2, 2),
        (str(folder / "pictures" / "*.png"), 2, 0),
        (arrays, 1, 0),
    ):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING"):
            found = model(images, batch=batch)
        assert sum("Compiling jit(step)" in record.getMessage() for record in caplog.records) == compilations
        assert len(found) == len(SIZES)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    assert model([]) == []


def test_an_image_smaller_than_a_tile_is_detected_as_without_tiles(folder, model):
    for path in files(folder):
        one, expected = model(path, tiles=96), model(path)
        np.testing.assert_array_equal(one.boxes, expected.boxes)
        np.testing.assert_array_equal(one.scores, expected.scores)
        np.testing.assert_array_equal(one.labels, expected.labels)


def test_tiles_and_variants_are_compiled_once(folder, model, caplog):
    images = [np.random.default_rng(seed).integers(0, 256, (128, 192, 3), np.uint8) for seed in range(2)]
    options = {"tiles": 64, "tta": "flip", "batch": 2}
    first = model(images[0], **options)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        found = model(images, **options)
    assert not [record for record in caplog.records if "Compiling jit" in record.getMessage()]
    assert_same(found[0], first)
    assert len(found) == 2


@pytest.mark.parametrize("tiles", [0, 40])
def test_with_flip_the_detections_of_the_mirrored_image_are_mirrored(model, tiles):
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    found, mirrored = (model(image, tta="flip", tiles=tiles, overlap=0.4) for image in (pixels, pixels[:, ::-1].copy()))
    assert len(found) == len(mirrored) == 20
    np.testing.assert_allclose(mirrored.scores, found.scores, atol=1e-5)
    expected = {(*np.round(box, 1), label) for box, label in zip(found.boxes, found.labels, strict=True)}
    back = np.stack(
        [64 - mirrored.boxes[:, 2], mirrored.boxes[:, 1], 64 - mirrored.boxes[:, 0], mirrored.boxes[:, 3]], 1
    )
    for box, label in zip(back, mirrored.labels, strict=True):
        assert min(np.abs(np.asarray(one[:4]) - box).max() for one in expected if one[4] == label) < 0.1
    assert np.abs(found.boxes - model(pixels).boxes).max() > 1  # the mirrored view adds something


def test_a_threshold_leaves_out_lower_scores(folder, model):
    everything = model(files(folder)[0])
    threshold = float(everything.scores[4])
    assert_same(model(files(folder)[0], threshold=threshold), everything.above(threshold))
    assert 5 <= len(everything.above(threshold)) < len(everything)
    assert len(model(files(folder)[0], threshold=1.0)) == 0
    assert model(files(folder)[0], threshold=1.0).names.shape == (0,)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (np.zeros((4, 4)), {}, DataError, r"uint8 RGB values \[height, width, 3\], not float64 \[4, 4\]"),
        (PIL.Image.new("I;16", (4, 4)), {}, DataError, "PIL image of mode I;16 has no 8 bits"),
        ("/nowhere/*.jpg", {}, DataError, r"/nowhere/\*.jpg matches no file"),
        ("/nowhere.jpg", {}, DataError, "/nowhere.jpg"),
        (7, {}, DataError, "an image is a path, an array or a PIL image, not int"),
        ([7], {}, DataError, "an image is a path, an array or a PIL image, not int"),
        ([], {"threshold": 2}, ValueError, "threshold=2"),
        ([], {"batch": 0}, ValueError, "batch=0"),
        ([], {"tiles": 8}, ValueError, "tiles=8 must be at least 32"),
        ([], {"tta": "mirror"}, ValueError, "tta has 'mirror': write flip, or a scale"),
    ],
)
def test_errors_name_what_is_wrong(model, images, options, error, message):
    with pytest.raises(error, match=message):
        model(images, **options)


def test_nothing_is_printed_and_no_file_is_written(folder, model, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    tood_jax.load(folder / "run")
    assert len(model(files(folder)[0])) > 0
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def two(tmp_path):
    """Two detections on a picture file of 20×30 pixels, the second partly outside."""
    cv2.imwrite(str(tmp_path / "one.png"), np.full((20, 30, 3), 90, np.uint8))
    boxes = np.asarray([[2, 3, 10, 8], [25, 15, 40, 40]], np.float32)
    scores, labels = np.asarray([0.9, 0.5], np.float32), np.asarray([0, 1], np.int32)
    return Detections(boxes, scores, labels, CLASSES, tmp_path / "one.png")


def test_coco_results(two):
    first, second = two.to_coco()
    path = str(two.image)
    assert first == {
        "image_id": path,
        "category_id": 3,
        "bbox": [2, 3, 8, 5],
        "score": first["score"],
        "category": "disc",
    }
    assert first["score"] == pytest.approx(0.9)
    assert (second["category_id"], second["category"]) == (7, "a/b box")
    assert [row["image_id"] for row in two.to_coco(42)] == [42, 42]


def test_a_drawing(two):
    drawing = two.plot()
    assert drawing.dtype == np.uint8
    assert drawing.shape == (400, 600, 3)
    assert len(np.unique(drawing.reshape(-1, 3), axis=0)) > 2
    other = two.plot(np.zeros((500, 700, 3), np.uint8))
    assert other.shape == (500, 700, 3)


def test_crops_are_the_pixels_of_the_boxes(two, tmp_path):
    written = two.save_crops(tmp_path / "crops")
    assert [file.name for file in written] == ["one_000_disc.png", "one_001_a_b_box.png"]
    assert [cv2.imread(str(file)).shape for file in written] == [(5, 8, 3), (5, 5, 3)]
    outside = Detections(two.boxes + 100, two.scores, two.labels, CLASSES, two.image)
    assert outside.save_crops(tmp_path / "none") == []


def test_supervision_is_an_option(two, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        two.to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=dict))
    given = two.to_supervision()
    assert given["xyxy"] is two.boxes
    assert given["confidence"] is two.scores
    assert given["class_id"] is two.labels
    assert list(given["data"]["class_name"]) == ["disc", "a/b box"]


def test_paths_may_begin_with_a_tilde(folder, model, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert_same(model("~/pictures/0.png"), model(files(folder)[0]))
    assert len(model("~/pictures/*.png")) == len(SIZES)
    assert isinstance(model(Path("~/pictures/0.png")), Detections)
