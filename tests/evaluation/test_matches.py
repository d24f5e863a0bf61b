"""Matches, AP on resampled images and best thresholds, against pycocotools, brute force and an example by hand."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tood_jax.evaluation.coco_ap import evaluate
from tood_jax.evaluation.matches import (
    AveragePrecision,
    bootstrap,
    count_classes,
    f1_score,
    interval,
    match,
    mean_defined,
    precision_recall,
)


def random_set(seed, images=12, classes=3, crowds=0.1):
    """Objects, and detections of which a half is near an object; distinct scores."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 5)):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(5, 60, 2)]
            category = int(rng.integers(1, classes + 1))
            fields = {"image_id": image, "category_id": category}
            crowd = int(rng.random() < crowds)
            annotations.append({"id": len(annotations) + 1, "bbox": box, "iscrowd": crowd, **fields})
            for _ in range(rng.integers(0, 4)):
                moved = (np.asarray(box) + rng.normal(0, 3, 4)).clip(1).tolist()
                category = fields["category_id"] if rng.random() < 0.8 else int(rng.integers(1, classes + 1))
                results.append({"image_id": image, "category_id": category, "bbox": moved, "score": rng.random()})
    for one in annotations:
        one["area"] = one["bbox"][2] * one["bbox"][3]
    return {
        "images": [{"id": i + 1} for i in range(images)],
        "categories": [{"id": c + 1, "name": f"class {c}"} for c in range(classes)],
        "annotations": annotations,
    }, results


def reference_ap(truth, results):
    """pycocotools' AP [T, C]; NaN where it has none."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **truth}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(one) for one in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]
    return np.where((precision > -1).all(axis=1), precision.mean(axis=1), np.nan)


@given(seed=st.integers(0, 10_000))
def test_ap_equals_that_of_pycocotools(seed):
    truth, results = random_set(seed)
    if results:
        np.testing.assert_allclose(
            AveragePrecision(match(truth, results))(), reference_ap(truth, results), rtol=0, atol=1e-12
        )


@given(seed=st.integers(0, 10_000))
def test_copies_of_images_count_as_images_of_a_data_set(seed):
    """The data set with each image as often as drawn, as a file, gives the AP of the sample."""
    truth, results = random_set(seed)
    copies = np.random.default_rng(seed).integers(0, 4, len(truth["images"]))
    new = {"images": [], "categories": truth["categories"], "annotations": []}
    found = []
    for image, number in enumerate(copies, 1):
        for _ in range(number):
            id_ = len(new["images"]) + 1
            new["images"].append({"id": id_})
            of_image = [one for one in truth["annotations"] if one["image_id"] == image]
            new["annotations"] += [
                {**one, "id": len(new["annotations"]) + n, "image_id": id_} for n, one in enumerate(of_image, 1)
            ]
            found += [{**one, "image_id": id_} for one in results if one["image_id"] == image]
    if found:
        expected = reference_ap(new, found)
        np.testing.assert_allclose(AveragePrecision(match(truth, results))(copies), expected, rtol=0, atol=1e-12)


def four_boxes():
    """Image 1: an `a` found twice, a `b` found as `a`. Image 2: an `a` that is missed, and a crowd of `a`."""
    fields = [
        (1, 1, [0, 0, 10, 10], 0), (1, 2, [50, 0, 10, 10], 0), (2, 1, [0, 0, 10, 10], 0), (2, 1, [50, 50, 20, 20], 1),
    ]  # fmt: skip
    found = [
        (1, 1, [0, 0, 10, 10], 0.9), (1, 1, [0, 0, 10, 11], 0.8), (1, 1, [50, 0, 10, 10], 0.7),
        (2, 1, [52, 52, 10, 10], 0.6),
    ]  # fmt: skip
    return {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
            for image, category, box, crowd in fields
        ],
    }, [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in found]


def test_four_boxes_by_hand():
    truth, results = four_boxes()
    matches = match(truth, results)
    assert matches.status[0].tolist() == [1, 0, 0, -1]  # right, duplicate, another class, on the crowd
    scores, precision, recall = precision_recall(matches, 0)
    np.testing.assert_allclose(scores, [0.9, 0.8, 0.7])
    np.testing.assert_allclose(precision, [1, 1 / 2, 1 / 3])
    np.testing.assert_allclose(recall, [0.5, 0.5, 0.5])
    first, second = count_classes(matches)
    assert first == (0.9, 1.0, 0.5, pytest.approx(2 / 3), 2, 2)
    assert second[2:] == (0.0, 0.0, 1, 1)
    assert np.isnan(second[:2]).all()
    np.testing.assert_allclose(mean_defined(AveragePrecision(matches)(), 0), [51 / 101, 0])


@given(seed=st.integers(0, 10_000))
def test_the_best_threshold_is_that_of_an_exhaustive_search(seed):
    truth, results = random_set(seed, classes=2, crowds=0)
    for one in results:
        one["score"] = round(one["score"], 1)  # with ties
    matches = match(truth, results)
    for label, counts in enumerate(count_classes(matches)):
        of_class = matches.label == label
        objects = sum(one["category_id"] == label + 1 for one in truth["annotations"])
        best = 0.0
        for threshold in np.unique(matches.score[of_class]):
            kept = of_class & (matches.score >= threshold)
            right = int((matches.status[0][kept] == 1).sum())
            f1 = 2 * right / (kept.sum() + objects) if objects else 0.0
            best = max(best, f1)
            if threshold == counts.threshold:
                assert (counts.precision, counts.recall) == pytest.approx((right / kept.sum(), right / objects))
                assert counts.f1 == pytest.approx(f1)
        assert counts.objects == objects
        if objects:
            assert counts.f1 == pytest.approx(best)


def test_f1_of_nothing_is_zero():
    np.testing.assert_allclose(f1_score(np.array([0.0, 1.0]), np.array([0.0, 0.5])), [0, 2 / 3])


@pytest.mark.parametrize("results", [[], four_boxes()[1]])
def test_a_set_without_objects_has_no_ap(results):
    truth = four_boxes()[0] | {"annotations": []}
    matches = match(truth, results)
    (samples,) = bootstrap([matches], 3)
    assert samples.shape == (3, 10, 2)
    assert np.isnan(samples).all()
    assert np.isnan(interval(samples)).all()


def test_an_interval_ignores_samples_without_objects_of_the_class():
    samples = np.array([[0.5, np.nan], [np.nan, np.nan], [0.5, np.nan]])
    np.testing.assert_array_equal(interval(samples), [[0.5, np.nan], [0.5, np.nan]])


def test_intervals_are_the_same_every_time_and_contain_the_value():
    truth, results = random_set(3, images=60)
    matches = match(truth, results)
    first, second = bootstrap([matches, matches])
    np.testing.assert_array_equal(first, second)
    low, high = interval(mean_defined(first, (1, 2)))
    ap = evaluate(truth, results).AP
    assert low < ap < high
    assert 0.01 < high - low < 0.4


def test_evaluations_of_other_data_sets_are_not_compared():
    with pytest.raises(ValueError, match=r"12, 13.* images; they must be of the same data set"):
        bootstrap([match(*random_set(0)), match(*random_set(0, images=13))], 1)
