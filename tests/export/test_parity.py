"""Which differences of detections count."""

import numpy as np
import pytest

from tood_jax.evaluation.predict import ImageDetections
from tood_jax.export import parity
from tood_jax.export.folder import ExportError

THRESHOLD, MOST = 0.05, 4


def found(scores, shift=0.0, labels=None):
    boxes = np.arange(len(scores), dtype=np.float32)[:, None] * 10 + np.asarray([0, 0, 5, 5], np.float32) + shift
    labels = np.zeros(len(scores), np.int32) if labels is None else np.asarray(labels, np.int32)
    return ImageDetections(0, boxes.astype(np.float32), np.asarray(scores, np.float32), labels)


def differ(one, other):
    return parity.difference(one, other, THRESHOLD, MOST)


def test_equal_detections_do_not_differ():
    assert differ(found([0.9, 0.5]), found([0.9, 0.5])) == (0, 0, 2, 0)
    assert differ(found([]), found([])) == (0, 0, 0, 0)


def test_equal_scores_may_stand_in_any_order():
    one, other = found([0.5, 0.5]), found([0.5, 0.5])
    swapped = ImageDetections(0, other.boxes[::-1], other.scores, other.labels)
    assert differ(one, swapped) == (0, 0, 2, 0)


def test_a_box_a_score_and_a_label_differ():
    assert differ(found([0.9]), found([0.9], shift=0.5)).box == 0.5
    assert parity.difference(found([0.9]), found([0.9], shift=0.5), THRESHOLD, MOST, pixel=4.0).box == 0.125
    assert differ(found([0.9]), found([0.9005])).score == pytest.approx(0.0005, rel=1e-3)
    assert differ(found([0.9]), found([0.9], labels=[1])).unmatched == 2


def test_a_detection_may_be_missing_only_where_rounding_decides():
    assert differ(found([0.9, 0.05001]), found([0.9])).unmatched == 0
    assert differ(found([0.9, 0.06]), found([0.9])).unmatched == 1
    full = found([0.9, 0.8, 0.7, 0.6])
    assert differ(full, found([0.9, 0.8, 0.7, 0.6], labels=[0, 0, 0, 1])).unmatched == 0
    assert differ(full, found([0.9, 0.8, 0.7, 0.6], labels=[0, 0, 1, 0])).unmatched == 2


def test_a_large_difference_names_the_image():
    result = parity.compare(["a.jpg"], [found([0.9])], [found([0.9], shift=1.0)], THRESHOLD, MOST, [1.0])
    with pytest.raises(ExportError, match=r"a\.jpg \(difference of box 1\)"):
        parity.check(result, "program")
    parity.check(parity.compare(["a.jpg"], [found([0.9])], [found([0.9])], THRESHOLD, MOST, [1.0]), "program")
