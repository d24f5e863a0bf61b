"""PyTorch networks as implementations for the comparison: the one of `torch_reference`, or another `Network`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tood_jax.config import Config
from tood_jax.config.conversion import ConfigError, to_plain
from tood_jax.tools.compare_torch.implementation import ForwardResult, ImageDetections, TrainingResult, name_maps
from tood_jax.tools.compare_torch.torch_reference.assigners import Objects
from tood_jax.tools.compare_torch.torch_reference.boxes import locations_in_image
from tood_jax.tools.compare_torch.torch_reference.detect import detect
from tood_jax.tools.compare_torch.torch_reference.detector import TOOD, Architecture, Maps, flatten_levels
from tood_jax.tools.compare_torch.torch_reference.losses import Hyperparameters, detection_losses
from tood_jax.types import Batch

CONFIGURABLE = {  # fields that the reference supports; all others in these groups must have TOOD's values, the defaults
    "backbone": {"depth", "groups", "width_per_group", "width", "frozen_stages", "deformable_stages"},
    "neck": {"channels"},
    "head": {"channels", "num_convs", "norm_groups", "deformable_convs", "box_coding"},
    "assigner": {"warmup_epochs", "atss_topk", "topk", "alpha", "beta", "rescue_iou"},  # rescue_iou is ignored
    "loss": {"focal_gamma", "box_loss_weight"},
    "detect": {"score_threshold", "candidates_per_level", "nms_iou", "max_detections"},
}


def architecture_of(config: Config) -> Architecture:
    """Return the reference's architecture for a config. Raises ConfigError for networks that are not TOOD's."""
    published, given = to_plain(Config()), to_plain(config)
    unsupported = [
        f"{group}.{name} = {given[group][name]!r} (TOOD: {published[group][name]!r})"
        for group, free in CONFIGURABLE.items()
        for name in published[group]
        if name not in free and given[group][name] != published[group][name]
    ]
    if config.backbone.depth not in (50, 101):
        unsupported.append(f"backbone.depth = {config.backbone.depth} (50 or 101)")
    if config.head.box_coding not in ("exp_distances", "anchor_deltas"):
        unsupported.append(f"head.box_coding = {config.head.box_coding!r} ('exp_distances' or 'anchor_deltas')")
    if unsupported:
        raise ConfigError(f"The PyTorch reference is TOOD as published; it does not support {', '.join(unsupported)}.")
    backbone, head = config.backbone, config.head
    return Architecture(
        depth=backbone.depth,
        groups=backbone.groups,
        width_per_group=backbone.width_per_group,
        deformable_stages=backbone.deformable_stages,
        deformable_convs=head.deformable_convs,
        anchor_based=head.box_coding == "anchor_deltas",
        width=backbone.width,
        frozen_stages=backbone.frozen_stages,
        neck_channels=config.neck.channels,
        head_channels=head.channels,
        num_convs=head.num_convs,
        norm_groups=head.norm_groups,
    )


class Network(Protocol):
    """The interface of a PyTorch network; `batch` has the sizes, scales and objects."""

    module: nn.Module

    def maps(self, images: Tensor) -> Maps: ...

    def losses(self, maps: Maps, batch: Batch, in_tal_phase: bool) -> tuple[Tensor, Tensor, np.ndarray | None]:
        """Return (cls [5], box [5], objects of the locations [B, N] or None)."""
        ...

    def detections(self, maps: Maps, batch: Batch) -> list[Any]:
        """Return an object with boxes, scores and labels for each image."""
        ...


class ReferenceNetwork:
    """The reference as a `Network`."""

    def __init__(self, config: Config, num_classes: int, dtype: torch.dtype = torch.float32):
        self.config = config
        self.module: nn.Module = TOOD(architecture_of(config), num_classes).to(dtype)

    def maps(self, images: Tensor) -> Maps:
        return self.module(images)

    def losses(self, maps: Maps, batch: Batch, in_tal_phase: bool) -> tuple[Tensor, Tensor, np.ndarray | None]:
        assigner, loss = self.config.assigner, self.config.loss
        hyperparameters = Hyperparameters(
            atss_topk=assigner.atss_topk,
            topk=assigner.topk,
            alpha=assigner.alpha,
            beta=assigner.beta,
            gamma=loss.focal_gamma,
            box_loss_weight=loss.box_loss_weight,
        )
        objects = [
            Objects(*boxes_and_labels) for boxes_and_labels in real_objects(batch, next(self.module.parameters()).dtype)
        ]
        sizes = [(int(height), int(width)) for height, width in batch.sizes]
        pred, locations = flatten_levels(maps)
        losses = detection_losses(
            pred, locations, sizes, objects, in_tal_phase=in_tal_phase, hyperparameters=hyperparameters
        )
        return (
            losses.cls,
            losses.box,
            torch.stack([assignment.gt_index for assignment in losses.assignments]).cpu().numpy(),
        )

    def detections(self, maps: Maps, batch: Batch) -> list[Any]:
        pred, locations = flatten_levels(maps)
        options = self.config.detect
        return [
            detect(
                scores,
                boxes,
                locations,
                locations_in_image(locations, *map(int, size)),
                (float(scale[0]), float(scale[1])),
                score_threshold=options.score_threshold,
                candidates_per_level=options.candidates_per_level,
                nms_iou=options.nms_iou,
                max_detections=options.max_detections,
            )
            for scores, boxes, size, scale in zip(pred.scores, pred.boxes, batch.sizes, batch.scales, strict=True)
        ]


class TorchImplementation:
    """A PyTorch network as an `Implementation`."""

    def __init__(
        self, name: str, network: Network, weights: Mapping[str, np.ndarray], config: Config, learning_rate: float
    ):
        self.name, self.network, self.config, self.learning_rate = name, network, config, learning_rate
        self._dtype = next(network.module.parameters()).dtype
        self.weights = {key: torch.from_numpy(np.array(array)).to(self._dtype) for key, array in weights.items()}
        self._load()

    def _load(self) -> None:
        """Load the weights, which must have exactly the tensors of the network."""
        module = self.network.module
        counters = {key: value for key, value in module.state_dict().items() if key.endswith("num_batches_tracked")}
        module.load_state_dict({**self.weights, **counters})

    def _trained(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.network.module.named_parameters() if value.requires_grad}

    def normalized(self, batch: Batch) -> Tensor:
        """Return normalized images [B, 3, H, W], zero outside each image's own area."""
        mean, std = (torch.tensor(values, dtype=self._dtype)[:, None, None] for values in _pixels(self.config))
        images = torch.zeros(len(batch.images), 3, *batch.images.shape[1:3], dtype=self._dtype)
        for canvas, pixels, (height, width) in zip(images, batch.images, batch.sizes, strict=True):
            image = torch.from_numpy(pixels[:height, :width]).permute(2, 0, 1).to(images)
            canvas[:, :height, :width] = (image - mean) / std
        return images

    def forward(self, batch: Batch) -> ForwardResult:
        with torch.no_grad():
            image = self.normalized(batch)
            maps = self.network.maps(image)
            found = self.network.detections(maps, batch)
        scores, boxes = zip(*maps.head, strict=True)
        return ForwardResult(
            name_maps(image, maps.c, maps.p, scores, boxes),
            [ImageDetections(image.boxes.numpy(), image.scores.numpy(), image.labels.numpy()) for image in found],
        )

    def losses_and_gradients(self, batch: Batch, in_tal_phase: bool) -> TrainingResult:
        cls, box, gt_index = self.network.losses(self.network.maps(self.normalized(batch)), batch, in_tal_phase)
        trained = self._trained()
        found = torch.autograd.grad(cls.sum() + box.sum(), list(trained.values()), allow_unused=True)
        gradients = {
            name: np.zeros(tuple(trained[name].shape)) if gradient is None else gradient.numpy()
            for name, gradient in zip(trained, found, strict=True)
        }
        return TrainingResult({"cls": cls.detach().numpy(), "box": box.detach().numpy()}, gradients, gt_index)

    def trajectory(self, batches: list[Batch], in_tal_phase: bool) -> np.ndarray:
        options, rows = self.config.optimizer, []
        sgd = torch.optim.SGD(
            self._trained().values(),
            lr=self.learning_rate,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        with self._restored_afterwards():
            for batch in batches:
                cls, box, _ = self.network.losses(self.network.maps(self.normalized(batch)), batch, in_tal_phase)
                rows.append([cls.sum().item(), box.sum().item()])
                sgd.zero_grad(set_to_none=False)
                (cls.sum() + box.sum()).backward()
                sgd.step()
        return np.asarray(rows)

    @contextmanager
    def _restored_afterwards(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._load()


def real_objects(batch: Batch, dtype: torch.dtype = torch.float32) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (boxes, labels) of each image without padding, on PyTorch's default device."""
    device = torch.get_default_device()
    for boxes, labels, real in zip(batch.gt_boxes, batch.gt_labels, batch.gt_mask, strict=True):
        yield torch.from_numpy(boxes[real]).to(device, dtype), torch.from_numpy(labels[real]).to(device).long()


def _pixels(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return config.data.pixel_mean, config.data.pixel_std
