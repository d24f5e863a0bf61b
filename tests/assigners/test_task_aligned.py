"""Task-aligned assignment: golden numbers, an example by hand, and what must hold of any picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from tests.assigners import pictures
from tests.assigners.pictures import CELLS, SEEDS, M, N
from tests.golden_models import golden_ops
from tood_jax.assigners.task_aligned import alignment_metric, assign_task_aligned, assign_task_aligned_batch
from tood_jax.geometry.locations import make_pyramid


@functools.cache
def program(**options):
    return jax.jit(functools.partial(assign_task_aligned, **options))


def assign(one, **options):
    return jax.device_get(program(**options)(**one))


def picture(seed, objects=M):
    """This assigner doesn't ask for strides."""
    one = pictures.picture(seed, objects)
    del one["strides"]
    return one


def assert_equal(a, b):
    """The same objects, and the same numbers but for the last bits: another shape is another program, whose sums and
    products may be fused differently on another machine; t = s·u^6 multiplies a relative error of u by 6."""
    np.testing.assert_array_equal(a.gt_index, b.gt_index)
    assert a.rescued is None
    assert b.rescued is None
    for name, left, right in zip(a._fields[:4], a[:4], b[:4], strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(("topk", "alpha", "beta"), [(13, 1, 6), (9, 0.5, 2), (5, 1, 6)])
@pytest.mark.parametrize("chunk", [64, 4])
def test_equals_golden(topk, alpha, beta, chunk):
    ops, name = golden_ops(), f"tal_m{topk}_a{alpha}_b{beta}"
    found = program(topk=topk, alpha=float(alpha), beta=float(beta), chunk=chunk)(
        ops["pred_scores"],
        ops["pred_boxes"],
        make_pyramid(192, 256).points,
        np.ones(1024, bool),
        ops["gt_boxes"],
        ops["gt_labels"].astype(np.int32),
        np.ones(14, bool),
    )
    gt_index = ops[f"{name}.gt_index_1based"] - 1
    positive = gt_index >= 0
    assert positive.sum() > 10
    np.testing.assert_array_equal(found.gt_index, gt_index)
    np.testing.assert_allclose(found.metric, ops[f"{name}.metric"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.iou[positive], ops[f"{name}.iou"][positive], rtol=1e-5)


def test_metric_is_a_product_of_powers():
    score, iou = jnp.asarray([0.5, 0.25]), jnp.asarray([0.5, 1.0])
    np.testing.assert_allclose(alignment_metric(score, iou, 1.0, 6.0), [0.5 / 64, 0.25])
    np.testing.assert_allclose(alignment_metric(score, iou, 0.5, 2.0), [0.5**0.5 / 4, 0.5], rtol=1e-6)


def test_example_by_hand():
    """Two of the object's three best cells lie inside; a cell of higher metric outside takes up a place."""
    found = program(topk=3, beta=1.0)(
        scores=np.array([[0.8], [0.4], [0.9], [0.1], [0.0]], np.float32),
        boxes=np.array([[0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 8, 8]], np.float32),
        points=np.array([[2, 2], [4, 4], [9, 9], [6, 6], [1, 1]], np.float32),
        valid=np.ones(5, bool),
        gt_boxes=np.array([[0, 0, 8, 8]], np.float32),
        gt_labels=np.zeros(1, np.int32),
        gt_mask=np.ones(1, bool),
    )
    np.testing.assert_array_equal(found.gt_index, [0, 0, -1, -1, -1])
    np.testing.assert_allclose(found.metric, [0.8, 0.2, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found.iou, [1, 0.5, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found.soft_label, [1, 0.25, 0, 0, 0], rtol=1e-5)  # t / max t · max IoU


@given(SEEDS)
def test_assignment_properties(seed):
    one = picture(seed)
    found = assign(one)
    positive = found.gt_index >= 0
    assert (one["valid"] | ~positive).all()  # no cell outside `valid`
    assert one["gt_mask"][found.gt_index[positive]].all()  # no padded object
    assert np.bincount(found.gt_index[positive], minlength=M).max(initial=0) <= 13
    boxes = one["gt_boxes"][found.gt_index[positive]]
    points = CELLS.points[positive]
    assert ((points > boxes[:, :2]) & (points < boxes[:, 2:])).all()
    for value in (found.metric, found.iou, found.soft_label):
        assert ((value > 0) == positive).all()
        assert (value <= 1 + 1e-5).all()
    for i in np.unique(found.gt_index[positive]):  # each object's largest soft label is its largest IoU
        mine = found.gt_index == i
        largest = found.metric[mine].max()
        expected = found.iou[mine].max() * largest / (largest + 1e-7)
        np.testing.assert_allclose(found.soft_label[mine].max(), expected, rtol=1e-5)


@given(SEEDS)
def test_chunks_padding_and_order_change_nothing(seed):
    one = picture(seed)
    found = assign(one)
    for chunk in (1, 4):
        assert_equal(found, assign(one, chunk=chunk))

    padding = {"gt_boxes": [(0, 3), (0, 0)], "gt_labels": [(0, 3)], "gt_mask": [(0, 3)]}
    assert_equal(found, assign(one | {key: np.pad(one[key], width) for key, width in padding.items()}))

    order = np.random.default_rng(seed).permutation(M)
    permuted = assign(one | {key: one[key][order] for key in padding})
    gt_index = np.where(permuted.gt_index >= 0, order[permuted.gt_index], -1)
    assert_equal(found, permuted._replace(gt_index=gt_index))


def test_topk_is_clamped():
    one = picture(0)
    assert_equal(assign(one, topk=N), assign(one, topk=10 * N))


@pytest.mark.parametrize("objects", [0, M])
def test_no_objects(objects):
    one = picture(1, objects)
    found = assign(one | {"gt_mask": np.zeros(objects, bool)})
    assert (found.gt_index == -1).all()
    assert all((value == 0).all() for value in found[1:4])


def test_extreme_scores_and_boxes():
    """Scores of 0 claim nothing, scores of 1 are fine, boxes without area neither claim nor poison."""
    one = picture(2)
    one["gt_mask"][:] = True
    one["scores"] = (one["scores"] > 0.5).astype(np.float32)
    one["gt_boxes"][0, 2:] = one["gt_boxes"][0, :2]
    one["boxes"][:10, 2:] = one["boxes"][:10, :2]
    found = assign(one)
    assert all(np.isfinite(value).all() for value in found[:4])
    positive = np.flatnonzero(found.gt_index >= 0)
    assert len(positive)
    assert (found.gt_index[positive] != 0).all()
    assert (one["scores"][positive, one["gt_labels"][found.gt_index[positive]]] == 1).all()


def test_thousands_of_objects_need_memory_for_one_chunk():
    one = picture(3, 5000)
    small, large = (program(chunk=chunk).lower(**one).compile() for chunk in (32, 5000))
    assert small.memory_analysis().temp_size_in_bytes < large.memory_analysis().temp_size_in_bytes / 2
    assert (np.asarray(small(**one).gt_index) >= 0).any()


def test_no_gradient_flows():
    one = picture(4)

    def total(scores, boxes):
        return sum(x.sum() for x in assign_task_aligned(**one | {"scores": scores, "boxes": boxes})[1:4])

    one = jax.tree.map(jnp.asarray, one)
    gradients = jax.jit(jax.grad(total, (0, 1)))(one["scores"], one["boxes"])
    assert all((g == 0).all() for g in gradients)


def test_images_of_a_batch_are_independent():
    pictures = [picture(seed) for seed in (5, 6)]
    batched = {key: np.stack([one[key] for one in pictures]) for key in pictures[0]} | {"points": CELLS.points}
    found = jax.jit(assign_task_aligned_batch)(*batched.values())
    for i, one in enumerate(pictures):
        alone = assign(one)
        np.testing.assert_array_equal(found.gt_index[i], alone.gt_index)
        np.testing.assert_allclose(found.soft_label[i], alone.soft_label, rtol=1e-6)
