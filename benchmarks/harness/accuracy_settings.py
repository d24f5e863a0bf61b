"""The detectors, data and schedules of the comparison of accuracy; both sides can do all of it exactly."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from tood_jax.config import Config, DataConfig, HeadConfig, LossConfig
from tood_jax.config.presets import small_set, tood_r50_fpn_1x_coco

OURS, MMDETECTION = "tood_jax", "mmdetection"


def small_tood() -> Config:
    """Return configs/bccd.py with SGD, without the rescue of lost objects and the moving average, at one size.

    At one size of image both sides pad to the same canvas, so BatchNorm's statistics are over the same locations.
    """
    base = small_set()
    return replace(
        base,
        assigner=replace(base.assigner, warmup_epochs=8, rescue_iou=0.0),
        data=replace(_published_filters(base), max_long_side=352, vertical_flip_probability=0.5),
        optimizer=replace(base.optimizer, kind="sgd", learning_rate=0.01, weight_decay=1e-4, ema_decay=None),
        train=replace(base.train, epochs=40),
    )


def small_atss() -> Config:
    """Return ATSS with one square anchor per location, of the size and schedule of `small_tood`."""
    base = small_tood()
    return replace(
        base,
        head=HeadConfig(
            kind="parallel",
            channels=base.head.channels,
            num_convs=base.head.num_convs,
            norm_groups=base.head.norm_groups,
            alignment=False,
            quality="centerness",
            box_coding="anchor_deltas",
        ),
        assigner=replace(base.assigner, kind="atss"),
        loss=LossConfig(cls="focal", cls_target="one", normalizer="positives_per_image", box_weight="centerness"),
        detect=replace(base.detect, clip_boxes=True),
    )


def tood_r50() -> Config:
    """Return the published TOOD with ResNet-50 on small images, 8 epochs of 8 images per step."""
    base = tood_r50_fpn_1x_coco()
    return replace(
        base,
        assigner=replace(base.assigner, warmup_epochs=2),
        data=replace(_published_filters(base), max_long_side=352),
        optimizer=replace(base.optimizer, warmup_steps=200, step_epochs=(6,)),
        train=replace(base.train, epochs=8, batch_size=8, eval_batch_size=8),
    )


def tood_r50_from_scratch() -> Config:
    """Return `tood_r50` with nothing frozen and GroupNorm in the backbone."""
    base = tood_r50()
    return replace(base, backbone=replace(base.backbone, norm="group", frozen_stages=-1))


def _published_filters(config: Config) -> DataConfig:
    """Return the config's data with mmdetection's filters of training images and boxes."""
    return replace(config.data, filter_empty=True, min_image_side=32, filter_tiny_boxes=True, max_objects=100)


class Setting(NamedTuple):
    """A detector, its data and its schedule."""

    name: str
    about: str
    config: Callable[[], Config]
    data: str  # folder in shared/data
    short_side: int  # pixels, in training and evaluation
    seeds: int = 1  # at most this many of --seeds
    pretrained: bool = False  # the backbone starts from shared/weights
    sides: tuple[str, ...] = (OURS, MMDETECTION)


SETTINGS = (
    Setting("tood_small", "TOOD, ResNet-18 of width 16, from scratch", small_tood, "bccd", 240, seeds=100),
    Setting("atss_small", "ATSS, ResNet-18 of width 16, from scratch", small_atss, "bccd", 240, seeds=100),
    Setting("tood_r50", "TOOD, ResNet-50 of ImageNet", tood_r50, "animals", 224, pretrained=True),
    Setting("tood_r50_scratch", "TOOD, ResNet-50, from scratch", tood_r50_from_scratch, "animals", 224, sides=(OURS,)),
)


def shortened(config: Config, epochs: int) -> Config:
    """Return a config with another number of epochs, its warm-ups and steps of the learning rate in proportion."""
    share = epochs / config.train.epochs
    options = config.optimizer
    return replace(
        config,
        assigner=replace(config.assigner, warmup_epochs=round(config.assigner.warmup_epochs * share)),
        optimizer=replace(
            options,
            warmup_steps=round(options.warmup_steps * share),
            step_epochs=tuple(round(epoch * share) for epoch in options.step_epochs),
        ),
        train=replace(config.train, epochs=epochs),
    )
