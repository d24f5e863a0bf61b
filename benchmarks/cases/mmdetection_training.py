"""Train mmdetection's own TOOD on a COCO directory, with the size and schedule of configs/bccd.py: does it collapse?

    scripts/peers_env.sh
    .venv-peers/bin/python -m benchmarks.cases.mmdetection_training --data ../shared/data/raccoon --epochs 40 \
        --warmup_epochs 5

prints the mean losses of every 50 steps, the targets of the last of them (positives per level, Σ t̂), the range of the
raw box outputs, and mmdetection's COCO AP four times during training. It needs the environment of
scripts/peers_env.sh, and nothing of tood_jax.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

GROUP_NORM = {"type": "GN", "num_groups": 16, "requires_grad": True}
BATCH = 4
STRIDES = [8, 16, 32, 64, 128]


def main() -> None:
    """Train, and print what is described above."""
    parser = argparse.ArgumentParser(description="Train mmdetection's TOOD with the settings of configs/bccd.py.")
    parser.add_argument("--data", required=True, help="folder with train, val and annotations")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--warmup_epochs", type=int, default=10, help="epochs of ATSS")
    parser.add_argument("--learning_rate", type=float, default=0.02)
    parser.add_argument("--short_side", type=int, nargs=2, default=[208, 256])
    parser.add_argument("--long_side", type=int, default=352)
    parser.add_argument("--steps", type=int, default=10**9, help="stop after this number of steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="runs/mmdetection", help="folder of the logs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runner = Runner.from_cfg(Config(settings(args)))
    runner.register_hook(LogTargets(args.steps), priority="VERY_LOW")
    runner.train()


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return mmdetection's config of the run."""
    tree = json.loads((Path(args.data) / "annotations/instances_train.json").read_text(encoding="utf-8"))
    classes = tuple(category["name"] for category in tree["categories"])
    total = args.epochs * (len(tree["images"]) // BATCH)
    low, high = args.short_side
    resize = [(args.long_side, side) for side in range(low, high + 1, 4)]
    train_pipeline: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "RandomChoiceResize", "scales": resize, "keep_ratio": True, "resize_type": "Resize"},
        {"type": "RandomFlip", "prob": [0.25] * 3, "direction": ["horizontal", "vertical", "diagonal"]},
        {"type": "PackDetInputs"},
    ]
    val_pipeline: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (args.long_side, (low + high) // 2), "keep_ratio": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]

    def split(name: str, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "type": "CocoDataset",
            "data_root": str(Path(args.data).absolute()),
            "ann_file": f"annotations/instances_{name}.json",
            "data_prefix": {"img": f"{name}/"},
            "metainfo": {"classes": classes},
            "pipeline": pipeline,
            "test_mode": name == "val",
        }

    optimizer = {"type": "SGD", "lr": args.learning_rate, "momentum": 0.9, "weight_decay": 1e-4}
    return {
        "default_scope": "mmdet",
        "log_level": "WARNING",
        "work_dir": args.work,
        "randomness": {"seed": args.seed},
        "model": model(len(classes), args.warmup_epochs),
        "train_dataloader": {
            "batch_size": BATCH,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "batch_sampler": {"type": "AspectRatioBatchSampler", "drop_last": True},
            "dataset": split("train", train_pipeline),
        },
        "val_dataloader": {
            "batch_size": 1,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": split("val", val_pipeline),
        },
        "val_evaluator": {
            "type": "CocoMetric",
            "ann_file": str(Path(args.data).absolute() / "annotations/instances_val.json"),
            "metric": "bbox",
        },
        "val_cfg": {"type": "ValLoop"},
        "train_cfg": {
            "type": "EpochBasedTrainLoop",
            "max_epochs": args.epochs,
            "val_interval": max(1, args.epochs // 4),
        },
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": optimizer, "clip_grad": {"max_norm": 10}},
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "begin": 0, "end": 200},
            {"type": "CosineAnnealingLR", "T_max": total, "by_epoch": False, "begin": 0, "end": total, "eta_min": 0},
        ],
        "default_hooks": {
            "logger": {"type": "LoggerHook", "interval": 10**6},
            "checkpoint": {"type": "CheckpointHook", "interval": 10**6},
        },
    }


def model(classes: int, warmup_epochs: int) -> dict[str, Any]:
    """Return mmdetection's TOOD in the size of configs/bccd.py."""
    return {
        "type": "TOOD",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        },
        "backbone": {
            "type": "ResNet",
            "depth": 18,
            "base_channels": 16,
            "stem_channels": 16,
            "frozen_stages": -1,
            "norm_cfg": {"type": "BN", "requires_grad": True},
            "norm_eval": False,
        },
        "neck": {
            "type": "FPN",
            "in_channels": [16, 32, 64, 128],
            "out_channels": 64,
            "start_level": 1,
            "add_extra_convs": "on_output",
            "num_outs": 5,
            "norm_cfg": GROUP_NORM,
        },
        "bbox_head": {
            "type": "TOODHead",
            "num_classes": classes,
            "in_channels": 64,
            "stacked_convs": 3,
            "feat_channels": 64,
            "norm_cfg": GROUP_NORM,
            "anchor_type": "anchor_free",
            "anchor_generator": {
                "type": "AnchorGenerator",
                "ratios": [1.0],
                "octave_base_scale": 8,
                "scales_per_octave": 1,
                "strides": STRIDES,
            },
            "initial_loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "activated": True},
            "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "activated": True, "beta": 2.0},
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        },
        "train_cfg": {
            "initial_epoch": warmup_epochs,
            "initial_assigner": {"type": "ATSSAssigner", "topk": 9},
            "assigner": {"type": "TaskAlignedAssigner", "topk": 13},
            "alpha": 1,
            "beta": 6,
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "test_cfg": {
            "nms_pre": 1000,
            "min_bbox_size": 0,
            "score_thr": 0.05,
            "nms": {"type": "nms", "iou_threshold": 0.6},
            "max_per_img": 100,
        },
    }


class LogTargets(Hook):
    """Print losses and targets of the head, and end the program after a number of steps."""

    def __init__(self, steps: int):
        self.steps = steps
        self.rows: list[dict[str, float]] = []  # losses of each step since the last line
        self.raw: list[torch.Tensor] = []  # box outputs of a step, one for each level
        self.positives: list[int] = []
        self.target_sum = 0.0

    def before_run(self, runner: Runner) -> None:
        self.start_time = time.time()
        head = runner.model.bbox_head
        head.tood_reg.register_forward_hook(lambda module, inputs, out: self.raw.append(out.detach()))
        get_targets = head.get_targets

        def recording_get_targets(*arguments: Any, **options: Any) -> Any:
            found = get_targets(*arguments, **options)
            _, labels, _, _, metrics = found
            self.positives = [int(((level >= 0) & (level < head.num_classes)).sum()) for level in labels]
            self.target_sum = float(sum(level.sum() for level in metrics))
            return found

        head.get_targets = recording_get_targets

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        raw, self.raw = self.raw[: len(STRIDES)], []
        self.rows.append({name: float(value) for name, value in outputs.items()})
        if runner.iter % 50 == 0:
            means = {name: sum(row[name] for row in self.rows) / len(self.rows) for name in self.rows[0]}
            self.rows = []
            print(
                f"step {runner.iter}  {time.time() - self.start_time:.0f} s  "
                + "  ".join(f"{name} {value:.3g}" for name, value in means.items())
                + f"  positives {self.positives}  target sum {self.target_sum:.3g}  "
                + f"raw {min(x.min().item() for x in raw):.1f} … {max(x.max().item() for x in raw):.1f}",
                flush=True,
            )
        if runner.iter + 1 >= self.steps:
            raise SystemExit(0)


if __name__ == "__main__":
    main()
