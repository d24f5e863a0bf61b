"""The PyTorch reference equals mmdetection's numbers (tests/goldens/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.goldens.weights import image_batch, named_array
from tood_jax.tools.compare_torch.torch_reference.assigners import Objects
from tood_jax.tools.compare_torch.torch_reference.boxes import locations_in_image
from tood_jax.tools.compare_torch.torch_reference.deformable import deformable_convolution, sample_sides
from tood_jax.tools.compare_torch.torch_reference.detect import detect, nms
from tood_jax.tools.compare_torch.torch_reference.detector import TOOD, Architecture, flatten_levels
from tood_jax.tools.compare_torch.torch_reference.losses import Hyperparameters, detection_losses

pytestmark = pytest.mark.torch

GOLDENS = Path(__file__).resolve().parents[2] / "goldens"
OPS = np.load(GOLDENS / "ops.npz")
X101 = Architecture(depth=101, groups=64, width_per_group=4)
MODELS = {
    "tood_r50_fpn_1x_coco": Architecture(),
    "tood_r50_fpn_anchor-based_1x_coco": Architecture(anchor_based=True),
    "tood_x101-64x4d_fpn_ms-2x_coco": X101,
}
MANIFESTS = MODELS | {
    "tood_r101_fpn_ms-2x_coco": Architecture(depth=101),
    "tood_r101-dconv-c3-c5_fpn_ms-2x_coco": Architecture(depth=101, deformable_stages=(2, 3, 4), deformable_convs=2),
    "tood_x101-64x4d-dconv-c4-c5_fpn_ms-2x_coco": X101._replace(deformable_stages=(3, 4), deformable_convs=2),
}
SIZES = [(128, 160), (120, 136)]
OBJECTS = [
    Objects(
        torch.tensor(
            [[8, 12, 70, 90], [60, 30, 150, 120], [100.5, 5.25, 140.75, 40.5], [20, 70, 44, 100], [62, 34, 148, 118]]
        ),
        torch.tensor([0, 17, 79, 17, 3]),
    ),
    Objects(torch.tensor([[4.0, 4, 60, 60], [30, 40, 130, 116]]), torch.tensor([55, 2])),
]
# Pre-activations of a few 1e-6 in the task-aligned gradients: their sign, and so their ReLU's gradient, was decided by
# the order of summation. (interactive convolution, level, image, channel, row, column), and what off the channel's bias
# brings it to the side where mmdetection had it.
RELU_NUDGES = {
    "tood_r50_fpn_1x_coco": ((5, 1, 0, 123, 7, 3), -2.5e-5),
    "tood_x101-64x4d_fpn_ms-2x_coco": ((1, 0, 0, 244, 5, 14), 1.2e-5),
}
NO_OBJECTS = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


def manifest(name):
    return {key: tuple(shape) for key, shape in json.loads((GOLDENS / f"{name}.manifest.json").read_text()).items()}


@pytest.mark.parametrize("name", MANIFESTS)
def test_names_and_shapes_are_those_of_the_published_checkpoint(name):
    with torch.device("meta"):
        model = TOOD(MANIFESTS[name])
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == manifest(name)


@pytest.fixture(scope="module", params=MODELS)
def golden(request):
    """(model, its maps on the golden images, golden numbers, name)."""
    with torch.device("meta"):
        model = TOOD(MODELS[request.param]).to_empty(device="cpu")
    arrays = {
        key: np.zeros((), np.int64) if key.endswith("num_batches_tracked") else named_array(key, shape)
        for key, shape in manifest(request.param).items()
    }
    model.load_state_dict({key: torch.from_numpy(np.asarray(array)) for key, array in arrays.items()})
    maps = model(torch.from_numpy(image_batch(128, 160, SIZES)))
    return model, maps, np.load(GOLDENS / f"{request.param}.npz"), request.param


def deviation(found, golden, scale=None):
    found, golden = np.asarray(found, np.float64), np.asarray(golden, np.float64)
    assert found.shape == golden.shape
    return np.abs(found - golden).max() / max(np.abs(golden).max() if scale is None else scale, 1e-12)


def sample_values(array, count):
    array = array.detach().flatten()
    return array[np.linspace(0, len(array) - 1, min(count, len(array))).astype(np.int64)].numpy()


def test_maps(golden):
    _, maps, numbers, _ = golden
    for name, features in zip(("C2", "C3", "C4", "C5", "P3", "P4", "P5", "P6", "P7"), maps.c + maps.p, strict=True):
        assert deviation(sample_values(features, 64), numbers[f"{name}.pick"]) < 1e-5
    for level, (scores, boxes) in enumerate(maps.head, start=3):
        assert deviation(scores.detach(), numbers[f"cls.P{level}"]) < 1e-5
        assert deviation(boxes.detach(), numbers[f"box.P{level}"]) < 1e-5


def test_detections(golden):
    _, maps, numbers, _ = golden
    pred, locations = flatten_levels(maps)
    for i, size in enumerate(SIZES):
        valid = locations_in_image(locations, *size)
        found = detect(pred.scores[i].detach(), pred.boxes[i].detach(), locations, valid, (0.8, 0.8))
        np.testing.assert_array_equal(found.labels, numbers[f"det{i}.labels"])
        assert deviation(found.scores, numbers[f"det{i}.scores"]) < 1e-5
        assert deviation(found.boxes, numbers[f"det{i}.boxes"]) < 1e-5


@pytest.mark.parametrize("phase", ["atss", "tal", "atss_empty", "tal_empty"])
def test_losses_and_gradients(golden, phase):
    """torch.topk breaks ATSS's tie as in mmdetection, so no box is changed here (tests/goldens/README.md)."""
    model, maps, numbers, name = golden
    if phase == "tal" and name in RELU_NUDGES:
        ((layer, *_, channel, _, _), nudge) = RELU_NUDGES[name]
        bias = model.bbox_head.inter_convs[layer].gn.bias
        with torch.no_grad():
            bias[channel] += nudge
        maps = model(torch.from_numpy(image_batch(128, 160, SIZES)))
        with torch.no_grad():
            bias[channel] -= nudge
    pred, locations = flatten_levels(maps)
    objects = [OBJECTS[0], NO_OBJECTS] if phase.endswith("_empty") else OBJECTS
    losses = detection_losses(
        pred, locations, SIZES, objects, in_tal_phase=phase.startswith("tal"), hyperparameters=Hyperparameters()
    )
    assert deviation(losses.cls.detach(), numbers[f"{phase}.loss_cls"]) < 1e-4
    assert deviation(losses.box.detach(), numbers[f"{phase}.loss_bbox"]) < 1e-4
    names = [key.split(".grad.")[1] for key in numbers if key.startswith(f"{phase}.grad.")]
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert not names or set(names) == set(trained)
    if names:
        total = losses.cls.sum() + losses.box.sum()
        gradients = torch.autograd.grad(total, [trained[name] for name in names], retain_graph=True)
        for name, gradient in zip(names, gradients, strict=True):
            row = [float(gradient.double().norm()), *sample_values(gradient, 8)]
            number = numbers[f"{phase}.grad.{name}"]
            assert deviation(row, number, number[0]) < 1e-3, name


@pytest.mark.parametrize("golden", RELU_NUDGES, indirect=True)
def test_a_relu_is_at_zero_where_it_is_nudged(golden):
    model, maps, _, name = golden
    (layer, level, *place), nudge = RELU_NUDGES[name]
    x = maps.p[level]
    with torch.no_grad():
        for block in model.bbox_head.inter_convs[:layer]:
            x = block(x)
        block = model.bbox_head.inter_convs[layer]
        before = block.gn(block.conv(x))
    value = float(before[tuple(place)])
    assert abs(value) < 1e-5  # on which side of 0 depends on the processor
    assert nudge * (value + nudge) > 0
    assert before.abs().max() > 3


@pytest.mark.parametrize("case", ["s1_dg1", "s2_dg1", "s1_dg4", "s1_dg1_g4"])
def test_deformable_convolution(case):
    inputs = [torch.from_numpy(OPS[f"dcn_{case}.{key}"]).requires_grad_() for key in ("x", "offset", "mask", "weight")]
    stride, groups = (2 if "s2" in case else 1), (4 if "_g4" in case else 1)
    out = deformable_convolution(*inputs, stride=stride, groups=groups)
    out = out + torch.from_numpy(OPS[f"dcn_{case}.bias"])[:, None, None]
    assert deviation(out.detach(), OPS[f"dcn_{case}.out"]) < 1e-5
    gradients = torch.autograd.grad(out, inputs, torch.from_numpy(OPS[f"dcn_{case}.cotangent"]))
    for key, gradient in zip(("x", "offset", "mask", "weight"), gradients, strict=True):
        assert deviation(gradient, OPS[f"dcn_{case}.grad_{key}"]) < 1e-5


def test_side_sampling():
    inputs = [torch.from_numpy(OPS[f"side_sampling.{key}"]).requires_grad_() for key in ("feature", "offset")]
    out = sample_sides(*inputs)
    assert deviation(out.detach(), OPS["side_sampling.out"]) < 1e-5
    gradients = torch.autograd.grad(out, inputs, torch.from_numpy(OPS["side_sampling.cotangent"]))
    for key, gradient in zip(("feature", "offset"), gradients, strict=True):
        assert deviation(gradient, OPS[f"side_sampling.grad_{key}"]) < 1e-5


@pytest.mark.parametrize("threshold", ["0.5", "0.6"])
def test_nms(threshold):
    boxes, scores, labels = (torch.from_numpy(OPS[f"nms.{key}"]) for key in ("boxes", "scores", "labels"))
    np.testing.assert_array_equal(nms(boxes, scores, labels, float(threshold)), OPS[f"nms_{threshold}.keep"])
