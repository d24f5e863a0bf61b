"""A small TOOD on the BCCD blood cells (364 photographs, 3 classes), trained from scratch.

    python train.py --config configs/bccd.py --data.train.images=DIR/train --data.val.images=DIR/val \
        --data.train.annotations=DIR/annotations/instances_train.json \
        --data.val.annotations=DIR/annotations/instances_val.json

Needs: the BCCD set in COCO format (by default in data/bccd) and two CPU cores. A good start for any small set of your
    own: name its folders as above. No pre-trained weights are used.
Time: 13 minutes on two AMD EPYC cores (without a GPU), shared with other jobs.
Score: AP 57.6, AP50 89.5 on its val split (measured; docs/training.md has the table).
"""

from tood_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    DetectConfig,
    HeadConfig,
    LearningConfig,
    NeckConfig,
    OptimizerConfig,
    SplitConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="bccd",
        backbone=BackboneConfig(depth=18, width=16, norm="batch", frozen_stages=-1),
        neck=NeckConfig(channels=64, norm="group"),
        head=HeadConfig(channels=64, num_convs=3, norm_groups=16),
        learning=LearningConfig(warmup_epochs=10),
        data=DataConfig(
            train=SplitConfig("data/bccd/train", "data/bccd/annotations/instances_train.json"),
            val=SplitConfig("data/bccd/val", "data/bccd/annotations/instances_val.json"),
            train_short_side=(208, 256),
            eval_short_side=240,
            max_long_side=352,
            buckets=((256, 352), (352, 256)),
            flip_probability=0.5,
            vertical_flip_probability=0.5,  # blood cells have no up
            max_objects=60,
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.02,
            learning_rate_batch=4,
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
        detect=DetectConfig(),
    )
