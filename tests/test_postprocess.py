"""Detections: NMS against golden indices and a plain greedy loop, thresholds, rescaling, clipping, nothing to find."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden_models import golden_ops
from tood_jax.postprocess import detect, nms, select_candidates, vote

SLICES = (slice(0, 4), slice(4, 6))


@functools.cache
def compiled_nms(**options):
    return jax.jit(functools.partial(nms, **options))


def plain_iou(a, b):
    sides = np.maximum(np.minimum(a[2:], b[:, 2:]) - np.maximum(a[:2], b[:, :2]), 0)
    intersection = sides[:, 0] * sides[:, 1]
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return intersection / np.maximum(areas - intersection, np.float32(1e-6))


def plain_nms(boxes, scores, labels, threshold, count):
    """Sort, keep the best, drop what overlaps it, again."""
    keep, left = [], [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0]
    while left and len(keep) < count:
        best = left.pop(0)
        keep.append(best)
        overlap = plain_iou(boxes[best], boxes)
        left = [i for i in left if labels[i] != labels[best] or overlap[i] <= threshold]
    return keep


@pytest.mark.parametrize("threshold", [0.6, 0.5])
def test_nms_equals_golden(threshold):
    ops = golden_ops()
    boxes, scores, labels = ops["nms.boxes"], ops["nms.scores"], ops["nms.labels"].astype(np.int32)
    keep = np.asarray(compiled_nms(iou_threshold=threshold, max_detections=600)(boxes, scores, labels))
    golden = ops[f"nms_{threshold}.keep"]
    np.testing.assert_array_equal(keep[: len(golden)], golden)
    assert (keep[len(golden) :] == -1).all()
    best = compiled_nms(iou_threshold=threshold, max_detections=10)(boxes, scores, labels)
    np.testing.assert_array_equal(best, golden[:10])  # fewer rounds are the head of more


@given(st.integers(0, 2**32 - 1))
def test_nms_equals_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (24, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 20, (24, 2))], axis=1).astype(np.float32)
    scores = (rng.integers(0, 12, 24) / 12).astype(np.float32)  # with ties and zeros
    labels = rng.integers(0, 2, 24).astype(np.int32)
    keep = np.asarray(compiled_nms(iou_threshold=0.4, max_detections=30)(boxes, scores, labels))
    keep = keep[keep >= 0]
    np.testing.assert_array_equal(keep, plain_nms(boxes, scores, labels, 0.4, 30))
    for i in keep:
        others = [j for j in keep if j != i and labels[j] == labels[i]]
        assert (plain_iou(boxes[i], boxes[others]) <= 0.4).all()


def test_nms_example_by_hand():
    """An equal IoU stays; another class stays; what a suppressed box would have suppressed stays."""
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 4], [1, 0, 5, 4], [3, 0, 7, 4]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
    keep = compiled_nms(iou_threshold=0.5, max_detections=5)(boxes, scores, np.array([0, 0, 1, 0, 0], np.int32))
    np.testing.assert_array_equal(keep, [0, 1, 2, 4, -1])


def test_nothing_to_suppress():
    boxes = np.zeros((3, 4), np.float32)
    keep = compiled_nms(iou_threshold=0.5, max_detections=2)(boxes, np.zeros(3, np.float32), np.zeros(3, np.int32))
    np.testing.assert_array_equal(keep, [-1, -1])


def test_candidates_are_the_best_pairs_of_each_level():
    scores = jnp.asarray([[0.9, 0.1], [0.2, 0.8], [0.05, 0.3], [0.7, 0.7], [0.5, 0.0], [0.4, 0.6]])
    valid = jnp.asarray([True, True, True, False, True, True])
    static = "score_threshold", "per_level"
    select = jax.jit(functools.partial(select_candidates, level_slices=SLICES), static_argnames=static)
    found, best, labels = select(scores, valid, score_threshold=0.15, per_level=3)
    np.testing.assert_allclose(best, [0.9, 0.8, 0.3, 0.6, 0.5, 0.4])
    np.testing.assert_array_equal(labels, [0, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(found, [0, 1, 2, 5, 4, 5])
    _, best, _ = select(scores, valid, score_threshold=0.5, per_level=100)
    assert best.shape == (8 + 4,)  # clamped to the level's pairs
    np.testing.assert_allclose(best[best > 0], [0.9, 0.8, 0.6])  # above the threshold, not at it


def one_image(**changed):
    given = {
        "scores": np.float32([[[0.9, 0.0], [0.8, 0.04], [0.0, 0.7], [0.6, 0.0], [0.3, 0.0], [0.0, 0.2]]]),
        "boxes": np.float32(
            [[[0, 0, 8, 8], [0, 0, 8, 7], [-4, 2, 20, 12], [5, 5, 5, 9], [8, 8, 16, 16], [9, 9, 8, 12]]]
        ),
        "valid": np.ones((1, 6), bool),
        "sizes": np.int32([[12, 16]]),
        "scales": np.float32([[2.0, 4.0]]),
    }
    return {**given, **changed}


def with_values(array, index, value):
    """A copy of the array with this value at the index."""
    changed = array.copy()
    changed[index] = value
    return changed


@functools.cache
def compiled_detect(**options):
    return jax.jit(functools.partial(detect, level_slices=SLICES, **options))


def detect_in(image, **options):
    return jax.device_get(compiled_detect(**options)(**image))


def test_detections_are_in_original_pixels():
    found = detect_in(one_image(), max_detections=5)
    np.testing.assert_allclose(found.scores, [[0.9, 0.7, 0.3, 0, 0]])
    np.testing.assert_array_equal(found.labels, [[0, 1, 0, -1, -1]])
    # x is divided by 4 and y by 2; the second box is suppressed, those without area are gone
    np.testing.assert_allclose(found.boxes[0, :3], [[0, 0, 2, 4], [-1, 1, 5, 6], [2, 4, 4, 8]])
    assert not found.boxes[0, 3:].any()


def test_clipping():
    found = detect_in(one_image(), max_detections=3, clip_boxes=True)
    np.testing.assert_allclose(found.boxes[0], [[0, 0, 2, 4], [0, 1, 4, 6], [2, 4, 4, 6]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"clip_boxes": True}, {"score_voting": True}])
@given(bad=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=3))
def test_a_box_that_is_no_number_is_as_if_it_were_not_there(value, options, bad):
    """It takes no place of another and is counted, wherever it stands."""
    image, cells = one_image(), sorted({cell for cell, _ in bad})
    boxes = image["boxes"].copy()
    for cell, side in bad:
        boxes[0, cell, side] = value
    options = {"max_detections": 4, "candidates_per_level": 3, **options}
    found = detect_in({**image, "boxes": boxes}, **options)
    without = detect_in({**image, "scores": with_values(image["scores"], (0, cells), 0)}, **options)
    jax.tree.map(np.testing.assert_array_equal, found[:3], without[:3])
    assert int(found.non_finite[0]) == int((image["scores"][0, cells] > 0.05).sum())


def test_scores_that_are_no_numbers_are_dropped_and_counted():
    image, options = one_image(), {"max_detections": 4, "candidates_per_level": 3}
    scores, zeros = image["scores"].copy(), image["scores"].copy()
    scores[0, 0, 0], scores[0, 1, 1] = np.nan, np.inf
    zeros[0, 0, 0] = zeros[0, 1, 1] = 0
    found = detect_in({**image, "scores": scores}, **options)
    without = detect_in({**image, "scores": zeros}, **options)
    jax.tree.map(np.testing.assert_array_equal, found[:3], without[:3])
    assert found.non_finite.tolist() == [2]
    outside = detect_in({**image, "scores": scores, "valid": np.zeros((1, 6), bool)}, **options)
    assert outside.non_finite.tolist() == [0]  # what lies in the padding counts for nothing


@pytest.mark.parametrize("nothing", [{"valid": np.zeros((1, 6), bool)}, {"scores": np.zeros((1, 6, 2), np.float32)}])
def test_no_detection(nothing):
    found = detect_in(one_image(**nothing), max_detections=4)
    assert found.boxes.shape == (1, 4, 4)
    assert not found.boxes.any()
    assert not found.scores.any()
    assert (found.labels == -1).all()


def test_images_are_independent():
    a, b = one_image(), one_image(valid=np.array([[False, True, True, True, True, True]]))
    both = {key: np.concatenate([a[key], b[key]]) for key in a}
    found = detect_in(both, max_detections=5)
    for i, one in enumerate((a, b)):
        alone = detect_in(one, max_detections=5)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y[0]), found, alone)


def test_a_product_with_the_quality_is_taken_after_the_selection():
    """The product orders and scores the detections, while threshold and top-k see the class score alone."""
    quality = np.float32([[0.1, 1.0, 1.0, 1.0, 1.0, 1.0]])
    plain = detect_in(one_image(), max_detections=6)
    product = detect_in(one_image(quality=quality), max_detections=6)
    assert float(plain.scores[0, 0]) == pytest.approx(0.9)
    assert float(product.scores[0, 0]) == pytest.approx(0.8)  # the box of 0.9 · 0.1 = 0.09 is suppressed by this one
    above_quality = detect_in(one_image(quality=quality / 2), max_detections=6, score_threshold=0.6)
    assert (above_quality.scores > 0).sum() > 1
    assert float(above_quality.scores[0, 0]) == pytest.approx(0.4)


def test_a_geometric_mean_with_the_quality_is_what_threshold_and_top_k_see():
    """PAA and OTA: a low class score with a high quality is a candidate, a high one with a low quality is not."""
    quality = np.float32([[0.1, 1.0, 1.0, 1.0, 1.0, 1.0]])
    every = detect_in(one_image(quality=quality), max_detections=6, geometric_mean=True)
    assert float(every.scores[0, 0]) == pytest.approx(0.8**0.5)
    assert 0.2 in every.scores[0].round(4)  # its class score is 0.04, below the threshold
    for threshold in (0.1, 0.85):
        some = detect_in(one_image(quality=quality), max_detections=6, geometric_mean=True, score_threshold=threshold)
        expected = np.where(every.scores > threshold, every.scores, 0)
        np.testing.assert_allclose(some.scores, expected)


def test_the_margin_of_the_clip():
    image = one_image()
    clipped = detect_in(image, max_detections=6, clip_boxes=True, clip_margin=1.0)
    assert float(clipped.boxes[0, :, 2].max()) == (16 - 1) / 4  # width 16, scale 4
    assert float(clipped.boxes[0, :, 3].max()) <= (12 - 1) / 2


@given(st.integers(0, 999))
def test_voting_equals_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (12, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 15, (12, 2))], axis=1).astype(np.float32)
    scores, labels = rng.uniform(0, 1, 12).astype(np.float32), rng.integers(0, 2, 12).astype(np.int32)
    scores[-3:] = 0  # no candidates
    voted = jax.jit(vote)(boxes[:4], labels[:4], boxes, scores, labels)
    for i in range(4):
        near = plain_iou(boxes[i], boxes)
        weight = np.exp(-((1 - near) ** 2) / 0.025) * scores * (near > 0.01) * (labels == labels[i])
        np.testing.assert_allclose(voted[i], (weight[:, None] * boxes).sum(axis=0) / weight.sum(), rtol=1e-4)
