"""Differences, tables and inputs of comparisons (without PyTorch)."""

import numpy as np
import pytest

from tood_jax.tools.compare_torch.differences import (
    SINGLE,
    detection_differences,
    difference,
    gradient_differences,
    pair_up,
)
from tood_jax.tools.compare_torch.implementation import ImageDetections
from tood_jax.tools.compare_torch.inputs import example_batch, random_weights
from tood_jax.tools.compare_torch.tables import gradients_table, table


@pytest.mark.parametrize(
    ("own", "peer", "absolute", "relative"),
    [
        ([1.0, 2.0], [1.0, -4.0], 6.0, 1.5),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0),
        ([1e-9, 0.0], [0.0, 0.0], 1e-9, np.inf),
        ([1.0, np.nan], [1.0, np.nan], np.inf, np.inf),
        ([1.0], [1.0, 1.0], np.inf, np.inf),
        ([], [], 0.0, 0.0),
    ],
)
def test_difference(own, peer, absolute, relative):
    found = difference("maps", "x", np.array(own), np.array(peer), 1.0)
    assert (found.absolute, found.relative) == (absolute, relative)
    assert found.within == (relative <= 1.0)


def test_gradients_are_compared_one_by_one_and_together_and_frozen_ones_are_zero():
    own = {
        "a.weight": np.array([3.0, 4.0]),
        "b.bias": np.array([0.0]),
        "c.weight": np.array([1e-3]),
        "c.running_var": 1.0,
    }
    peer = {"a.weight": np.array([3.0, 4.5]), "b.bias": np.array([1.0])}
    found = gradient_differences("g", own, peer, SINGLE)
    assert [(one.name, one.within) for one in found] == [
        ("a.weight", True),
        ("b.bias", False),
        ("c.weight (frozen)", False),
        ("all together", False),
    ]
    np.testing.assert_allclose(
        [one.relative for one in found], [0.5 / np.hypot(3, 4.5), 1.0, np.inf, np.sqrt(1.25 / (9 + 20.25 + 1))]
    )


def found(*rows):
    """Detections of 10×10 pixels; each row is (label, score, left)."""
    boxes = np.array([[left, 0, left + 10, 10] for _, _, left in rows], float).reshape(-1, 4)
    return ImageDetections(
        boxes, np.array([score for _, score, _ in rows]), np.array([label for label, _, _ in rows], int)
    )


def test_pairs_have_one_label_and_near_boxes():
    own = found((1, 0.9, 0), (2, 0.8, 0), (1, 0.7, 50), (3, 0.6, 0))
    peer = found((2, 0.8, 0.1), (1, 0.8, 0), (1, 0.7, 70), (3, 0.6, 0))
    assert pair_up(own, peer) == [(0, 1), (1, 0), (2, None), (3, 3), (None, 2)]


@pytest.mark.parametrize(
    ("score", "limit", "missing"),
    [
        (0.3, 100, 1.0),
        (0.05 + 1e-6, 100, 0.0),  # at the threshold
        (0.2 + 1e-6, 2, 0.0),  # near the last one of a full list
        (0.2 + 1e-6, 100, 1.0),
    ],
)
def test_a_missing_detection_counts_unless_rounding_decides(score, limit, missing):
    own, peer = found((1, 0.9, 0), (1, score, 50)), found((1, 0.9, 0), (1, 0.2, 100))
    peer_missing = 0.0 if limit == 2 and abs(score - 0.2) < 1e-5 else 1.0  # the peer's second is missing too
    for a, b in ((own, peer), (peer, own)):
        only, scores, boxes = detection_differences(a, b, 0, 1e-4, floor=0.05, limit=limit)
        assert only.absolute == missing + peer_missing
        assert only.within == (missing + peer_missing == 0)
        assert scores.absolute == boxes.absolute == 0


def test_two_empty_lists_of_detections_are_equal():
    assert all(one.within for one in detection_differences(found(), found(), 0, 1e-4, floor=0.05, limit=100))


def test_tables_are_aligned_and_name_the_worst():
    assert table(("a", "bb"), [("xyz", "1")]) == "  a    bb\n  xyz   1"
    parts = [
        difference("g", f"neck.{name}.weight", np.array([x]), np.array([1.0]), 0.2)
        for name, x in (("a", 1.1), ("b", 2.0))
    ]
    text = gradients_table([*parts, difference("g", "neck.a.bias", np.ones(1), np.ones(1), 0.2)]).splitlines()
    assert [line.split() for line in text[1:]] == [
        ["neck.a", "2", "1.0e-01", "1.0e-01", "weight"],
        ["neck.b", "1", "1.0e+00", "1.0e+00", "weight", "<<<"],
    ]


def test_made_weights_follow_from_seed_and_name():
    shapes = {"a.weight": (4, 3, 3, 3), "b.weight": (4, 3, 3, 3), "backbone.layer2.0.bn3.weight": (5,), "x.scale": ()}
    first, again, other = random_weights(shapes, 0), random_weights(shapes, 0), random_weights(shapes, 1)
    for name, shape in shapes.items():
        assert first[name].shape == shape
        assert first[name].dtype == np.float32
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])
    assert not np.array_equal(first["a.weight"], first["b.weight"])
    assert np.abs(first["backbone.layer2.0.bn3.weight"] - 0.2).max() < 0.05


def test_made_batch():
    batch = example_batch(3, 64, 96, 7, seed=0)
    assert batch.images.shape == (3, 64, 96, 3)
    np.testing.assert_array_equal(batch.sizes, [[64, 96], [44, 67], [64, 96]])
    np.testing.assert_array_equal(batch.gt_mask.sum(axis=1), [5, 2, 0])
    boxes, sides = batch.gt_boxes[batch.gt_mask], np.repeat(batch.sizes, batch.gt_mask.sum(axis=1), axis=0)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= sides[:, ::-1]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 0.19 * sides[:, ::-1]).all()
    assert not batch.images[1, 44:].any()
    assert not batch.images[1, :, 67:].any()
    assert batch.gt_labels.max() < 7


def test_batch_of_files(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.full((50, 200, 3), 90, np.uint8))
    batch = example_batch(5, 64, 96, 7, seed=0, files=[str(tmp_path / "a.png")])
    np.testing.assert_array_equal(batch.sizes, [[24, 96]])
    np.testing.assert_allclose(batch.scales, [[0.48, 0.48]])
    assert (batch.images[0, :24] == 90).all()
    assert not batch.images[0, 24:].any()
