"""The models, inputs and ground truth of the golden files (tests/goldens/README.md), with their compiled functions.

Axes: B = 2 images · H, W = 128, 160 pixels · M = 6 padded objects · N cells · C = 80 classes.
"""

import copy
import dataclasses
import json
import operator
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.goldens.weights import image_batch, named_array
from tood_jax.config import BackboneConfig, Config, HeadConfig
from tood_jax.config.files import load_config
from tood_jax.criterion.losses import detection_losses, loss_parts
from tood_jax.models.build import build_model
from tood_jax.models.detector import detections
from tood_jax.ops.group_norm import group_norm
from tood_jax.training.optimizer import make_optimizer
from tood_jax.types import Batch
from tood_jax.weights.mapping import export_state_dict, import_state_dict
from tood_jax.weights.naming import is_ignored

FOLDER = Path(__file__).parent / "goldens"
R50, R50_ANCHOR_BASED, X101, X101_DCN = NAMES = (
    "tood_r50_fpn_1x_coco",
    "tood_r50_fpn_anchor-based_1x_coco",
    "tood_x101-64x4d_fpn_ms-2x_coco",
    "tood_x101-64x4d-dconv-c4-c5_fpn_ms-2x_coco",
)
FCOS, GFL = "fcos_r50_fpn_gn_head_center", "gfl_r50_fpn_1x_coco"
RIVALS = {  # golden file → config in configs/rivals
    "atss_r50_fpn_1x_coco": "atss_r50_fpn_1x_coco",
    GFL: "gfl_r50_fpn_1x_coco",
    "retinanet_r50_fpn_1x_coco": "retinanet_r50_fpn_1x_coco",
    FCOS: "fcos_r50_fpn_1x_coco",
    "fovea_r50_fpn_4xb4-1x_coco": "fovea_r50_fpn_1x_coco",
}
NUM_CLASSES = 80
AS_USERS = {"xla_cpu_use_fusion_emitters": True}  # which conftest.py switches off, to compile quicker

# Image 0, objects 3 and 4: two cells lie at exactly equal distance at the 9th place of ATSS; torch.topk's choice among
# equals is an accident of its selection. 1e-4 px towards the cell it took decides it for everybody.
TIE_NUDGE = np.zeros((2, 6, 4), np.float32)
TIE_NUDGE[0, 3] = [1e-4, 0, 1e-4, 0]
TIE_NUDGE[0, 4] = [0, -1e-4, 0, -1e-4]


class ReluAccident(NamedTuple):
    """A pre-activation amid values of size 4–10 so near 0 that rounding decides its sign, and so its ReLU's gradient.

    `nudge` on the bias of its channel puts it where torch has it.
    """

    phase: str
    layer: tuple[str, ...]
    level: int
    cell: tuple[int, int, int]  # image, row, column
    channel: int
    nudge: float


RELU_ACCIDENTS = {
    R50: (
        ReluAccident("tal", ("head", "inter_5_norm"), 1, (0, 7, 3), 123, -2.5e-5),
        ReluAccident("tal", ("head", "align", "cls_alignment_0"), 0, (1, 6, 14), 40, -2e-5),
    ),
    X101: (ReluAccident("tal", ("head", "inter_1_norm"), 0, (0, 5, 14), 244, 1.2e-5),),
    X101_DCN: tuple(
        ReluAccident(phase, layer, 0, cell, channel, nudge)
        for phase in ("atss", "tal")
        for layer, cell, channel, nudge in (
            (("head", "inter_0_norm"), (1, 8, 6), 128, 2.5e-5),
            (("backbone", "layer3_7", "norm2"), (0, 6, 1), 297, -4e-6),
        )
    ),
    FCOS: (ReluAccident("atss", ("head", "reg_tower", "conv_2_norm"), 0, (0, 10, 11), 91, 4e-6),),
}


def _convolution_of(layer: tuple[str, ...]) -> tuple[str, ...] | None:
    """The interactive convolution before a norm of T-head; None for other layers."""
    scope, name = layer[:-1], layer[-1]
    return (*scope, name.removesuffix("_norm")) if scope == ("head",) and name.startswith("inter_") else None


def _file(name: str) -> Path:
    file = FOLDER / name
    return file if file.exists() else FOLDER / "rivals" / name


def golden_config(name: str) -> Config:
    """The config of a published model's architecture."""
    if name in RIVALS:
        return load_config(str(FOLDER.parents[1] / "configs" / "rivals" / f"{RIVALS[name]}.py"))
    config = Config(name=name)
    if name == R50_ANCHOR_BASED:
        return dataclasses.replace(config, head=HeadConfig(box_coding="anchor_deltas"))
    if name == X101:
        return dataclasses.replace(config, backbone=BackboneConfig(depth=101, groups=64, width_per_group=4))
    if name == X101_DCN:
        backbone = BackboneConfig(depth=101, groups=64, width_per_group=4, deformable_stages=(3, 4))
        return dataclasses.replace(config, backbone=backbone, head=HeadConfig(deformable_convs=2))
    return config


def golden_manifest(name: str) -> dict[str, tuple[int, ...]]:
    """PyTorch name → shape of every tensor of a published checkpoint, but constants and counters."""
    manifest = json.loads(_file(f"{name}.manifest.json").read_text())
    return {key: tuple(shape) for key, shape in manifest.items() if not is_ignored(key)}


def golden_ops():
    """ops.npz."""
    return np.load(FOLDER / "ops.npz")


def golden_batch() -> Batch:
    """Ground truth of both images; the images themselves are given to the model already normalised."""
    boxes, labels, mask = np.zeros((2, 6, 4), np.float32), np.zeros((2, 6), np.int32), np.zeros((2, 6), bool)
    boxes[0, :5] = [
        [8, 12, 70, 90],
        [60, 30, 150, 120],
        [100.5, 5.25, 140.75, 40.5],
        [20, 70, 44, 100],
        [62, 34, 148, 118],
    ]
    labels[0, :5], mask[0, :5] = [0, 17, 79, 17, 3], True
    boxes[1, :2], labels[1, :2], mask[1, :2] = [[4, 4, 60, 60], [30, 40, 130, 116]], [55, 2], True
    return Batch(
        images=np.zeros((2, 128, 160, 3), np.uint8),
        sizes=np.array([[128, 160], [120, 136]], np.int32),
        scales=np.full((2, 2), 0.8, np.float32),
        gt_boxes=boxes,
        gt_labels=labels,
        gt_mask=mask,
        image_indices=np.arange(2, dtype=np.int32),
    )


def picks(array: np.ndarray, count: int) -> np.ndarray:
    """The elements that the golden files hold of a flattened array."""
    return array.ravel()[np.linspace(0, array.size - 1, min(count, array.size)).astype(np.int64)]


class GoldenModel:
    """One published model with its weights, inputs, numbers and compiled functions."""

    def __init__(self, name: str):
        self.name = name
        self.config = golden_config(name)
        self.model = build_model(self.config, NUM_CLASSES)
        self.numbers = dict(np.load(_file(f"{name}.npz")))
        state_dict = {key: named_array(key, shape) for key, shape in golden_manifest(name).items()}
        self.variables = import_state_dict(state_dict, self.config)
        self.batch = jax.tree.map(jnp.asarray, golden_batch())
        self.images = jnp.asarray(image_batch(128, 160, [(128, 160), (120, 136)]).transpose(0, 2, 3, 1))  # [B, H, W, 3]
        self.deviations: dict[str, float] = {}

    def compare(self, what: str, ours, golden, limit: float, scale: float | None = None) -> None:
        """Assert max|ours − golden| ≤ limit · scale (the largest golden value, unless given) and record it."""
        ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
        assert ours.shape == golden.shape, f"{self.name} {what}: {ours.shape}, golden {golden.shape}"
        scale = np.abs(golden).max() if scale is None else scale
        deviation = float(np.abs(ours - golden).max() / max(scale, 1e-12))
        assert np.isfinite(deviation), f"{self.name} {what} is not finite"
        group = what.split(" ")[0]
        self.deviations[group] = max(self.deviations.get(group, 0.0), deviation)
        assert deviation <= limit, f"{self.name} {what}: {deviation:.1e} from the golden value, limit {limit:.0e}"

    @cached_property
    def forward(self):
        """(predictions, C2–C5, P3–P7, what `before_relu` wants, detections)."""
        layers = (accident.layer for accident in RELU_ACCIDENTS.get(self.name, ()))
        paths = {("backbone",), ("neck",), *(_convolution_of(layer) or layer for layer in layers)}

        @partial(jax.jit, compiler_options=AS_USERS)
        def run(variables, images):
            pred, state = self.model.apply(
                variables,
                images,
                capture_intermediates=lambda module, method: module.path in paths or method == "interactive_layers",
                mutable=["intermediates"],
            )
            state = state["intermediates"]
            c, p = state["backbone"]["__call__"][0], state["neck"]["__call__"][0]
            return pred, c, p, state, detections(pred, self.batch, self.config)

        return jax.device_get(run(self.variables, self.images))

    def before_relu(self, accident: ReluAccident):
        """The pre-activations of an accident's layer, per level; of the backbone's one alone."""
        own, state = reduce(operator.getitem, accident.layer, self.variables["params"]), self.forward[3]
        if accident.layer[-1] == "cls_alignment_0":  # is part of a product, not called
            features = [np.concatenate([x.data for x in layers], -1) for layers in state["head"]["interactive_layers"]]
            return [x @ own["kernel"][0, 0] + own["bias"] for x in features]
        if convolution := _convolution_of(accident.layer):  # norm and ReLU are one layer
            scale, bias = (jnp.asarray(own["norm"][name]) for name in ("scale", "bias"))
            maps = reduce(operator.getitem, (*convolution, "__call__"), state)
            return [np.asarray(group_norm(jnp.asarray(x), scale, bias, self.config.head.norm_groups)) for x in maps]
        return reduce(operator.getitem, (*accident.layer, "__call__"), state)

    @cached_property
    def value_and_grad(self):
        """(params, gt_boxes, gt_mask, aligned) to ((total, Losses), gradients): one program for both phases."""

        def loss(params, gt_boxes, gt_mask, aligned):
            pred = self.model.apply({**self.variables, "params": params}, self.images, train=True)
            batch = self.batch._replace(gt_boxes=gt_boxes, gt_mask=gt_mask)
            losses = detection_losses(pred, batch, aligned, self.config)
            return losses.total, losses

        return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=AS_USERS)

    def learn(self, phase: str, params=None):
        """`value_and_grad` of a golden phase: atss, tal, atss_empty or tal_empty."""
        aligned = phase.startswith("tal")
        by_atss = self.config.assigner.kind in ("atss", "task_aligned") and not aligned
        boxes = self.batch.gt_boxes + (TIE_NUDGE if by_atss else 0)
        mask = self.batch.gt_mask
        if phase.endswith("_empty"):
            mask = mask.at[1].set(False)
        return self.value_and_grad(self.variables["params"] if params is None else params, boxes, mask, aligned)

    def nudged_params(self, phase: str):
        """The parameters with the ReLU accidents' nudges where they belong."""
        accidents = [accident for accident in RELU_ACCIDENTS.get(self.name, ()) if accident.phase == phase]
        params = copy.deepcopy(self.variables["params"]) if accidents else self.variables["params"]
        for accident in accidents:
            layer = reduce(operator.getitem, accident.layer, params)
            layer.get("norm", layer)["bias"][accident.channel] += accident.nudge
        return params

    def gradients(self, phase: str) -> dict[str, np.ndarray]:
        """Gradients by PyTorch name, in PyTorch's layout."""
        _, gradients = self.learn(phase, self.nudged_params(phase))
        return export_state_dict({**self.variables, "params": jax.device_get(gradients)}, self.config)

    def trajectory(self, phase: str, steps: int):
        """Losses (cls, box, …) [steps, parts] before each SGD step at a constant rate, and the last parameters."""
        optimizer = make_optimizer(self.config)

        @partial(jax.jit, compiler_options=AS_USERS)
        def update(params, state, gradients):
            updates, state = optimizer.update(gradients, state, params, learning_rate=1e-3)
            return optax.apply_updates(params, updates), state

        params = self.nudged_params(phase)
        state, rows = optimizer.init(params), []
        for _ in range(steps):
            (_, losses), gradients = self.learn(phase, params)
            rows.append([float(getattr(losses, part).sum()) for part in loss_parts(self.config)])
            params, state = update(params, state, gradients)
        return np.array(rows), jax.device_get(params)
