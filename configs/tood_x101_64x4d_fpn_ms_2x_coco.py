"""TOOD, ResNeXt-101 64×4d, multi-scale, 24 epochs.

    python train.py --config configs/tood_x101_64x4d_fpn_ms_2x_coco.py --init_from resnext101_64x4d.pth

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNeXt-101 64×4d trained on ImageNet
    (torchvision's, timm's or open-mmlab's file, docs/weights.md; the published score began with open-mmlab's): the
    stem and stage 1 are frozen. 16 images a step; another --train.batch_size scales the learning rate with it.
    Where they don't fit in memory: --train.precision=bfloat16, or --train.accumulate_steps=2.
Time: 24 epochs of about 7,330 steps; not measured here.
Score: published: AP 47.6 on val2017 (mmdetection's model zoo).
"""

from tood_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    DetectConfig,
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
        name="tood_x101_64x4d_fpn_ms_2x_coco",
        backbone=BackboneConfig(depth=101, groups=64, width_per_group=4, norm="frozen_batch", frozen_stages=1),
        neck=NeckConfig(channels=256, norm="none"),
        head=HeadConfig(channels=256, num_convs=6, norm_groups=32, box_coding="exp_distances", anchor_scale=8.0),
        learning=LearningConfig(warmup_epochs=4.0, atss_topk=9, topk=13, alpha=1.0, beta=6.0),
        loss=LossConfig(box_loss_weight=2.0),
        data=DataConfig(
            train=SplitConfig(
                images="data/coco/train2017", annotations="data/coco/annotations/instances_train2017.json"
            ),
            val=SplitConfig(images="data/coco/val2017", annotations="data/coco/annotations/instances_val2017.json"),
            train_short_side=(480, 800),
            eval_short_side=800,
            max_long_side=1333,
            # A handful of compilations: these seven and the canvas that holds all. The log says the share of padding.
            buckets=((608, 832), (704, 960), (800, 1088), (800, 1344), (832, 608), (1088, 800), (1344, 800)),
            flip_probability=0.5,
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.01,
            learning_rate_batch=16,
            momentum=0.9,
            weight_decay=1e-4,
            warmup_steps=500,
            warmup_factor=0.001,
            schedule="step",
            step_epochs=(16, 22),
            step_factor=0.1,
            clip_norm=None,
        ),
        train=TrainConfig(epochs=24, batch_size=16),
        detect=DetectConfig(score_threshold=0.05, candidates_per_level=1000, nms_iou=0.6, max_detections=100),
    )
