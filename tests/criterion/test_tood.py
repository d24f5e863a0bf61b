"""TOOD's targets and losses on made-up predictions, and its detections: phases, masks, empty and extreme cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import random_batch, tiny_config
from tood_jax.config import AssignerConfig, Config, DetectConfig
from tood_jax.criterion.losses import detection_losses, losses_and_targets
from tood_jax.geometry.locations import make_pyramid
from tood_jax.models.build import build_model
from tood_jax.models.detector import canvas_pyramid, detections, normalize_images
from tood_jax.ops.geometric_mean import sigmoid_geometric_mean
from tood_jax.types import Predictions

CELLS = make_pyramid(64, 64)
N, C = len(CELLS.points), 4
PHASES = pytest.mark.parametrize("aligned", [False, True])


@jax.jit
def learn(pred, batch, aligned):
    """Losses and their gradients to the predictions; one program for both phases."""

    def total(pred):
        losses = detection_losses(pred, batch, aligned, Config())
        return losses.total, losses

    gradients, losses = jax.grad(total, has_aux=True)(pred)
    return losses, gradients


def predictions(batch_size, seed=0):
    rng = np.random.default_rng(seed)
    points = CELLS.points / CELLS.strides[:, None]
    boxes = np.concatenate(
        [points - rng.uniform(0.2, 3, (batch_size, N, 2)), points + rng.uniform(0.2, 3, (batch_size, N, 2))], -1
    )
    scores = rng.uniform(0.001, 0.6, (batch_size, N, C))
    return Predictions(jnp.asarray(scores, jnp.float32), jnp.asarray(boxes, jnp.float32))


def assert_all_finite(tree):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@PHASES
def test_losses_are_finite_positive_and_learn(aligned):
    batch, pred = random_batch(3), predictions(3)
    losses, gradients = learn(pred, batch, aligned)
    assert losses.cls.shape == losses.box.shape == (5,)
    assert float(losses.cls.sum()) > 0
    assert float(losses.box.sum()) > 0
    assert_all_finite((losses, gradients))
    better = jax.tree.map(lambda p, g: p - 0.01 * g, pred, gradients)
    assert float(learn(better, batch, aligned)[0].total) < float(losses.total)


def test_a_cell_by_hand():
    """One object, one cell that fits it exactly: its terms can be written down."""
    batch = jax.tree.map(lambda x: x[:1], random_batch(2))
    gt_boxes = np.zeros_like(batch.gt_boxes)
    gt_boxes[0, 0] = [14, 14, 34, 34]  # holds the points of P3 at 16, 24, 32 and of P4 at 16, 32
    batch = batch._replace(
        gt_boxes=gt_boxes, gt_labels=np.full_like(batch.gt_labels, 2), gt_mask=np.array([[True, False, False, False]])
    )
    cell = CELLS.level_slices[0].start + 3 * 8 + 3  # the point (24, 24)
    scores = np.zeros((1, N, C), np.float32)
    scores[0, cell, 2], scores[0, 0, 1] = 0.5, 0.25
    boxes = np.tile(np.array([100, 100, 101, 101], np.float32), (1, N, 1))
    boxes[0, cell] = np.array([14, 14, 34, 24]) / 8  # half the object: IoU = GIoU = 1/2
    losses, _ = learn(Predictions(jnp.asarray(scores), jnp.asarray(boxes)), batch, True)
    # t̂ = 1/2 = the score, so that its QFL is 0; the background score of 1/4 costs p²·(−log(1 − p)); both sums are < 1
    np.testing.assert_allclose(losses.cls, [0.0625 * -np.log(0.75), 0, 0, 0, 0], rtol=1e-4)
    np.testing.assert_allclose(losses.box, [2 * (1 - 0.5) * 0.5, 0, 0, 0, 0], rtol=1e-4)


@PHASES
def test_a_batch_without_objects(aligned):
    batch = random_batch(3)
    empty = batch._replace(gt_mask=np.zeros_like(batch.gt_mask))
    losses, gradients = learn(predictions(3), empty, aligned)
    assert not losses.box.any()
    assert not gradients.boxes.any()
    assert (gradients.scores > 0).all()  # every score is background
    assert_all_finite(losses)
    none = empty._replace(
        gt_boxes=empty.gt_boxes[:, :0], gt_labels=empty.gt_labels[:, :0], gt_mask=empty.gt_mask[:, :0]
    )
    jax.tree.map(np.testing.assert_array_equal, learn(predictions(3), none, aligned), (losses, gradients))


@PHASES
def test_padded_objects_and_rows_change_nothing(aligned):
    """The masked batch equals its subset: padding objects are nothing, and a row whose image has no area is nothing."""
    batch, pred = random_batch(3), predictions(3)
    losses, gradients = learn(pred, batch, aligned)

    garbage = np.where(batch.gt_mask[..., None], batch.gt_boxes, np.float32([0, 0, 60, 60]))
    masked, masked_gradients = learn(pred, batch._replace(gt_boxes=garbage), aligned)
    jax.tree.map(np.testing.assert_array_equal, (losses, gradients), (masked, masked_gradients))

    longer = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), batch)
    longer.sizes[-1] = 0
    longer.gt_mask[-1] = False
    long, long_gradients = learn(jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), pred), longer, aligned)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8), losses, long)
    assert not any(leaf[-1].any() for leaf in jax.tree.leaves(long_gradients))


@PHASES
def test_images_are_assigned_independently(aligned):
    """Another image in the batch changes an image's gradients by a common factor (the normalisers) and no more."""
    batch, pred = random_batch(3), predictions(3)
    other = predictions(3, seed=1)
    changed = jax.tree.map(lambda a, b: a.at[1].set(b[1]), pred, other)
    _, before = learn(pred, batch, aligned)
    _, after = learn(changed, batch, aligned)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        a, b = np.asarray(a[0]), np.asarray(b[0])
        np.testing.assert_allclose(a / np.linalg.norm(a), b / np.linalg.norm(b), atol=1e-6)


@PHASES
def test_cells_beyond_the_image_count_for_nothing(aligned):
    batch, pred = random_batch(3), predictions(3)
    batch = batch._replace(sizes=np.array([[64, 64], [30, 64], [64, 64]], np.int32))  # 30 rows are padded to 32
    losses, gradients = learn(pred, batch, aligned)
    beyond = CELLS.points[:, 1] >= 32
    assert beyond.any()
    assert not gradients.scores[1, beyond].any()
    assert gradients.scores[1, ~beyond].all()
    assert gradients.scores[0, beyond].all()
    assert_all_finite(losses)


@jax.jit
def learn_from_logits(logits, alignment, boxes, batch, aligned):
    """The total loss and its gradients to logits, alignment and boxes."""

    def total(logits, alignment, boxes):
        pred = Predictions(sigmoid_geometric_mean(logits, alignment), boxes)
        return detection_losses(pred, batch, aligned, Config()).total

    return jax.value_and_grad(total, (0, 1, 2))(logits, alignment, boxes)


@PHASES
def test_extreme_logits_stay_finite(aligned):
    """Logits of ±50, whose scores are 0 and 1 in float32, and boxes of no and of enormous size."""
    rng = np.random.default_rng(0)
    logits = rng.choice(np.float32([-50, 50]), (3, N, C))
    alignment = rng.choice(np.float32([-50, 50]), (3, N, 1))
    boxes = np.asarray(predictions(3).boxes) * rng.choice(np.float32([0, 1, 1e4]), (3, N, 1))
    assert_all_finite(learn_from_logits(logits, alignment, boxes, random_batch(3), aligned))


@functools.cache
def program_with_rescue(rescue_iou):
    config = Config(assigner=AssignerConfig(rescue_iou=rescue_iou))

    def total(pred, batch, aligned):
        losses, summary = losses_and_targets(pred, batch, aligned, config)
        return losses.total, (losses, summary)

    return jax.jit(jax.grad(total, has_aux=True))


def with_raw(pred, batch_size):
    """Predictions whose boxes come from raw numbers: nothing here reads more of these than the loss of lost objects."""
    return pred._replace(box_logits=jnp.full((batch_size, N, 4), 9.0))


@PHASES
def test_rescue_changes_nothing_while_every_object_has_a_good_prediction(aligned):
    batch = random_batch(3)
    boxes = np.array(predictions(3).boxes)
    for image, object_ in zip(*np.nonzero(batch.gt_mask), strict=True):  # one location inside predicts it well
        box = batch.gt_boxes[image, object_]
        inside = ((CELLS.points > box[:2] + 1) & (CELLS.points < box[2:] - 1)).all(axis=1)
        cell = np.flatnonzero(inside)[object_]
        boxes[image, cell] = box / CELLS.strides[cell]
    pred = with_raw(predictions(3)._replace(boxes=jnp.asarray(boxes)), 3)
    with_rescue, without = (program_with_rescue(bound)(pred, batch, aligned) for bound in (0.1, 0.0))
    assert with_rescue[1][1].rescued == 0
    equal = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-8)  # two programs: but for the last bits
    jax.tree.map(equal, with_rescue, without)


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_collapsed_boxes_teach_nothing_unless_their_objects_are_rescued(size):
    """The absorbing state, and the way out: without a rescue no gradient reaches the boxes, with it every object's."""
    batch = random_batch(3)
    points = CELLS.points / CELLS.strides[:, None]
    boxes = np.tile(np.concatenate([points - size, points + size], axis=1).astype(np.float32), (3, 1, 1))
    pred = with_raw(predictions(3)._replace(boxes=jnp.asarray(boxes)), 3)

    gradients, (losses, summary) = program_with_rescue(0.0)(pred, batch, True)
    assert losses.box.sum() < 1e-6
    assert summary.target_sum < 1e-3
    assert np.abs(gradients.boxes).max() < 1e-6
    assert not gradients.box_logits.any()

    gradients, (losses, summary) = program_with_rescue(0.1)(pred, batch, True)
    assert summary.rescued == summary.objects == batch.gt_mask.sum()
    assert summary.target_sum > 1
    assert losses.box.sum() > 0.1
    assert_all_finite(gradients)
    assert (np.abs(gradients.box_logits).max(axis=(1, 2)) > 1e-3).tolist() == batch.gt_mask.any(axis=1).tolist()


@PHASES
def test_the_summary_adds_up_what_is_learnt(aligned):
    batch, pred = random_batch(3), predictions(3)
    _, (losses, summary) = program_with_rescue(0.0)(pred, batch, aligned)
    assert summary.objects == batch.gt_mask.sum()
    assert summary.positives.sum() > 0
    assert ((summary.positives > 0) == (losses.box > 0)).all()
    assert 0 < summary.iou_sum <= summary.positives.sum()
    if aligned:
        assert 0 < summary.target_sum < summary.iou_sum
    else:
        assert summary.target_sum == summary.positives.sum()


def test_normalisation_leaves_the_padding_zero():
    images = np.full((2, 4, 6, 3), 100, np.uint8)
    sizes = np.array([[4, 6], [2, 3]], np.int32)
    x = normalize_images(jnp.asarray(images), jnp.asarray(sizes), (100.0, 90.0, 0.0), (1.0, 5.0, 50.0))
    np.testing.assert_allclose(x[0], np.broadcast_to([0.0, 2.0, 2.0], (4, 6, 3)), rtol=1e-6)
    np.testing.assert_allclose(x[1, :2, :3], np.broadcast_to([0.0, 2.0, 2.0], (2, 3, 3)), rtol=1e-6)
    assert not x[1, 2:].any()
    assert not x[1, :, 3:].any()


def test_canvas_pyramid_reads_height_before_width():
    batch = random_batch(1)._replace(images=np.zeros((1, 64, 96, 3), np.uint8))
    assert canvas_pyramid(batch).shapes[0] == (8, 12)


def test_detections_come_from_valid_cells_in_original_pixels():
    batch, pred = random_batch(2), predictions(2)
    batch = batch._replace(sizes=np.array([[64, 64], [30, 64]], np.int32), scales=np.full((2, 2), 0.5, np.float32))
    config = Config(detect=DetectConfig(max_detections=20))
    found = jax.jit(lambda pred, batch: detections(pred, batch, config))(pred, batch)
    assert (found.scores > 0).all()
    boxes = np.asarray(pred.boxes * CELLS.strides[:, None]) * 2
    for i in range(2):
        for box, score, label in zip(found.boxes[i], found.scores[i], found.labels[i], strict=True):
            cells = np.flatnonzero(np.asarray(pred.scores)[i, :, int(label)] == float(score))
            assert any(np.allclose(boxes[i, cell], box) for cell in cells)
            if i == 1:
                assert (CELLS.points[cells, 1] < 32).any()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_network_gives_every_cell_a_prediction_in_float32(tmp_path, precision):
    model = build_model(tiny_config(tmp_path, tmp_path, precision=precision), C)
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    pred, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    cells = len(make_pyramid(64, 96).points)
    assert (pred.scores.shape, pred.boxes.shape) == ((2, cells, C), (2, cells, 4))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((pred, variables)))
