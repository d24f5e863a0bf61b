"""The peer's side: the plain PyTorch TOOD of `torch_reference`, or anything that answers like it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tood_jax.config import Config
from tood_jax.torch_reference.assigners import Objects
from tood_jax.torch_reference.boxes import cells_in_image
from tood_jax.torch_reference.comparison.sides import Forward, Found, Learnt, forward_maps
from tood_jax.torch_reference.detect import detect
from tood_jax.torch_reference.detector import TOOD, Architecture, Maps, in_a_row
from tood_jax.torch_reference.losses import Learning, detection_losses
from tood_jax.typed import ConfigError, to_plain
from tood_jax.types import Batch

DTYPE = torch.float32
CHOICES = {  # what a config may change; all else of these groups must be TOOD's, which are the defaults
    "backbone": {"depth", "groups", "width_per_group", "width", "frozen_stages", "deformable_stages"},
    "neck": {"channels"},
    "head": {"channels", "num_convs", "norm_groups", "deformable_convs", "box_coding"},
    "learning": {"warmup_epochs", "atss_topk", "topk", "alpha", "beta"},
    "loss": {"focal_gamma", "box_loss_weight"},
    "detect": {"score_threshold", "candidates_per_level", "nms_iou", "max_detections"},
}


def architecture_of(config: Config) -> Architecture:
    """The reference's words for a config's network. Raises ConfigError if it isn't one of TOOD's."""
    published, given = to_plain(Config()), to_plain(config)
    odd = [
        f"{group}.{name} = {given[group][name]!r} (TOOD: {published[group][name]!r})"
        for group, free in CHOICES.items()
        for name in published[group]
        if name not in free and given[group][name] != published[group][name]
    ]
    if config.backbone.depth not in (50, 101):
        odd.append(f"backbone.depth = {config.backbone.depth} (50 or 101)")
    if config.head.box_coding not in ("exp_distances", "anchor_deltas"):
        odd.append(f"head.box_coding = {config.head.box_coding!r} ('exp_distances' or 'anchor_deltas')")
    if odd:
        raise ConfigError(f"The PyTorch reference is TOOD as published; it doesn't have {', '.join(odd)}.")
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
    """What a PyTorch peer must be able to do; `batch` has the sizes, scales and objects."""

    module: nn.Module

    def maps(self, images: Tensor) -> Maps: ...

    def losses(self, maps: Maps, batch: Batch, aligned: bool) -> tuple[Tensor, Tensor, np.ndarray | None]:
        """(cls [5], box [5], objects of the cells [B, N] if known)."""
        ...

    def detections(self, maps: Maps, batch: Batch) -> list[Any]:
        """Per image an object with boxes, scores and labels."""
        ...


class PlainTorch:
    """The reference as a `Network`."""

    def __init__(self, config: Config, num_classes: int):
        self.config = config
        self.module: nn.Module = TOOD(architecture_of(config), num_classes).to(DTYPE)

    def maps(self, images: Tensor) -> Maps:
        return self.module(images)

    def losses(self, maps: Maps, batch: Batch, aligned: bool) -> tuple[Tensor, Tensor, np.ndarray | None]:
        learning, loss = self.config.learning, self.config.loss
        method = Learning(
            atss_topk=learning.atss_topk,
            topk=learning.topk,
            alpha=learning.alpha,
            beta=learning.beta,
            gamma=loss.focal_gamma,
            box_loss_weight=loss.box_loss_weight,
        )
        objects = [Objects(*of_image) for of_image in real_objects(batch)]
        sizes = [(int(height), int(width)) for height, width in batch.sizes]
        pred, cells = in_a_row(maps)
        losses = detection_losses(pred, cells, sizes, objects, aligned=aligned, learning=method)
        return losses.cls, losses.box, torch.stack([one.gt_index for one in losses.assignments]).cpu().numpy()

    def detections(self, maps: Maps, batch: Batch) -> list[Any]:
        pred, cells = in_a_row(maps)
        options = self.config.detect
        return [
            detect(
                scores,
                boxes,
                cells,
                cells_in_image(cells, *map(int, size)),
                (float(scale[0]), float(scale[1])),
                score_threshold=options.score_threshold,
                candidates_per_level=options.candidates_per_level,
                nms_iou=options.nms_iou,
                max_detections=options.max_detections,
            )
            for scores, boxes, size, scale in zip(pred.scores, pred.boxes, batch.sizes, batch.scales, strict=True)
        ]


class TorchSide:
    """A PyTorch network as a side of the comparison; see `sides.Side`."""

    def __init__(
        self, name: str, network: Network, weights: Mapping[str, np.ndarray], config: Config, learning_rate: float
    ):
        self.name, self.network, self.config, self.learning_rate = name, network, config, learning_rate
        self.weights = {key: torch.from_numpy(np.array(array)).to(DTYPE) for key, array in weights.items()}
        self._load()

    def _load(self) -> None:
        """Back to the weights; every tensor of the network must be among them, and none else."""
        module = self.network.module
        counters = {key: value for key, value in module.state_dict().items() if key.endswith("num_batches_tracked")}
        module.load_state_dict({**self.weights, **counters})

    def _trained(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.network.module.named_parameters() if value.requires_grad}

    def normalized(self, batch: Batch) -> Tensor:
        """[B, 3, H, W], zero outside each image's own area."""
        mean, std = (torch.tensor(values, dtype=DTYPE)[:, None, None] for values in _pixels(self.config))
        images = torch.zeros(len(batch.images), 3, *batch.images.shape[1:3], dtype=DTYPE)
        for canvas, pixels, (height, width) in zip(images, batch.images, batch.sizes, strict=True):
            own = torch.from_numpy(pixels[:height, :width]).permute(2, 0, 1).to(images)
            canvas[:, :height, :width] = (own - mean) / std
        return images

    def forward(self, batch: Batch) -> Forward:
        with torch.no_grad():
            image = self.normalized(batch)
            maps = self.network.maps(image)
            found = self.network.detections(maps, batch)
        scores, boxes = zip(*maps.head, strict=True)
        return Forward(
            forward_maps(image, maps.c, maps.p, scores, boxes),
            [Found(one.boxes.numpy(), one.scores.numpy(), one.labels.numpy()) for one in found],
        )

    def learn(self, batch: Batch, aligned: bool) -> Learnt:
        cls, box, gt_index = self.network.losses(self.network.maps(self.normalized(batch)), batch, aligned)
        trained = self._trained()
        found = torch.autograd.grad(cls.sum() + box.sum(), list(trained.values()), allow_unused=True)
        gradients = {
            name: np.zeros(tuple(trained[name].shape)) if gradient is None else gradient.numpy()
            for name, gradient in zip(trained, found, strict=True)
        }
        return Learnt({"cls": cls.detach().numpy(), "box": box.detach().numpy()}, gradients, gt_index)

    def trajectory(self, batches: list[Batch], aligned: bool) -> np.ndarray:
        options, rows = self.config.optimizer, []
        sgd = torch.optim.SGD(
            self._trained().values(),
            lr=self.learning_rate,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        with self._put_back():
            for batch in batches:
                cls, box, _ = self.network.losses(self.network.maps(self.normalized(batch)), batch, aligned)
                rows.append([cls.sum().item(), box.sum().item()])
                sgd.zero_grad(set_to_none=False)
                (cls.sum() + box.sum()).backward()
                sgd.step()
        return np.asarray(rows)

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._load()


def real_objects(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """(boxes, labels) of each image without the padding, on PyTorch's default device."""
    device = torch.get_default_device()
    for boxes, labels, real in zip(batch.gt_boxes, batch.gt_labels, batch.gt_mask, strict=True):
        yield torch.from_numpy(boxes[real]).to(device, DTYPE), torch.from_numpy(labels[real]).to(device).long()


def _pixels(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return config.data.pixel_mean, config.data.pixel_std
