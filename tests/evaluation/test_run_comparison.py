"""Whether one set of detections is better than another."""

import numpy as np

from tests.evaluation.test_matches import random_set
from tood_jax.evaluation.coco_ap import evaluate
from tood_jax.evaluation.comparison import compare_results


def spoilt(results, pixels):
    return [{**one, "bbox": [one["bbox"][0] + pixels, *one["bbox"][1:]]} for one in results]


def test_moved_boxes_are_worse_and_the_numbers_are_those_of_the_evaluation():
    truth, results = random_set(1, images=40)
    rows = compare_results(truth, results, spoilt(results, 4))
    metrics = evaluate(truth, results)
    assert [row.name for row in rows] == ["AP", "AP50", "AP75", "class 0", "class 1", "class 2"]
    np.testing.assert_allclose([row.first for row in rows], [metrics.AP, metrics.AP50, metrics.AP75, *metrics.class_ap])
    assert rows[0].second < rows[0].first
    assert rows[0].verdict == "worse"
    assert rows[0].low < rows[0].second - rows[0].first < rows[0].high < 0
    reverse = compare_results(truth, spoilt(results, 4), results)
    assert reverse[0].verdict == "better"
    np.testing.assert_allclose([reverse[0].low, reverse[0].high], [-rows[0].high, -rows[0].low])


def test_equal_detections_do_not_differ():
    truth, results = random_set(2)
    for row in compare_results(truth, results, results):
        assert (row.low, row.high, row.verdict) == (0, 0, "not clear")


def test_a_class_without_objects_has_no_verdict():
    truth, results = random_set(2)
    truth["categories"].append({"id": 9, "name": "none"})
    row = compare_results(truth, results, results)[-1]
    assert row.name == "none"
    assert np.isnan([row.first, row.second, row.low, row.high]).all()
    assert row.verdict == "not clear"
