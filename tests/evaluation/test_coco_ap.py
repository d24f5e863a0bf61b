"""COCO AP of examples computed by hand, of cases that COCO's own code gets wrong, and with both engines."""

# ruff: noqa: SIM300 (it takes the capitals of `metrics.AP` for a constant)

import copy
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tood_jax.evaluation.coco_ap import (
    HAS_HOTCOCO,
    CocoMetrics,
    coco_results,
    evaluate,
    format_table,
    write_results,
)
from tood_jax.types import Detections

ENGINES = ["pycocotools", *(["hotcoco"] if HAS_HOTCOCO else [])]


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def truth(*objects, images=(1, 2), categories=(1,)):
    """An instances file; each object is (image, category, [x, y, w, h]) and perhaps a dict of further fields."""
    annotations = []
    for number, (image, category, box, *more) in enumerate(objects):
        extra = more[0] if more else {}
        annotations.append({"id": number, "image_id": image, "category_id": category, "bbox": box} | extra)
    return {
        "images": [{"id": i} for i in images],
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
        "annotations": annotations,
    }


def result(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_one_perfect_box(engine):
    box = [10, 10, 50, 50]  # area 2500: medium
    metrics = evaluate(truth((1, 1, box)), [result(1, 1, box, 0.9)], engine)
    for name in ("AP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm"):
        assert getattr(metrics, name) == pytest.approx(1.0), name
    for name in ("APs", "APl", "ARs", "ARl"):
        assert math.isnan(getattr(metrics, name)), name
    assert metrics.class_ap == pytest.approx((1.0,))


def test_the_iou_decides_which_thresholds_count(engine):
    # 60 of 100 columns overlap, so that IoU = 0.6: three of the ten thresholds (0.5, 0.55, 0.6) are met
    metrics = evaluate(truth((1, 1, [0, 0, 100, 100])), [result(1, 1, [0, 0, 60, 100], 0.9)], engine)
    assert metrics.AP90 == 0.0
    assert metrics.AP50 == pytest.approx(1.0)
    assert metrics.AP75 == 0.0
    assert metrics.AP == pytest.approx(0.3)
    assert metrics.AR100 == pytest.approx(0.3)
    assert metrics.APl == pytest.approx(0.3)


def test_ap90_is_the_ninth_threshold(engine):
    # IoU 0.92 meets 0.90 and misses 0.95: nine of ten thresholds
    metrics = evaluate(truth((1, 1, [0, 0, 100, 100])), [result(1, 1, [0, 0, 92, 100], 0.9)], engine)
    assert metrics.AP90 == pytest.approx(1.0)
    assert metrics.AP == pytest.approx(0.9)


def test_a_duplicate_is_a_false_positive(engine):
    # Best first: hit, duplicate, hit. Precision at recall ≤ 0.5 is 1 (51 of the 101 points), above it 2/3 (50 points).
    first, second = [0, 0, 40, 40], [100, 100, 40, 40]
    results = [result(1, 1, first, 0.9), result(1, 1, first, 0.8), result(1, 1, second, 0.7)]
    metrics = evaluate(truth((1, 1, first), (1, 1, second)), results, engine)
    assert metrics.AP50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert metrics.AR1 == pytest.approx(0.5)
    assert metrics.AR10 == pytest.approx(1.0)


def test_a_false_positive_below_all_hits_costs_nothing_and_above_costs_half(engine):
    box, elsewhere = [0, 0, 40, 40], [200, 200, 40, 40]
    after = evaluate(truth((1, 1, box)), [result(1, 1, box, 0.9), result(2, 1, elsewhere, 0.1)], engine)
    before = evaluate(truth((1, 1, box)), [result(1, 1, box, 0.1), result(2, 1, elsewhere, 0.9)], engine)
    assert after.AP == pytest.approx(1.0)
    assert before.AP == pytest.approx(0.5)


def test_detections_in_a_crowd_are_ignored(engine):
    box, crowd = [0, 0, 40, 40], [100, 100, 200, 200]
    inside = [result(1, 1, [110 + 30 * i, 120, 30, 30], 0.9) for i in range(3)]
    ground_truth = truth((1, 1, box), (1, 1, crowd, {"iscrowd": 1}))
    metrics = evaluate(ground_truth, [*inside, result(1, 1, box, 0.5)], engine)
    assert metrics.AP == pytest.approx(1.0)
    assert metrics.AR100 == pytest.approx(1.0)
    alone = evaluate(truth((1, 1, box), (1, 1, crowd)), [*inside, result(1, 1, box, 0.5)], engine)
    assert alone.AP < 0.3  # without the flag, one of four detections is right


def test_the_area_in_the_file_determines_the_size(engine):
    box = [0, 0, 50, 50]
    small = evaluate(truth((1, 1, box, {"area": 500.0})), [result(1, 1, box, 0.9)], engine)
    assert small.APs == pytest.approx(1.0)
    assert math.isnan(small.APm)
    for missing in ({}, {"area": None, "iscrowd": None}):
        medium = evaluate(truth((1, 1, box, missing)), [result(1, 1, box, 0.9)], engine)
        assert medium.APm == pytest.approx(1.0)


def test_no_detections_at_all(engine):
    metrics = evaluate(truth((1, 1, [0, 0, 40, 40]), (2, 2, [0, 0, 9, 9]), categories=(1, 2)), [], engine)
    assert (metrics.AP, metrics.AP50, metrics.APs, metrics.APm, metrics.AR100) == (0.0, 0.0, 0.0, 0.0, 0.0)
    assert metrics.class_ap == (0.0, 0.0)


def test_no_objects_at_all(engine):
    for results in ([], [result(1, 1, [0, 0, 5, 5], 0.5)]):
        metrics = evaluate(truth(), results, engine)
        assert all(math.isnan(value) for value in metrics.numbers().values())
    assert all(math.isnan(v) for v in evaluate(truth(images=()), [], engine).numbers().values())
    assert evaluate(truth(categories=()), [], engine).class_ap == ()
    ground_truth = truth()
    del ground_truth["annotations"]
    assert math.isnan(evaluate(ground_truth, [], engine).AP)


def test_a_class_without_objects_does_not_count(engine):
    box = [0, 0, 40, 40]
    results = [result(1, 3, box, 0.9), result(1, 7, box, 0.9)]
    metrics = evaluate(truth((1, 7, box), categories=(7, 3)), results, engine)
    assert metrics.AP == pytest.approx(1.0)
    assert math.isnan(metrics.class_ap[0])  # category 3: in the order of the ids
    assert metrics.class_ap[1] == pytest.approx(1.0)


def test_an_object_with_id_0_is_found_and_equal_ids_do_not_matter(engine):
    box, other = [0, 0, 40, 40], [100, 0, 40, 40]
    ground_truth = truth((1, 1, box, {"id": 0}), (1, 1, other, {"id": 0}))
    metrics = evaluate(ground_truth, [result(1, 1, box, 0.9), result(1, 1, other, 0.8)], engine)
    assert metrics.AP == pytest.approx(1.0)


@pytest.mark.parametrize("wrong", [result(9, 1, [0, 0, 5, 5], 0.5), result(1, 9, [0, 0, 5, 5], 0.5)])
def test_a_result_for_an_unknown_image_or_category_is_refused(wrong):
    with pytest.raises(ValueError, match="which the ground truth doesn't have"):
        evaluate(truth(), [wrong])


def random_case(seed=0):
    rng = np.random.default_rng(seed)
    objects, results = [], []
    for image in range(1, 13):
        for _ in range(rng.integers(0, 9)):
            x, y, side = rng.uniform(0, 300), rng.uniform(0, 300), rng.uniform(8, 160)
            box = [x, y, side, side * rng.uniform(0.5, 2)]
            category = int(rng.integers(1, 4))
            area = {"area": box[2] * box[3], "iscrowd": int(rng.random() < 0.1)}
            objects.append((image, category, box, area | {"id": len(objects) + 1}))
            for _ in range(rng.integers(0, 3)):
                moved = (np.array(box) + rng.normal(0, side / 12, 4)).tolist()
                results.append(result(image, category, moved, float(rng.random())))
    ground_truth = truth(*objects, images=range(1, 13), categories=(1, 2, 3))
    for number, annotation in enumerate(ground_truth["annotations"], 1):
        annotation["id"] = number
    return ground_truth | {"info": {}}, results


def test_equals_the_reference_summary(engine, capsys):
    ground_truth, results = random_case()
    reference = COCO()
    reference.dataset = copy.deepcopy(ground_truth)
    reference.createIndex()
    evaluation = COCOeval(reference, reference.loadRes(copy.deepcopy(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    metrics = evaluate(ground_truth, results, engine)
    twelve = [value for name, value in metrics.numbers().items() if name != "AP90"]
    np.testing.assert_allclose(twelve, evaluation.stats, rtol=0, atol=1e-12)
    assert 0.1 < metrics.AP < 0.9
    assert np.mean(metrics.class_ap) == pytest.approx(metrics.AP)


def test_evaluation_prints_nothing_and_does_not_modify_its_input(capsys):
    ground_truth, results = random_case(1)
    before = copy.deepcopy((ground_truth, results))
    evaluate(ground_truth, results)
    assert (ground_truth, results) == before
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "")


def test_results_from_padded_detections():
    detections = Detections(
        boxes=np.array([[[1, 2, 11, 22], [5, 5, 6, 6]], [[0, 0, 4, 4], [0, 0, 0, 0]]], np.float32),
        scores=np.array([[0.5, 0.25], [0.75, 0]], np.float32),
        labels=np.array([[1, 0], [0, -1]], np.int32),
    )
    results = coco_results(zip(*detections[:3], strict=True), image_ids=np.array([7, 3]), category_ids=[10, 90])
    assert results == [
        {"image_id": 7, "category_id": 90, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.5},
        {"image_id": 7, "category_id": 10, "bbox": [5.0, 5.0, 1.0, 1.0], "score": 0.25},
        {"image_id": 3, "category_id": 10, "bbox": [0.0, 0.0, 4.0, 4.0], "score": 0.75},
    ]
    json.dumps(results)


def test_results_without_detections():
    assert coco_results([], [], [1]) == []
    assert coco_results([(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))], [1], [1]) == []


def test_invalid_results_are_refused():
    box, score, label = np.zeros((1, 4)), np.ones(1), np.zeros(1, int)
    with pytest.raises(ValueError, match="Image 5 has a detection whose box or score"):
        coco_results([(box, score * np.nan, label)], [5], [1])
    with pytest.raises(ValueError, match="Image 5: 1 boxes, 2 scores and 1 labels"):
        coco_results([(box, np.ones(2), label)], [5], [1])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        coco_results([(box, score, label)], [5, 6], [1])
    with pytest.raises(IndexError):
        coco_results([(box, score, label + 1)], [5], [1])


METRICS = CocoMetrics(
    AP=0.4236, AP50=0.6, AP75=0.5, AP90=0.125, APs=math.nan, APm=0.1, APl=1.0, AR1=0.2, AR10=0.3, AR100=0.4,
    ARs=math.nan, ARm=0.5, ARl=0.6, class_ap=(0.25, math.nan),
)  # fmt: skip


def test_json_has_none_in_place_of_nan():
    plain = METRICS.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (plain["AP"], plain["APs"], plain["class_ap"]) == (0.4236, None, [0.25, None])
    assert len(METRICS.numbers()) == 13  # COCO's twelve, and AP90


def test_the_table_has_all_metrics_and_classes():
    assert format_table(METRICS, ["cat", "Größe"]) == "\n".join(
        [
            "      AP    AP50    AP75    AP90     APs     APm     APl",
            "    42.4    60.0    50.0    12.5     n/a    10.0   100.0",
            "     AR1    AR10   AR100     ARs     ARm     ARl",
            "    20.0    30.0    40.0     n/a    50.0    60.0",
            "",
            "  cat      25.0",
            "  Größe     n/a",
        ]
    )


def test_written_results_are_read_back(tmp_path):
    results = [result(1, 1, [0.0, 1.5, 2.0, 3.0], 0.5)]
    write_results(results, tmp_path / "new" / "results.json")
    assert json.loads((tmp_path / "new" / "results.json").read_text(encoding="utf-8")) == results
