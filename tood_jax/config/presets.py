"""Whole settings that the files in configs/ start from; each file replaces the fields in which it differs.

python -m tood_jax.cli.show_config --config configs/NAME.py prints a config with all its values.
"""

from dataclasses import replace

from tood_jax.config.schema import (
    AssignerConfig,
    BackboneConfig,
    Config,
    DetectConfig,
    HeadConfig,
    LossConfig,
    NeckConfig,
    OptimizerConfig,
    TrainConfig,
)
from tood_jax.config.schema_data import DataConfig, SplitConfig


def tood_r50_fpn_1x_coco() -> Config:
    """Return the published setting: TOOD, ResNet-50, 12 epochs of COCO (the paper's main setting)."""
    return Config(
        name="tood_r50_fpn_1x_coco",
        backbone=BackboneConfig(depth=50, norm="frozen_batch", frozen_stages=1),
        neck=NeckConfig(channels=256, norm="none"),
        head=HeadConfig(channels=256, num_convs=6, norm_groups=32, box_coding="exp_distances", anchor_scale=8.0),
        assigner=AssignerConfig(warmup_epochs=4.0, atss_topk=9, topk=13, alpha=1.0, beta=6.0, rescue_iou=0.0),
        loss=LossConfig(box_loss_weight=2.0),
        data=DataConfig(
            train=SplitConfig(
                images="data/coco/train2017", annotations="data/coco/annotations/instances_train2017.json"
            ),
            val=SplitConfig(images="data/coco/val2017", annotations="data/coco/annotations/instances_val2017.json"),
            train_short_side=(800, 800),
            eval_short_side=800,
            max_long_side=1333,
            # A handful of compilations: these and the canvas that holds all. The log has the share of padding.
            buckets=((800, 1088), (800, 1216), (800, 1344), (1088, 800), (1216, 800), (1344, 800)),
            flip_probability=0.5,
            filter_empty=True,
            min_image_side=32,
            filter_tiny_boxes=True,
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.01,
            learning_rate_batch=16,
            momentum=0.9,
            weight_decay=1e-4,
            warmup_steps=500,
            warmup_factor=0.001,
            schedule="step",
            step_epochs=(8, 11),
            step_factor=0.1,
            clip_norm=None,
        ),
        train=TrainConfig(epochs=12, batch_size=16),
        detect=DetectConfig(score_threshold=0.05, candidates_per_level=1000, nms_iou=0.6, max_detections=100),
    )


def tood_r50_fpn_ms_2x_coco() -> Config:
    """Return the published multi-scale setting: short sides of 480–800 pixels, 24 epochs."""
    base = tood_r50_fpn_1x_coco()
    buckets = ((608, 832), (704, 960), (800, 1088), (800, 1344), (832, 608), (1088, 800), (1344, 800))
    return replace(
        base,
        name="tood_r50_fpn_ms_2x_coco",
        data=replace(base.data, train_short_side=(480, 800), buckets=buckets),
        optimizer=replace(base.optimizer, step_epochs=(16, 22)),
        train=replace(base.train, epochs=24),
    )


def small_set() -> Config:
    """Return a small TOOD for some hundred images, trained from scratch on two CPU cores."""
    return Config(
        name="small_set",
        backbone=BackboneConfig(depth=18, width=16, norm="batch", frozen_stages=-1),
        neck=NeckConfig(channels=64, norm="group"),
        head=HeadConfig(channels=64, num_convs=3, norm_groups=16),
        assigner=AssignerConfig(warmup_epochs=10, rescue_iou=0.1),
        data=DataConfig(
            train_short_side=(208, 256),
            eval_short_side=240,
            max_long_side=352,
            buckets=((256, 352), (352, 256)),
            flip_probability=0.5,
            max_objects=100,
        ),
        optimizer=OptimizerConfig(
            kind="adamw",
            learning_rate=0.001,
            learning_rate_batch=4,
            weight_decay=0.05,
            schedule="cosine",
            warmup_steps=200,
            clip_norm=10.0,
            ema_decay=0.999,
        ),
        train=TrainConfig(
            epochs=80,
            batch_size=4,
            eval_batch_size=8,
            eval_every_epochs=20,
            checkpoint_every_steps=500,
            log_every_steps=50,
        ),
    )


def ablation() -> Config:
    """Return what the four settings of the ablation share: a small T-head on dense generated shapes, 20 epochs."""
    return Config(
        name="ablation",
        backbone=BackboneConfig(depth=18, width=16, norm="batch", frozen_stages=-1),
        neck=NeckConfig(channels=64, norm="group"),
        head=HeadConfig(kind="t_head", channels=64, num_convs=6, norm_groups=16),
        assigner=AssignerConfig(kind="task_aligned", warmup_epochs=3, rescue_iou=0.0),
        data=DataConfig(
            train=SplitConfig("build/dense_shapes/train", "build/dense_shapes/annotations/instances_train.json"),
            val=SplitConfig("build/dense_shapes/val", "build/dense_shapes/annotations/instances_val.json"),
            train_short_side=(128, 128),
            eval_short_side=128,
            max_long_side=128,
            buckets=((128, 128),),
            flip_probability=0.5,
            vertical_flip_probability=0.5,
            max_objects=20,
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.02,
            learning_rate_batch=8,
            schedule="cosine",
            warmup_steps=100,
            clip_norm=10.0,
            ema_decay=0.999,
        ),
        train=TrainConfig(
            epochs=20,
            batch_size=8,
            eval_batch_size=16,
            eval_every_epochs=0,
            checkpoint_every_steps=100000,
            log_every_steps=100,
        ),
    )
