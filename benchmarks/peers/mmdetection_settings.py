"""mmdetection's settings of a config: model, optimizer and learning rate. Imports torch."""

from dataclasses import replace
from typing import Any

from tood_jax.config import Config
from tood_jax.tools.compare_torch.mmdetection import model_dict
from tood_jax.training.optimizer import scaled_learning_rate

PADDING_MULTIPLE = 32  # of the sides of a padded batch, pixels


def detector_settings(config: Config, classes: int) -> dict[str, Any]:
    """Return mmdetection's `model = dict(…)` of a config: TOOD, or ATSS with anchors, on any ResNet and norm.

    Args:
        config: with head.kind "t_head" for TOOD, "parallel" for ATSS.
        classes: number of classes.

    Raises:
        ConfigError: the head, the assigner or the loss is not as published.
    """
    backbone, is_tood = config.backbone, config.head.kind == "t_head"
    published = replace(
        config,
        backbone=replace(backbone, depth=50, norm="frozen_batch"),
        neck=replace(config.neck, norm="none"),
        detect=replace(config.detect, clip_boxes=False),
    )
    if not is_tood:  # its head is replaced below
        tood = Config()
        published = replace(published, head=tood.head, assigner=tood.assigner, loss=tood.loss)
    settings = model_dict(published, classes)
    group_norm = {"type": "GN", "num_groups": config.head.norm_groups, "requires_grad": True}
    settings["data_preprocessor"] = {
        "type": "DetDataPreprocessor",
        "mean": list(config.data.pixel_mean),
        "std": list(config.data.pixel_std),
        "bgr_to_rgb": True,
        "pad_size_divisor": PADDING_MULTIPLE,
    }
    settings["backbone"] |= {
        "depth": backbone.depth,
        "norm_cfg": group_norm if backbone.norm == "group" else {"type": "BN", "requires_grad": True},
        "norm_eval": backbone.norm == "frozen_batch",
    }
    expansion = 4 if backbone.depth >= 50 else 1
    settings["neck"]["in_channels"] = [expansion * backbone.width * 2**i for i in range(4)]
    if config.neck.norm == "group":
        settings["neck"]["norm_cfg"] = group_norm
    if is_tood:
        settings["train_cfg"]["initial_epoch"] = int(config.assigner.warmup_epochs)
    else:
        settings |= _atss(config, classes, group_norm)
    return settings


def _atss(config: Config, classes: int, group_norm: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in which ATSS differs from TOOD."""
    head = config.head
    return {
        "type": "ATSS",
        "bbox_head": {
            "type": "ATSSHead",
            "num_classes": classes,
            "in_channels": config.neck.channels,
            "feat_channels": head.channels,
            "stacked_convs": head.num_convs,
            "norm_cfg": group_norm,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "ratios": [1.0],
                "octave_base_scale": head.anchor_scale,
                "scales_per_octave": 1,
                "strides": [8, 16, 32, 64, 128],
            },
            "bbox_coder": {
                "type": "DeltaXYWHBBoxCoder",
                "target_means": [0.0] * 4,
                "target_stds": list(head.delta_stds),
            },
            "loss_cls": {
                "type": "FocalLoss",
                "use_sigmoid": True,
                "gamma": config.loss.focal_gamma,
                "alpha": config.loss.focal_alpha,
            },
            "loss_bbox": {"type": "GIoULoss", "loss_weight": config.loss.box_loss_weight},
            "loss_centerness": {
                "type": "CrossEntropyLoss",
                "use_sigmoid": True,
                "loss_weight": config.loss.quality_loss_weight,
            },
        },
        "train_cfg": {
            "assigner": {"type": "ATSSAssigner", "topk": config.assigner.atss_topk},
            "allowed_border": -1,
            "pos_weight": -1,
        },
    }


def optimizer_settings(config: Config) -> dict[str, Any]:
    """Return mmengine's `optim_wrapper`: SGD, with the weight decay on every parameter."""
    options = config.optimizer
    sgd = {
        "type": "SGD",
        "lr": scaled_learning_rate(options, config.train.batch_size),
        "momentum": options.momentum,
        "weight_decay": options.weight_decay,
    }
    clip = None if options.clip_norm is None else {"max_norm": options.clip_norm}
    return {"type": "OptimWrapper", "optimizer": sgd, "clip_grad": clip}


def schedule_settings(config: Config, epoch_steps: int) -> list[dict[str, Any]]:
    """Return mmengine's `param_scheduler`, whose rates are those of `learning_rate_schedule` at each step."""
    options, total = config.optimizer, epoch_steps * config.train.epochs
    schedule: list[dict[str, Any]] = []
    if options.warmup_steps:  # mmengine reaches the full rate at the step end − 1
        warm_up = {"type": "LinearLR", "start_factor": options.warmup_factor, "begin": 0}
        schedule.append({**warm_up, "end": options.warmup_steps + 1, "by_epoch": False})
    if options.schedule == "cosine":
        cosine = {"type": "CosineAnnealingLR", "T_max": total, "eta_min": 0.0, "begin": 0, "end": total}
        return [*schedule, {**cosine, "by_epoch": False}]
    steps = [epoch * epoch_steps for epoch in options.step_epochs]
    return [*schedule, {"type": "MultiStepLR", "milestones": steps, "gamma": options.step_factor, "by_epoch": False}]
