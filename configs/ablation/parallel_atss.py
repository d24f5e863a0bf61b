"""Ablation: parallel head, ATSS, small and from scratch.

    python train.py --config configs/ablation/parallel_atss.py

Needs: the dense generated set in build/dense_shapes, which `python -m benchmarks.ablation` makes.
Time: 5 minutes on two AMD EPYC cores.
Score: docs/ablation.md has the table of all four, with their spread over seeds.
"""

from tood_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    LearningConfig,
    LossConfig,
    NeckConfig,
    OptimizerConfig,
    SplitConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="parallel_atss",
        backbone=BackboneConfig(depth=18, width=16, norm="batch", frozen_stages=-1),
        neck=NeckConfig(channels=64, norm="group"),
        head=HeadConfig(
            kind="parallel", channels=64, num_convs=4, norm_groups=16, alignment=False, quality="centerness"
        ),
        learning=LearningConfig(assigner="atss"),
        loss=LossConfig(cls="focal", cls_target="one", normalizer="positives_per_image", box_weight="centerness"),
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
