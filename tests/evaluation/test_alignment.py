"""The measures of the paper's Table 6, against brute force and an example by hand."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.plain_boxes import boxes_around, plain_iou, plain_matches, random_boxes
from tood_jax.evaluation.alignment import count_boxes, object_alignment

measure = jax.jit(object_alignment)
count = jax.jit(count_boxes)


def plain_ranks(values):
    return np.asarray([np.mean([i for i, x in enumerate(sorted(values)) if x == value]) for value in values])


def plain_alignment(scores, boxes, valid, gt_boxes, gt_labels, gt_mask):
    """One object, one prediction and one rank at a time; NaN for padding."""
    correlation, mean_iou = np.full(len(gt_boxes), np.nan), np.full(len(gt_boxes), np.nan)
    own = {m: [] for m in np.flatnonzero(gt_mask)}
    for n in np.flatnonzero(valid):
        ious = {m: plain_iou(boxes[n], gt_boxes[m]) for m in own}
        best = max(ious, key=ious.get, default=None)
        if best is not None and ious[best] > 0.1:
            own[best].append((-scores[n, gt_labels[best]], n, ious[best]))
    for m, predictions in own.items():
        best = sorted(predictions)[:50]
        mean_iou[m] = np.mean([iou for _, _, iou in best[:10]]) if best else 0
        a, b = plain_ranks([-score for score, _, _ in best]), plain_ranks([iou for _, _, iou in best])
        if len(best) > 1 and a.std() > 0 and b.std() > 0:
            correlation[m] = np.corrcoef(a, b)[0, 1]
    return correlation, mean_iou


@given(st.integers(0, 2**32 - 1))
def test_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    gt_boxes, gt_mask = random_boxes(rng, 5), np.arange(5) < rng.integers(0, 6)
    gt_labels = rng.integers(0, 3, 5).astype(np.int32)
    boxes = boxes_around(rng, gt_boxes, 160, rng.uniform(1, 9))
    scores = (rng.integers(0, 30, (160, 3)) / 30).astype(np.float32)  # with ties
    valid = rng.random(160) < 0.9
    found = measure(scores, boxes, valid, gt_boxes, gt_labels, gt_mask)
    expected = plain_alignment(scores, boxes, valid, gt_boxes, gt_labels, gt_mask)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_alignment_by_hand():
    """Boxes that share 1.0, 0.8, 0.6 and 0.5 of the object: the best score is at 0.8, and the others follow the IoU."""
    gt = np.asarray([[0, 0, 10, 10], [0, 0, 0, 0], [50, 50, 60, 60]], np.float32)
    boxes = np.asarray([[0, 0, 10, height] for height in (10, 8, 6, 5)] + [[0, 30, 10, 31]], np.float32)
    scores = np.asarray([[0.8], [0.9], [0.2], [0.1], [0.99]], np.float32)
    mask = np.asarray([True, False, True])
    correlation, mean_iou = measure(scores, boxes, np.full(5, True), gt, np.zeros(3, np.int32), mask)
    # ranks of scores 2, 3, 1, 0 and of IoU 3, 2, 1, 0: 1 − 6·(1 + 1)/(4·15) = 0.8
    np.testing.assert_allclose(correlation, [0.8, np.nan, np.nan], atol=1e-6)
    np.testing.assert_allclose(mean_iou, [(1 + 0.8 + 0.6 + 0.5) / 4, np.nan, 0], atol=1e-6)


def test_counts_by_hand():
    """Two objects of one class: found, found twice, a poor box, a box too far away, another class, padding."""
    gt = np.asarray([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    boxes = np.asarray(
        [[0, 0, 10, 9], [0, 0, 10, 8], [0, 0, 10, 4], [0, 0, 10, 0.5], [20, 0, 30, 10], [20, 0, 30, 5], [0, 0, 10, 10]],
        np.float32,
    )
    labels = np.asarray([0, 0, 0, 0, 1, 0, -1], np.int32)
    found = count(boxes, labels, gt, np.zeros(2, np.int32), np.full(2, True))
    assert [int(x) for x in found] == [2, 1, 1]  # the exact box of class 1 is none of them


@given(st.integers(0, 2**32 - 1))
def test_counts_equal_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    gt_boxes, gt_labels = random_boxes(rng, 6), rng.integers(0, 2, 6).astype(np.int32)
    boxes, labels = boxes_around(rng, gt_boxes, 20, 5), rng.integers(-1, 2, 20).astype(np.int32)
    mask = rng.random(6) < 0.8
    taken = plain_matches(boxes, labels, gt_boxes[mask], gt_labels[mask], 0.5)
    largest = [
        max([plain_iou(box, gt) for gt, m in zip(gt_boxes[mask], gt_labels[mask], strict=True) if m == label] + [0])
        for box, label in zip(boxes, labels, strict=True)
    ]
    kinds = [0 if t >= 0 else 1 if iou >= 0.5 else 2 if iou > 0.1 else 3 for t, iou in zip(taken, largest, strict=True)]
    found = count(boxes, labels, gt_boxes, gt_labels, mask)
    assert [int(x) for x in found] == [kinds.count(k) for k in range(3)]
