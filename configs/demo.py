"""The demo: a small TOOD on generated shapes, trained from scratch on two CPU cores.

    make demo
    python train.py --config configs/demo.py        # the training step of it

Needs: the generated set in build/demo_data, which `make demo` makes:
    python -m tood_jax.data.synthetic --out build/demo_data --min-side 24
Time: 4 to 9 minutes in all on two AMD EPYC cores (without a GPU), nearly all of it training.
Score: AP 78.6, AP50 96.2 on its 100 held-out images (reports/2026-12/small_sets.md; scripts/check_demo.py reprints it
after `make demo`).
"""

from dataclasses import replace

from tood_jax.config import AssignerConfig, Config, DataConfig, SplitConfig, TrainConfig
from tood_jax.config.presets import small_set


def config() -> Config:
    base = small_set()
    return replace(
        base,
        name="demo",
        assigner=AssignerConfig(warmup_epochs=2),
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
        optimizer=replace(base.optimizer, warmup_steps=100),
        train=TrainConfig(
            epochs=18,
            batch_size=4,
            eval_batch_size=16,
            eval_every_epochs=9,
            checkpoint_every_steps=1000,
            log_every_steps=100,
        ),
    )
