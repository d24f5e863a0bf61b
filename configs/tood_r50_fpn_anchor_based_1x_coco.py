"""TOOD with square anchors instead of points, ResNet-50, 12 epochs.

    python train.py --config configs/tood_r50_fpn_anchor_based_1x_coco.py --init_from resnet50.pth

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNet-50 trained on ImageNet (torchvision's
    or timm's file, docs/weights.md): the stem and stage 1 are frozen. 16 images a step; another --train.batch_size
    scales the learning rate with it. Where they don't fit in memory: --train.precision=bfloat16, or
    --train.accumulate_steps=2.
Time: 12 epochs of about 7,330 steps; not measured here.
Score: published: AP 42.4 on val2017 (by the authors).
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
        name="tood_r50_fpn_anchor_based_1x_coco",
        backbone=BackboneConfig(depth=50, norm="frozen_batch", frozen_stages=1),
        neck=NeckConfig(channels=256, norm="none"),
        head=HeadConfig(channels=256, num_convs=6, norm_groups=32, box_coding="anchor_deltas", anchor_scale=8.0),
        learning=LearningConfig(warmup_epochs=4.0, atss_topk=9, topk=13, alpha=1.0, beta=6.0),
        loss=LossConfig(box_loss_weight=2.0),
        data=DataConfig(
            train=SplitConfig(
                images="data/coco/train2017", annotations="data/coco/annotations/instances_train2017.json"
            ),
            val=SplitConfig(images="data/coco/val2017", annotations="data/coco/annotations/instances_val2017.json"),
            train_short_side=(800, 800),
            eval_short_side=800,
            max_long_side=1333,
            # A handful of compilations: these and the canvas that holds all. The log says the share of padding.
            buckets=((800, 1088), (800, 1216), (800, 1344), (1088, 800), (1216, 800), (1344, 800)),
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
            step_epochs=(8, 11),
            step_factor=0.1,
            clip_norm=None,
        ),
        train=TrainConfig(epochs=12, batch_size=16),
        detect=DetectConfig(score_threshold=0.05, candidates_per_level=1000, nms_iou=0.6, max_detections=100),
    )
