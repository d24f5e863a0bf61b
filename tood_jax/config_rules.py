"""What a config must satisfy, and what is legal and probably not meant; the schema itself is `config.py`.

check       what can't work: one sentence a problem, as a ConfigError
warnings    what is legal and probably not meant
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from tood_jax.config import Config, from_dict, to_dict
from tood_jax.typed import ConfigError

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {  # what a number must be, how to tell, and of which fields
    "at least 1": (
        lambda x: x >= 1,
        "backbone.groups backbone.width_per_group backbone.width neck.channels head.channels head.num_convs "
        "head.norm_groups learning.atss_topk learning.topk data.train_short_side data.eval_short_side "
        "data.max_long_side data.max_objects data.threads data.prefetch_batches optimizer.learning_rate_batch "
        "train.epochs train.batch_size train.accumulate_steps train.eval_batch_size train.checkpoint_every_steps "
        "train.keep_checkpoints train.log_every_steps detect.candidates_per_level detect.max_detections "
        "head.distance_bins head.anchor_octaves parallel.space",
    ),
    "at least 0": (
        lambda x: x >= 0,
        "learning.warmup_epochs learning.alpha learning.beta loss.box_loss_weight loss.quality_loss_weight "
        "loss.distribution_loss_weight loss.focal_gamma head.deformable_convs detect.clip_margin data.workers "
        "data.timeout_seconds optimizer.weight_decay optimizer.warmup_steps train.seed train.eval_every_epochs",
    ),
    "above 0": (
        lambda x: x > 0,
        "head.anchor_scale head.anchor_ratios head.distance_unit head.delta_stds learning.center_radius "
        "data.pixel_std optimizer.learning_rate optimizer.clip_norm",
    ),
    "from 0 to 1": (
        lambda x: 0 <= x <= 1,
        "data.flip_probability data.vertical_flip_probability detect.score_threshold detect.nms_iou "
        "head.point_offset learning.positive_iou learning.negative_iou loss.focal_alpha",
    ),
    "above 0 and at most 1": (lambda x: 0 < x <= 1, "optimizer.warmup_factor optimizer.step_factor"),
    "at least 0 and below 1": (lambda x: 0 <= x < 1, "optimizer.momentum"),
    "above 0 and below 1": (lambda x: 0 < x < 1, "optimizer.ema_decay"),
    "from 2 to 4": (lambda x: 2 <= x <= 4, "backbone.deformable_stages"),
    "from -1 to 4": (lambda x: -1 <= x <= 4, "backbone.frozen_stages"),
    "a multiple of 32 and at least 32": (lambda x: x >= 32 and x % 32 == 0, "data.buckets"),
    "finite": (math.isfinite, "data.pixel_mean"),
}


def check(config: Config) -> None:
    """Raise ConfigError, one sentence and line a problem, if the config can't work.

    Looks at types, at ranges and at how the fields fit each other; not at files, devices or the data set.
    """
    config = from_dict(to_dict(config))
    problems = list(_range_problems(config)) or [
        *_network_problems(config),
        *_composition_problems(config),
        *_run_problems(config),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _range_problems(config: Config) -> Iterator[str]:
    for must_be, (holds, names) in _RANGES.items():
        for name in names.split():
            group, leaf = name.split(".")
            value = getattr(getattr(config, group), leaf)
            numbers = [x for x in _flat(value) if x is not None]
            if not all(math.isfinite(x) and holds(x) for x in numbers):
                yield f"{name} = {value!r} must be {must_be}."


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _network_problems(config: Config) -> Iterator[str]:
    backbone, neck, head = config.backbone, config.neck, config.head
    inner = backbone.width * backbone.groups * backbone.width_per_group // 64
    if backbone.depth < 50 and (backbone.groups, backbone.width_per_group) != (1, 64):
        yield (
            f"backbone.depth = {backbone.depth} is built of basic blocks, which have no groups: set groups = 1 "
            f"and width_per_group = 64 (they are {backbone.groups} and {backbone.width_per_group})."
        )
    elif inner < 1 or inner % backbone.groups:
        yield (
            f"backbone.groups = {backbone.groups} must divide the {inner} channels of stage 1's 3×3 convolutions "
            f"(width · groups · width_per_group / 64)."
        )
    if backbone.depth < 50 and backbone.deformable_stages:
        yield f"backbone.deformable_stages = {backbone.deformable_stages} needs bottlenecks: depth 50 or 101."
    normed = {"head.channels": head.channels} if head.norm == "group" else {}
    if neck.norm == "group":
        normed["neck.channels"] = neck.channels
    if backbone.norm == "group":
        normed["backbone.width"] = backbone.width
        if inner != backbone.width:
            normed["backbone.width · groups · width_per_group / 64"] = inner
    for name, channels in normed.items():
        if channels % head.norm_groups:
            yield f"{name} = {channels} must be a multiple of head.norm_groups = {head.norm_groups}."
    if head.channels < 8:
        yield f"head.channels = {head.channels} must be at least 8: the layer attention takes an eighth of them."


def _composition_problems(config: Config) -> Iterator[str]:
    """Heads, assigners and losses that don't fit together."""
    head, learning, loss = config.head, config.learning, config.loss
    if head.kind == "t_head" and (head.norm != "group" or head.tower_bias):
        yield "head.kind = t_head has GroupNorm and no bias in its tower: set norm = group and tower_bias = False."
    if head.kind == "parallel" and head.deformable_convs:
        yield f"head.deformable_convs = {head.deformable_convs} is for head.kind = t_head; a parallel head takes 0."
    if head.kind == "parallel" and config.train.pack_levels == "always":
        yield "train.pack_levels = always is for head.kind = t_head; with a parallel head leave it at auto."
    if config.parallel.space > 1 and config.train.pack_levels == "always":
        yield "train.pack_levels = always needs parallel.space = 1: rows of a packed canvas can't be split evenly."
    if head.deformable_convs > head.num_convs:
        yield f"head.deformable_convs = {head.deformable_convs} exceeds head.num_convs = {head.num_convs}."
    if head.deformable_convs and head.channels % 4:
        yield f"head.channels = {head.channels} must be a multiple of the 4 deformable groups."
    if head.anchors_per_cell > 1:
        if head.kind == "t_head" or head.alignment:
            yield (
                f"{head.anchors_per_cell} anchors a cell (head.anchor_octaves · head.anchor_ratios) need "
                f"head.kind = parallel and head.alignment = False."
            )
        if learning.assigner != "max_iou":
            yield (
                f"{head.anchors_per_cell} anchors a cell (head.anchor_octaves · head.anchor_ratios) need "
                f"learning.assigner = max_iou; {learning.assigner} knows one a cell."
            )
    if learning.assigner != "task_aligned":
        for name, value in (("cls_target", loss.cls_target), ("box_weight", loss.box_weight)):
            if value == "alignment":
                yield f"loss.{name} = alignment needs learning.assigner = task_aligned, not {learning.assigner}."
    if loss.box != "giou" and (head.alignment or head.box_coding == "binned_distances"):
        yield (
            f"loss.box = {loss.box} learns the raw numbers of a cell's own box: it needs head.alignment = False and "
            f"another head.box_coding than binned_distances; or set loss.box = giou."
        )
    if learning.negative_iou > learning.positive_iou:
        yield (
            f"learning.negative_iou = {learning.negative_iou} must not exceed "
            f"learning.positive_iou = {learning.positive_iou}."
        )


def _run_problems(config: Config) -> Iterator[str]:
    data, optimizer, train = config.data, config.optimizer, config.train
    if not config.name or "/" in config.name or "\\" in config.name or config.name in (".", ".."):
        yield f"name = {config.name!r} must be a plain word, for it names the run's folder."
    low, high = data.train_short_side
    if low > high:
        yield f"data.train_short_side = {data.train_short_side} must be (smallest, largest)."
    short = max(high, data.eval_short_side)
    if short > data.max_long_side:
        yield f"data.max_long_side = {data.max_long_side} must be at least the largest short side, {short}."
    if not data.buckets:
        yield "data.buckets = () must name at least one canvas (height, width)."
    else:
        largest = (max(height for height, _ in data.buckets), max(width for _, width in data.buckets))
        if min(largest) < short:
            yield f"data.buckets: the largest height and width, {largest}, must reach the largest short side, {short}."
    for option in train.compiler_options:
        name, equals, value = option.partition("=")
        if not (name.isidentifier() and equals and value):
            yield f"train.compiler_options: {option!r} must be name=value, such as xla_tpu_run_space_to_batch=false."
    if train.batch_size % train.accumulate_steps:
        yield (
            f"train.batch_size = {train.batch_size} must be a multiple of "
            f"train.accumulate_steps = {train.accumulate_steps}."
        )
    steps = optimizer.step_epochs
    if optimizer.schedule == "step" and any(a >= b for a, b in zip((0, *steps), (*steps, train.epochs), strict=True)):
        yield (
            f"optimizer.step_epochs = {steps} must rise and lie between 0 and train.epochs = {train.epochs} "
            f"(with a shorter run, set both)."
        )


def warnings(config: Config) -> list[str]:
    """What is legal and probably not meant, one sentence each; [] for nothing."""
    backbone, optimizer, train, found = config.backbone, config.optimizer, config.train, []
    rate = optimizer.learning_rate * train.batch_size / optimizer.learning_rate_batch
    if rate > 0.1:
        found.append(
            f"The learning rate scaled to {train.batch_size} images is {rate:g}; above 0.1 training usually diverges."
        )
    if config.learning.assigner == "task_aligned" and 0 < train.epochs <= config.learning.warmup_epochs:
        found.append(
            f"learning.warmup_epochs = {config.learning.warmup_epochs:g} covers all {train.epochs} epochs: "
            f"the task-aligned phase never starts."
        )
    part = train.batch_size // train.accumulate_steps
    if backbone.norm == "batch" and part < 4 and backbone.frozen_stages < 4:
        found.append(
            f"backbone.norm = batch takes its statistics from {part} images at a time; "
            f"use group (from scratch) or frozen_batch (pre-trained)."
        )
    if backbone.norm == "group" and backbone.frozen_stages >= 0:
        found.append(
            f"backbone.frozen_stages = {backbone.frozen_stages} freezes layers with GroupNorm, for which the published "
            f"weights don't fit; set -1 when training from scratch."
        )
    if config.data.threads > config.data.prefetch_batches:
        found.append(
            f"data.threads = {config.data.threads} exceeds data.prefetch_batches = {config.data.prefetch_batches}: "
            f"each thread makes a whole batch ahead, so some are idle; raise both."
        )
    if config.detect.score_threshold > 0.05:
        found.append(f"detect.score_threshold = {config.detect.score_threshold:g} above 0.05 lowers AP.")
    if config.detect.max_detections < 100:
        found.append(f"detect.max_detections = {config.detect.max_detections} below 100 lowers AP and AR100.")
    return found
