"""The demo: a small TOOD on generated shapes, trained from scratch on two CPU cores.

    make demo
    python train.py --config configs/demo.py        # the training step of it

Needs: the generated set in build/demo_data, which `make demo` makes:
    python -m tood_jax.data.synthetic --out build/demo_data --min-side 24
Time: 6 to 15 minutes in all on two AMD EPYC cores (without a GPU), nearly all of it training.
Score: AP 76.6 to 80.4, AP50 94.9 to 96.5 on its 100 held-out images (three runs whose code sums in another order;
scripts/check_demo.py reprints them after `make demo`).
"""

from tood_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    LearningConfig,
    NeckConfig,
    OptimizerConfig,
    SplitConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="demo",
        backbone=BackboneConfig(depth=18, width=16, norm="batch", frozen_stages=-1),
        neck=NeckConfig(channels=64, norm="group"),
        head=HeadConfig(channels=64, num_convs=3, norm_groups=16),
        learning=LearningConfig(warmup_epochs=4),
        data=DataConfig(
            train=SplitConfig("build/demo_data/train", "build/demo_data/annotations/instances_train.json"),
            val=SplitConfig("build/demo_data/val", "build/demo_data/annotations/instances_val.json"),
            train_short_side=(160, 160),
            eval_short_side=160,
            max_long_side=160,
            buckets=((160, 160),),
            flip_probability=0.5,
            vertical_flip_probability=0.5,  # the shapes are drawn at any angle
            max_objects=10,
        ),
        optimizer=OptimizerConfig(
            learning_rate=0.02,
            learning_rate_batch=4,
            schedule="cosine",
            warmup_steps=100,
            clip_norm=10.0,
            ema_decay=0.999,
        ),
        train=TrainConfig(
            epochs=36,
            batch_size=4,
            eval_batch_size=16,
            eval_every_epochs=12,
            checkpoint_every_steps=1000,
            log_every_steps=100,
        ),
    )
