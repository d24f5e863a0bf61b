"""The generated data set: valid COCO, reproducible bytes, boxes that match the drawing."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tood_jax.config import SplitConfig
from tood_jax.data.formats.coco import load_coco
from tood_jax.data.synthetic import CLASSES, STAMP, ShapesConfig, draw_image, main, write_shapes

SMALL = ShapesConfig(train_images=12, val_images=3, height=(64, 80), width=(64, 96), seed=1, max_objects=3)


def files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    assert write_shapes(tmp_path / "one", SMALL)
    assert write_shapes(tmp_path / "two", SMALL)
    first = files(tmp_path / "one")
    assert first == files(tmp_path / "two")
    assert len(first) == 12 + 3 + 2 + 1
    write_shapes(tmp_path / "three", replace(SMALL, seed=2))
    assert files(tmp_path / "three")["train/000001.jpg"] != first["train/000001.jpg"]
    assert first["train/000001.jpg"] != first["val/000001.jpg"]


def test_it_is_a_valid_coco_directory(tmp_path):
    write_shapes(tmp_path / "set", SMALL)
    for split, count in (("train", 12), ("val", 3)):
        dataset = load_coco(
            SplitConfig(str(tmp_path / "set" / split), str(tmp_path / f"set/annotations/instances_{split}.json"))
        )
        assert tuple(info.name for info in dataset.classes) == CLASSES
        assert dataset.report.images == count
        assert set(dataset.report.counts) <= {"images without objects", "classes without objects"}
        for image in dataset.images:
            assert cv2.imread(str(image.path)).shape == (image.height, image.width, 3)
            assert len(image.labels) <= SMALL.max_objects


@pytest.mark.parametrize("max_side", [0.5, 0.9])
def test_boxes_are_tight_and_have_the_configured_size(max_side):
    config = replace(SMALL, empty_share=0.0, max_side=max_side)
    images = [draw_image(config, 0, number) for number in range(40)]
    objects = [(image.shape, *values) for image, image_objects in images for values in image_objects]
    assert {label for _, label, _, _ in objects} == set(range(len(CLASSES)))
    for (height, width, _), _, (x0, y0, x1, y1), area in objects:
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert 0.6 * config.min_side <= max(x1 - x0, y1 - y0) <= config.max_side * min(height, width) + 0.5
        assert 0.2 * (x1 - x0) * (y1 - y0) < area <= (x1 - x0) * (y1 - y0) + 0.01


def test_a_folder_written_before_an_argument_existed_is_recognized(tmp_path):
    """So that the demo does not generate its data again after an update."""
    write_shapes(tmp_path / "set", SMALL)
    stamp = json.loads((tmp_path / "set" / STAMP).read_text())
    del stamp["max_side"]
    (tmp_path / "set" / STAMP).write_text(json.dumps(stamp))
    assert not write_shapes(tmp_path / "set", SMALL)
    with pytest.raises(ValueError, match="does not hold this generated set"):
        write_shapes(tmp_path / "set", replace(SMALL, max_side=0.9))


def test_empty_and_gray_images_follow_the_config():
    assert not draw_image(replace(SMALL, empty_share=1.0), 0, 1)[1]
    gray = draw_image(replace(SMALL, gray_share=1.0), 0, 1)[0].astype(int)
    assert np.ptp(gray, axis=2).max() <= 1


def test_a_second_call_does_nothing_and_another_data_set_is_not_overwritten(tmp_path):
    folder = tmp_path / "set"
    write_shapes(folder, SMALL)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert not write_shapes(folder, SMALL)
    with pytest.raises(ValueError, match="remove it or name another folder"):
        write_shapes(folder, replace(SMALL, seed=9))
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(
        json,
        "dumps",
        lambda tree, real=json.dumps, **options: full_disk() if "images" in tree else real(tree, **options),
    )
    with pytest.raises(OSError, match="disk full"):
        write_shapes(tmp_path / "set", SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("train_images", 0), ("max_objects", 0), ("height", (32, 64)), ("width", (96, 64)), ("overlap", 0.9)],
)
def test_arguments_out_of_range_are_refused(tmp_path, field, value):
    with pytest.raises(ValueError, match=field):
        write_shapes(tmp_path / "set", replace(SMALL, **{field: value}))


def test_the_command_writes_once_and_refuses_another_set(tmp_path, capsys):
    command = ["--out", str(tmp_path / "set"), "--train", "2", "--val", "1", "--size", "64", "80", "--max-objects", "2"]
    main(command)
    assert "3 images written" in capsys.readouterr().out
    main(command)
    assert "already there" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--seed", "4"])
    assert "does not hold this generated set" in capsys.readouterr().err
