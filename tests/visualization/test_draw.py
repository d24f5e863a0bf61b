"""Drawings: only the right pixels change, and any input can be drawn."""

import itertools
import tracemalloc

import cv2
import numpy as np
import pytest

from tood_jax.visualization.draw import (
    BLUE,
    ENLARGED_LONG_SIDE,
    GREEN,
    LONG_SIDE,
    PIXELS,
    RED,
    class_color,
    contact_sheet,
    draw_detections,
    draw_errors,
    draw_ground_truth,
    encode_image,
    resize_for_drawing,
    save_image,
    side_by_side,
)

GRAY = 127
NAMES = ["cell", "Plättchen", "血小板"]


def plain(height=240, width=320):
    return np.full((height, width, 3), GRAY, np.uint8)


def changed(image, original=None):
    return (image != (plain(*image.shape[:2]) if original is None else original)).any(axis=-1)


def test_a_box_is_drawn_at_its_position_in_its_color():
    image = plain()
    drawn = draw_ground_truth(image, np.array([[50, 60, 150, 200]]), np.array([0]), NAMES)
    assert drawn.dtype == np.uint8
    assert drawn.shape == image.shape
    assert not changed(image).any(), "the input was changed"
    for y, x in [(60, 149), (200, 100), (130, 50), (130, 150)]:
        assert tuple(drawn[y, x]) == class_color(0)
    assert (drawn[75:195, 60:145] == GRAY).all(), "the inside is unchanged"
    assert not changed(drawn)[205:].any()
    assert changed(drawn)[40:59, 50:80].any(), "the name is above the box"


def test_threshold_and_padding():
    boxes = np.tile([[50.0, 60, 150, 200]], (3, 1))
    labels = np.array([0, 0, -1])
    assert not changed(draw_detections(plain(), boxes, np.array([0.29, 0.1, 0.9]), labels, NAMES, 0.3)).any()
    assert changed(draw_detections(plain(), boxes, np.array([0.30, 0.1, 0.9]), labels, NAMES, 0.3)).any()


def test_the_best_detection_is_on_top():
    boxes = np.tile([[50.0, 60, 150, 200]], (2, 1))
    for scores, label in [((0.9, 0.5), 0), ((0.5, 0.9), 1)]:
        drawn = draw_detections(plain(), boxes, np.array(scores), np.array([0, 1]), NAMES)
        assert tuple(drawn[200, 100]) == class_color(label)


def test_nothing_to_draw():
    empty = np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, np.int32)
    assert not changed(draw_detections(plain(), *empty, NAMES)).any()
    assert not changed(draw_ground_truth(plain(), empty[0], empty[2], NAMES)).any()
    assert not changed(draw_detections(plain(), [], [], [], NAMES)).any()


def test_boxes_are_clipped_and_boxes_outside_are_left_out():
    drawn = draw_ground_truth(plain(), np.array([[-1e9, -50, 1e9, 1e9]]), np.array([0]), NAMES)
    assert tuple(drawn[-1, 160]) == class_color(0)
    assert tuple(drawn[120, 0]) == tuple(drawn[120, -1]) == class_color(0)
    outside = np.array(
        [[-90, 0, -5, 50], [330, 0, 400, 50], [0, -90, 50, -5], [0, 250, 50, 300], [np.nan] * 4, [50, 50, 20, 20]]
    )
    assert not changed(draw_ground_truth(plain(), outside, np.zeros(6, int), NAMES)).any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (32, 32), (1500, 2000)])
@pytest.mark.parametrize("label", range(3))
def test_any_size_and_any_name(size, label):
    height, width = size
    boxes = np.array([[0, 0, width, height], [width / 2, height / 2, width, height], [np.nan] * 4])
    drawn = draw_detections(plain(*size), boxes, np.full(3, 0.5), np.full(3, label), NAMES)
    assert drawn.shape == (*size, 3)
    assert changed(drawn).any()


def test_lines_and_letters_scale_with_the_image():
    counts = []
    for factor in (1, 4):
        image = plain(400 * factor, 400 * factor)
        drawn = draw_ground_truth(image, np.array([[100, 100, 300, 300]]) * factor, np.array([0]), ["cell"])
        counts.append(changed(drawn).mean())
    assert 0.5 < counts[1] / counts[0] < 2


def test_letters_have_contrast_with_their_background():
    for label in range(40):
        drawn = draw_ground_truth(plain(), np.array([[50, 60, 150, 200]]), np.array([label]), ["HHHH"] * 40)
        color = np.array(class_color(label), float)
        plate = drawn[40:58, 50:90].reshape(-1, 3).astype(float)
        assert np.abs(plate - color).sum(axis=1).max() > 200, f"class {label}"


def test_colors_are_stable_and_distinct():
    colors = [class_color(label) for label in range(36)]
    assert colors[:3] == [class_color(0), class_color(1), class_color(2)]
    assert len(set(colors)) == 36
    for a, b in itertools.combinations(colors[:8], 2):
        assert np.abs(np.subtract(a, b)).sum() > 60


def test_views_and_read_only_images():
    image = np.ascontiguousarray(plain()[..., ::-1])[:, ::-1]
    image.flags.writeable = False
    assert changed(draw_ground_truth(image, np.array([[50, 60, 150, 200]]), np.array([0]), NAMES)).any()


def test_contact_sheet():
    images = [np.full((h, w, 3), value, np.uint8) for value, (h, w) in enumerate([(10, 20), (30, 10), (5, 40)], 1)]
    sheet = contact_sheet(images, columns=2)
    gap = 2
    assert sheet.shape == (30 + gap + 5, 40 + gap + 10, 3)
    assert (sheet[:10, :20] == 1).all()
    assert (sheet[:30, 42:] == 2).all()
    assert (sheet[32:, :40] == 3).all()
    assert (sheet[10:30, :40] == 255).all()
    assert [int((sheet == value).sum()) // 3 for value in (1, 2, 3)] == [200, 300, 200]
    assert contact_sheet(images, columns=9).shape[0] == 30


def test_side_by_side():
    left, right = plain(20, 30), plain(40, 10)
    pair = side_by_side(left, right)
    assert pair.shape == (40, 30 + 2 + 10, 3)
    np.testing.assert_array_equal(pair[:20, :30], left)
    np.testing.assert_array_equal(pair[:, 32:], right)


def test_a_sheet_without_images_is_refused():
    with pytest.raises(ValueError, match="needs images and columns; there are 0 and 4"):
        contact_sheet([])
    with pytest.raises(ValueError, match="there are 1 and 0"):
        contact_sheet([plain()], columns=0)


def test_saved_images_are_rgb(tmp_path):
    image = plain(4, 6)
    image[..., 0] = 250
    path = tmp_path / "neu" / "bïld.png"
    save_image(path, image)
    read = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read[..., ::-1], image)
    save_image(tmp_path / "a.jpg", image)
    assert (tmp_path / "a.jpg").read_bytes()[:2] == b"\xff\xd8"


@pytest.mark.parametrize("name", ["a.xyz", "a"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"images are written as \.png"):
        save_image(tmp_path / name, plain())


def test_a_large_number_of_boxes_needs_no_more_memory_than_the_image():
    boxes = np.tile([[5.0, 5, 30, 30]], (2000, 1))
    tracemalloc.start()
    draw_detections(plain(), boxes, np.full(2000, 0.9), np.zeros(2000, int), NAMES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_small_images_are_enlarged_with_their_boxes():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    large, boxes = resize_for_drawing(image, np.asarray([[0.5, 0, 2, 1]]), short_side=5)
    assert large.shape == (6, 9, 3)
    np.testing.assert_array_equal(large[::3, ::3], image)
    np.testing.assert_array_equal(boxes, [[1.5, 0, 6, 3]])
    same, _ = resize_for_drawing(large, boxes, short_side=6)
    assert same.shape == large.shape


@pytest.mark.parametrize(
    ("height", "width"), [(2, 3000), (3000, 2), (180, 24_120), (24_120, 180), (2560, 1), (1, 60_000), (7000, 8000)]
)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_drawings_of_any_shape_are_bounded_and_can_be_written(height, width, suffix):
    image = np.full((height, width, 3), GRAY, np.uint8)
    box = np.asarray([[0.0, 0.0, width, height]])
    tracemalloc.start()
    large, boxes = resize_for_drawing(image, box)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * max(image.nbytes, 3 * ENLARGED_LONG_SIDE * 800)
    assert max(large.shape) <= LONG_SIDE
    assert large.shape[0] * large.shape[1] <= PIXELS
    np.testing.assert_allclose(boxes[0], [0, 0, large.shape[1], large.shape[0]], atol=1e-6)
    if large.size < 10e6:
        drawn = draw_detections(large, boxes, np.asarray([0.9]), np.asarray([0]), NAMES)
        assert encode_image(f"a{suffix}", drawn)


def test_the_error_for_a_size_that_a_format_does_not_allow_names_the_file():
    with pytest.raises(ValueError, match=r"a\.webp: 20000×2 pixels can't be written as \.webp"):
        encode_image("a.webp", plain(2, 20_000))


@pytest.mark.parametrize("shape", [(10, 30_000), (30_000, 10), (6000, 5000)])
def test_contact_sheets_are_bounded(shape):
    images = [plain(*shape), plain(50, 60), plain(*shape)]
    for columns in (1, 2, 3):
        sheet = contact_sheet(images, columns)
        assert max(sheet.shape) <= LONG_SIDE + 200  # gaps do not shrink below two pixels
        assert sheet.shape[0] * sheet.shape[1] <= 1.05 * PIXELS
        assert (sheet[0, 0] == GRAY).all()


def test_errors_have_their_colors_and_missed_objects_are_dashed():
    drawn = draw_errors(plain(), [([20, 60, 80, 200], "a")], [([120, 60, 180, 200], "b")], [([220, 60, 280, 200], "c")])
    for x, color, is_whole in ((20, GREEN, True), (120, RED, True), (220, BLUE, False)):
        share = (drawn[60:200, x] == color).all(axis=-1).mean()
        assert share == 1 if is_whole else 0.3 < share < 0.8


def test_each_class_may_have_its_own_threshold():
    boxes = np.array([[20, 60, 80, 200], [120, 60, 180, 200]])
    drawn = draw_detections(plain(), boxes, np.array([0.5, 0.5]), np.array([0, 1]), NAMES, np.array([0.6, 0.4, 0.9]))
    assert not changed(drawn)[:, :100].any()
    assert changed(drawn)[:, 100:].any()
