"""Four published models end to end against the golden files: features, predictions, detections, losses, gradients
and ten SGD steps of both phases. The largest deviations are printed, one line a model; docs/numerics.md has the limits.
"""

import jax
import numpy as np
import pytest

from tests.golden_models import (
    FCOS,
    NAMES,
    R50,
    R50_ANCHOR_BASED,
    RELU_ACCIDENTS,
    TIE_NUDGE,
    X101,
    X101_DCN,
    GoldenModel,
    golden_batch,
    picks,
)
from tood_jax.geometry.locations import make_pyramid
from tood_jax.training.optimizer import trained_mask

PHASES = ("atss", "tal", "atss_empty", "tal_empty")


_SLOW = {R50_ANCHOR_BASED, X101, X101_DCN}  # R50 stays with the quick tests; CI runs all four
_GOLDENS = [pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ()) for name in NAMES]


@pytest.fixture(scope="module", params=_GOLDENS)
def golden(request, optimized):
    model = GoldenModel(request.param)
    yield model
    found = ", ".join(f"{what} {deviation:.1e}" for what, deviation in model.deviations.items())
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{model.name}, largest deviations: {found}")


def nchw(array):
    return np.moveaxis(np.asarray(array), -1, 1)


def output_limit(golden) -> float:
    """The largest relative deviation of scores, boxes and detections; 28 deformable layers round more (1.8e-5 seen)."""
    return 3e-5 if golden.name == X101_DCN else 1e-5


def test_parameter_count(golden):
    count = sum(leaf.size for leaf in jax.tree.leaves(golden.variables["params"]))
    assert count == golden.numbers["n_param"]


def test_features(golden):
    _, c, p, _, _ = golden.forward
    levels = ["C2", "C3", "C4", "C5", "P3", "P4", "P5", "P6", "P7"]
    for level, features in zip(levels, (*c, *p), strict=True):
        features = nchw(features)
        assert features.shape == tuple(golden.numbers[f"{level}.shape"])
        golden.compare(f"features {level} pick", picks(features, 64), golden.numbers[f"{level}.pick"], 1e-5)
        mean_std = features.mean(dtype=np.float64), features.std(dtype=np.float64, ddof=1)
        golden.compare(f"features {level} mean and std", mean_std, golden.numbers[f"{level}.mean_std"], 1e-5)


def test_scores_and_boxes(golden):
    pred = golden.forward[0]
    cells = make_pyramid(128, 160)
    for i, (level, shape) in enumerate(zip(cells.level_slices, cells.shapes, strict=True)):
        for what, ours, key in (("scores", pred.scores, "cls"), ("boxes", pred.boxes, "box")):
            maps = nchw(ours[:, level].reshape(2, *shape, -1))
            golden.compare(f"{what} P{i + 3}", maps, golden.numbers[f"{key}.P{i + 3}"], output_limit(golden))


def test_detections(golden):
    detections = golden.forward[4]
    for i in range(2):
        np.testing.assert_array_equal(detections.labels[i], golden.numbers[f"det{i}.labels"])
        golden.compare(
            f"detections {i} boxes", detections.boxes[i], golden.numbers[f"det{i}.boxes"], output_limit(golden)
        )
        golden.compare(
            f"detections {i} scores", detections.scores[i], golden.numbers[f"det{i}.scores"], output_limit(golden)
        )


@pytest.mark.parametrize("phase", PHASES)
def test_losses(golden, phase):
    (total, losses), _ = golden.learn(phase)
    golden.compare(f"losses {phase} cls", losses.cls, golden.numbers[f"{phase}.loss_cls"], 1e-4)
    golden.compare(f"losses {phase} box", losses.box, golden.numbers[f"{phase}.loss_bbox"], 1e-4)
    golden.compare(f"losses {phase} total", total, golden.numbers[f"{phase}.total"], 1e-4)


@pytest.mark.parametrize("phase", ["atss", "tal"])
def test_gradients(golden, phase):
    """Every trained parameter: the norm, and elements relative to the norm."""
    gradients = golden.gradients(phase)
    names = [key.split(".grad.")[1] for key in golden.numbers if key.startswith(f"{phase}.grad.")]
    assert len(names) > 150
    for name in names:
        ours, numbers = gradients[name], golden.numbers[f"{phase}.grad.{name}"]
        row = np.concatenate([[np.linalg.norm(ours.astype(np.float64))], picks(ours, 8)])
        # Biases of offsets: sums over all locations of terms that nearly cancel; their norm is a two-hundredth of that
        # of the weights beside them. 1.9e-3 seen on one processor, 4.0e-3 on another, there by two versions of this
        # code alike; of the other gradients of the 28 deformable layers 1.04e-3.
        limit = 1e-2 if name.endswith("conv_offset.bias") else 2e-3 if golden.name == X101_DCN else 1e-3
        golden.compare(f"gradients {phase} {name}", row, numbers, limit, scale=numbers[0])
    for name in gradients.keys() - set(names):  # frozen, or running statistics
        frozen = name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))
        assert frozen or "running" in name, f"{name} has no golden gradient"
        assert "running" in name or not gradients[name].any(), f"{name} is frozen and has a gradient"


_TRAJECTORY_LIMITS = {  # phase → step, counted from 1 → largest relative deviation of the two losses
    "atss": {1: 1e-3, 2: 1e-3, 3: 1e-3, 10: 0.05},
    "tal": {1: 1e-3, 2: 1e-3, 3: 5e-3, 4: 0.03, 5: 0.2, 10: 0.5},
}
# 28 deformable layers, whose gradients have a step wherever a sample crosses a cell: 19 % seen at the tenth step of the
# warm-up, 14 % at the third of the task-aligned phase, of which later steps would say nothing. Already the second step
# of that phase depends on the processor: 2e-3 seen on one, 1.23e-2 on another, there by two versions of this code
# alike.
_TRAJECTORY_LIMITS_DEFORMABLE = {"atss": {1: 1e-3, 2: 2e-3, 3: 0.01, 10: 0.5}, "tal": {1: 1e-3, 2: 0.03}}


@pytest.mark.parametrize("phase", ["atss", "tal"])
@pytest.mark.parametrize("golden", _GOLDENS, indirect=True)
def test_trajectory(golden, phase):
    """Ten SGD steps. The assignment is discrete, so rounding grows from step to step: the first two are held to 1e-3.

    So is the third of the warm-up; of the other phase it is held to 5e-3, for rounding decides ReLUs at zero of the
    second, as in RELU_ACCIDENTS (2.4e-3 seen). The tenth of the warm-up is held to 5 %. In the task-aligned phase a
    difference grows about threefold a step, and our own runs in float32 and float64 are 20 % apart at the tenth
    (reports/2026-11/numerics.md), as are two processors: the fourth step is held to 3 %, the fifth to 20 % (12 % off
    where rounding puts another cell on the other side at the third), and the tenth to a half, which only says that
    training goes the same way.
    """
    limits = _TRAJECTORY_LIMITS_DEFORMABLE if golden.name == X101_DCN else _TRAJECTORY_LIMITS
    rows, params = golden.trajectory(phase, max(limits[phase]))
    for step, limit in limits[phase].items():
        what = f"{phase}_{'steps_1-2' if step <= 2 else f'step_{step}'}"
        golden.compare(what, rows[step - 1] / golden.numbers[f"traj_{phase}"][step - 1], [1, 1], limit)
    start = golden.nudged_params(phase)
    for trained, before, after in zip(
        jax.tree.leaves(trained_mask(start, golden.config)),
        jax.tree.leaves(start),
        jax.tree.leaves(params),
        strict=True,
    ):
        assert np.array_equal(before, after) != trained  # frozen ones stay, to the bit; all others move


def test_atss_has_a_tie_where_it_is_nudged():
    """The 9th and 10th nearest cells of P3 are equally far from both objects, to the last bit, until nudged."""
    cells, boxes = make_pyramid(128, 160), golden_batch().gt_boxes
    points = cells.points[cells.level_slices[0]]

    def ninth_and_tenth(box):
        return np.sort(np.linalg.norm(points - (box[:2] + box[2:]) / 2, axis=1))[8:10]

    for i in (3, 4):
        ninth, tenth = ninth_and_tenth(boxes[0, i])
        assert ninth == tenth
        ninth, tenth = ninth_and_tenth(boxes[0, i] + TIE_NUDGE[0, i])
        assert ninth < tenth


@pytest.mark.parametrize(
    "golden", [R50, *(pytest.param(name, marks=pytest.mark.slow) for name in (FCOS, X101, X101_DCN))], indirect=True
)
def test_a_relu_is_at_zero_where_it_is_nudged(golden):
    for accident in RELU_ACCIDENTS[golden.name]:
        before = golden.before_relu(accident)[accident.level]
        assert abs(before[(*accident.cell, accident.channel)]) < 2e-5
        assert np.abs(before).max() > 3
