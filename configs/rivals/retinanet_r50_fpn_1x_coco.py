"""RetinaNet, ResNet-50, 12 epochs: nine anchors a cell, max-IoU assignment (Lin et al. 2017).

    python train.py --config configs/rivals/retinanet_r50_fpn_1x_coco.py

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNet-50 trained on ImageNet (--init_from FILE;
    the stem and stage 1 are frozen). 16 images a step; another --train.batch_size scales the learning rate with it.
Time: 12 epochs of about 7,330 steps; not measured here.
Score: published: AP 36.5 on val2017 (mmdetection's model zoo).
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
        name="retinanet_r50_fpn_1x_coco",
        backbone=BackboneConfig(depth=50, norm="frozen_batch", frozen_stages=1),
        neck=NeckConfig(channels=256, extra_levels="on_input"),
        head=HeadConfig(
            kind="parallel",
            num_convs=4,
            norm="none",
            tower_bias=True,
            alignment=False,
            box_coding="anchor_deltas",
            delta_stds=(1.0, 1.0, 1.0, 1.0),
            level_scales=False,
            anchor_scale=4.0,
            anchor_octaves=3,
            anchor_ratios=(0.5, 1.0, 2.0),
        ),
        learning=LearningConfig(assigner="max_iou", positive_iou=0.5, negative_iou=0.4),
        loss=LossConfig(
            cls="focal",
            cls_target="one",
            normalizer="positives_per_image",
            box="l1",
            box_weight="one",
            box_loss_weight=1.0,
        ),
        data=DataConfig(
            train=SplitConfig(
                images="data/coco/train2017", annotations="data/coco/annotations/instances_train2017.json"
            ),
            val=SplitConfig(images="data/coco/val2017", annotations="data/coco/annotations/instances_val2017.json"),
            train_short_side=(800, 800),
            eval_short_side=800,
            max_long_side=1333,
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
        ),
        train=TrainConfig(epochs=12, batch_size=16),
        detect=DetectConfig(
            score_threshold=0.05, candidates_per_level=1000, nms_iou=0.5, max_detections=100, clip_boxes=True
        ),
    )
