"""OTA, ResNet-50, 12 epochs: assignment by optimal transport (Ge et al. 2021).

    python train.py --config configs/rivals/ota_r50_fpn_1x_coco.py

Needs: COCO 2017 in data/coco (train2017, val2017, annotations) and a ResNet-50 trained on ImageNet (--init_from FILE;
    the stem and stage 1 are frozen). 16 images a step; another --train.batch_size scales the learning rate with it.
Time: 12 epochs of about 7,330 steps; not measured here.
Score: published: AP 40.7 on val2017 (by the authors).
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
        name="ota_r50_fpn_1x_coco",
        backbone=BackboneConfig(depth=50, norm="frozen_batch", frozen_stages=1),
        neck=NeckConfig(channels=256, extra_levels="on_output"),
        head=HeadConfig(
            kind="parallel",
            num_convs=4,
            norm="group",
            tower_bias=True,
            alignment=False,
            quality="iou",
            box_coding="relu_distances",
            point_offset=0.5,
        ),
        learning=LearningConfig(assigner="ota", center_radius=2.5),
        loss=LossConfig(
            cls="focal",
            cls_target="one",
            normalizer="positives",
            box="giou",
            box_weight="one",
            box_loss_weight=2.0,
            quality_loss_weight=0.5,
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
            score_threshold=0.05,
            candidates_per_level=1000,
            nms_iou=0.6,
            max_detections=100,
            clip_boxes=True,
            quality_fusion="geometric_mean",
        ),
    )
