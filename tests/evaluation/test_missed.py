"""Causes of missed objects: each one forced by hand, and all against brute force; other settings against `detect`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.plain_boxes import boxes_around, plain_iou, plain_matches, random_boxes
from tood_jax.evaluation.missed import CAUSES, Setting, diagnose_image, found_at_settings
from tood_jax.postprocess import image_candidates

LEVELS = (slice(0, 12), slice(12, 16))
OPTIONS = {"score_threshold": 0.2, "nms_iou": 0.6, "max_detections": 3}
TOP_K = 4


@partial(jax.jit, static_argnames=("score_threshold", "per_level"))
def candidates(scores, boxes, valid, score_threshold=0.2, per_level=TOP_K):
    return image_candidates(
        scores, boxes, valid, jnp.asarray([64, 64]), jnp.ones(2), None, level_slices=LEVELS,
        score_threshold=score_threshold, per_level=per_level, clip_boxes=False, clip_margin=0.0, geometric_mean=False,
    )  # fmt: skip


@jax.jit
def diagnosed(scores, boxes, valid, gt_boxes, gt_labels, gt_mask):
    found = candidates(scores, boxes, valid)
    return diagnose_image(scores, scores, boxes, valid, found, gt_boxes, gt_labels, gt_mask, **OPTIONS)


def scene(*predictions, objects=((0, 0, 10, 10),), labels=None):
    """Predictions (level 0 or 1, box, score of class 0, score of class 1), and objects of class 0; others score 0."""
    scores, boxes = np.zeros((16, 2), np.float32), np.tile(np.float32([50, 50, 51, 51]), (16, 1))
    places = [iter(range(12)), iter(range(12, 16))]
    for level, box, *values in predictions:
        n = next(places[level])
        boxes[n], scores[n] = box, values
    labels = np.zeros(len(objects), np.int32) if labels is None else np.asarray(labels, np.int32)
    return scores, boxes, np.full(16, True), np.asarray(objects, np.float32), labels, np.full(len(objects), True)


EXACT, NEAR, HALF, THIRD = (0, 0, 10, 10), (0, 0, 10, 9), (0, 0, 10, 6), (0, 0, 10, 3)
FAR = [(0, (20 + 10 * i, 30, 28 + 10 * i, 38), 0.9 - i / 100, 0) for i in range(4)]
FORCED = {
    "found": [(0, NEAR, 0.5, 0)],
    "poor box": [(0, THIRD, 0.9, 0)],
    "wrong class": [(0, EXACT, 0.1, 0.7)],
    "below threshold": [(0, EXACT, 0.15, 0.1), (0, HALF, 0.19, 0)],
    "not in top-k": [*FAR, (0, EXACT, 0.5, 0)],
    "suppressed by NMS": [(0, (0, 0, 10, 4.9), 0.9, 0), (0, (0, 0, 10, 6.5), 0.6, 0)],
    "beyond max_detections": [*FAR[:3], (1, EXACT, 0.5, 0)],
}


@pytest.mark.parametrize("cause", FORCED)
def test_each_cause_by_hand(cause):
    found = diagnosed(*scene(*FORCED[cause]))
    assert CAUSES[int(found.cause[0])] == cause
    location, iou, score = int(found.location[0]), float(found.iou[0]), float(found.score[0])
    expected = {
        "found": (0, 0.9, 0.5),
        "poor box": (0, 0.3, 0.9),
        "wrong class": (0, 1.0, 0.1),
        "below threshold": (1, 0.6, 0.19),
        "not in top-k": (4, 1.0, 0.5),
        "suppressed by NMS": (1, 0.65, 0.6),
        "beyond max_detections": (12, 1.0, 0.5),
    }[cause]
    assert location == expected[0]
    np.testing.assert_allclose([iou, score], expected[1:], rtol=1e-6)
    if cause == "suppressed by NMS":
        np.testing.assert_allclose(found.other_box[0], [0, 0, 10, 4.9])
        assert float(found.other_score[0]) == pytest.approx(0.9)
    if cause == "wrong class":
        assert int(found.other_label[0]) == 1
        assert float(found.other_score[0]) == pytest.approx(0.7)


def test_a_detection_that_matches_another_object():
    """Two objects share one detection: it takes the one of larger IoU."""
    found = diagnosed(*scene((0, EXACT, 0.9, 0), objects=(EXACT, NEAR)))
    assert [CAUSES[i] for i in found.cause] == ["found", "matched to another"]
    np.testing.assert_array_equal(found.other_box[1], EXACT)


def plain_diagnosis(scores, boxes, valid, gt_boxes, gt_labels, gt_mask):
    """The cause of each object, from sorted lists; -1 for padding."""
    passing = [(n, c) for n, c in np.argwhere(scores > OPTIONS["score_threshold"]).tolist() if valid[n]]
    chosen = []
    for level in LEVELS:
        inside = [pair for pair in passing if level.start <= pair[0] < level.stop]
        chosen += sorted(inside, key=lambda pair: -scores[pair])[:TOP_K]
    left, kept, suppressed = sorted(chosen, key=lambda pair: -scores[pair]), [], set()
    while left and len(kept) < OPTIONS["max_detections"]:
        best = left.pop(0)
        kept.append(best)
        gone = [p for p in left if p[1] == best[1] and plain_iou(boxes[p[0]], boxes[best[0]]) > OPTIONS["nms_iou"]]
        suppressed |= set(gone)
        left = [p for p in left if p not in gone]
    objects = np.flatnonzero(gt_mask)
    taken = plain_matches([boxes[n] for n, _ in kept], [c for _, c in kept], gt_boxes[objects], gt_labels[objects], 0.5)
    causes = np.full(len(gt_boxes), -1)
    for i, m in enumerate(objects):
        good = [n for n in np.flatnonzero(valid) if plain_iou(boxes[n], gt_boxes[m]) >= 0.5]
        own = {(n, gt_labels[m]) for n in good}
        name = "poor box"
        for stage, reached in (
            ("below threshold", good),
            ("wrong class", [n for n in good if scores[n].max() > OPTIONS["score_threshold"]]),
            ("not in top-k", own & set(passing)),
            ("suppressed by NMS", own & suppressed),
            ("beyond max_detections", own & set(left)),
            ("matched to another", own & set(kept)),
            ("found", i in taken),
        ):
            name = stage if reached else name
        causes[m] = CAUSES.index(name)
    return causes


@given(st.integers(0, 2**32 - 1))
def test_causes_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    gt_boxes, gt_labels = random_boxes(rng, 4), rng.integers(0, 2, 4).astype(np.int32)
    boxes = boxes_around(rng, gt_boxes, 16, rng.uniform(1, 6))
    scores = (rng.permutation(32).reshape(16, 2) / 32 * rng.uniform(0.3, 1)).astype(np.float32)
    scene = scores, boxes, rng.random(16) < 0.9, gt_boxes, gt_labels, rng.random(4) < 0.8
    np.testing.assert_array_equal(diagnosed(*scene).cause, plain_diagnosis(*scene))


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_other_settings_equal_detection_with_them(seed):
    rng = np.random.default_rng(seed)
    gt_boxes, gt_labels = random_boxes(rng, 4), rng.integers(0, 2, 4).astype(np.int32)
    boxes = boxes_around(rng, gt_boxes, 16, 3)
    scores = rng.random((16, 2)).astype(np.float32)
    valid, mask = np.full(16, True), np.full(4, True)
    thresholds, overlaps, per_level = (0.1, 0.5), (0.3, 0.6), (2, 8)
    grid = [(t, o, k) for t in thresholds for o in overlaps for k in per_level]
    chosen = Setting(*(jnp.asarray(column) for column in zip(*grid, strict=True)))
    loosest = candidates(scores, boxes, valid, 0.1, 8)
    rank = np.concatenate([np.arange(8), np.arange(8)])
    counts = compiled_settings(scores, loosest, gt_boxes, gt_labels, mask, rank=rank, settings=chosen)
    for (threshold, overlap, k), recalled, detected in zip(grid, *counts, strict=True):
        found = candidates(scores, boxes, valid, threshold, k)
        order, kept = sorted(np.flatnonzero(found.scores > 0).tolist(), key=lambda i: -found.scores[i]), []
        for i in order:
            overlapping = [j for j in kept if found.labels[i] == found.labels[j]]
            if all(plain_iou(found.boxes[i], found.boxes[j]) <= overlap for j in overlapping) and len(kept) < 3:
                kept.append(i)
        taken = plain_matches(
            found.boxes[np.asarray(kept, int)], found.labels[np.asarray(kept, int)], gt_boxes, gt_labels, 0.5
        )
        assert (int(recalled), int(detected)) == (sum(m >= 0 for m in taken), len(kept))


compiled_settings = jax.jit(partial(found_at_settings, max_detections=3, at_once=4))
