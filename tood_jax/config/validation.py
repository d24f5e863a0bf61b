"""Checks of a config: the ranges that `schema.py` states beside the fields, and conditions across fields.

check           raises ConfigError with one sentence for each problem
warnings        settings that are valid but probably not intended
stored_config   the config in a checkpoint or a file of weights, which is untrusted input
"""

import dataclasses
import re
import typing
from collections.abc import Iterator
from typing import Any

from tood_jax.config import Config, from_dict, to_dict
from tood_jax.config.conversion import ConfigError
from tood_jax.config.ranges import Range
from tood_jax.untrusted.printable import printable

# XLA options can write files, load libraries and run programs. A stored config may only set these.
_SAFE_OPTIONS = (
    "xla_allow_excess_precision",
    "xla_backend_optimization_level",
    "xla_cpu_enable_fast_math",
    "xla_cpu_enable_fast_min_max",
    "xla_cpu_use_fusion_emitters",
    "xla_gpu_autotune_level",
    "xla_gpu_deterministic_ops",
    "xla_gpu_enable_latency_hiding_scheduler",
    "xla_gpu_enable_triton_gemm",
    "xla_gpu_exclude_nondeterministic_ops",
    "xla_tpu_enable_latency_hiding_scheduler",
    "xla_tpu_run_space_to_batch",
    "xla_tpu_run_space_to_batch_on_new_platforms",
    "xla_tpu_scoped_vmem_limit_kib",
)
_SAFE_VALUE = re.compile(r"(?i:true|false)|\d{1,9}")
_MAX_ITEMS = 100  # of a list
_MAX_CHARACTERS = 4096  # of a text; what Linux allows a path


def check(config: Config) -> None:
    """Check types, ranges and conditions across fields; not files, devices or the data set.

    Raises:
        ConfigError: one line with one sentence for each problem.
    """
    config = from_dict(to_dict(config))
    problems = [*_field_problems(config)] or [
        *_network_problems(config),
        *_composition_problems(config),
        *_run_problems(config),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def stored_config(values: Any, where: object) -> tuple[Config, list[str]]:
    """Return the config stored in a checkpoint, without the options that only the command line may set.

    Args:
        values: what the checkpoint holds as its config, in any form.
        where: name of the checkpoint in messages.

    Returns:
        (config, notes for the user about old names of fields and about each option that is left out).

    Raises:
        ConfigError: a field is unknown, has the wrong type or is out of range.
    """
    notes: list[str] = []
    try:
        config = from_dict(
            values, lambda renamed: notes.append(f"the config in {where} has old names of fields: {renamed}.")
        )
        if problems := [*_field_problems(config)]:
            raise ConfigError(" ".join(problems))
    except ConfigError as error:
        raise ConfigError(f"The config stored in {where} can't be used: {error}") from None
    options = config.train.compiler_options
    kept = tuple(option for option in options if _is_safe(option))
    notes += [
        f"the compiler option {printable(option)} stored in {where} is not used, because it is not among those that a "
        "checkpoint may set; give --train.compiler_options on the command line if you want it."
        for option in options
        if option not in kept
    ]
    if hook := config.data.augment_hook:
        notes.append(
            f"data.augment_hook = {printable(hook)} stored in {where} is not used, because it runs code; to rebuild "
            "the batches of training with it, give --data.augment_hook on the command line."
        )
    train = dataclasses.replace(config.train, compiler_options=kept)
    return dataclasses.replace(config, train=train, data=dataclasses.replace(config.data, augment_hook="")), notes


def _is_safe(option: str) -> bool:
    name, _, value = option.partition("=")
    return name in _SAFE_OPTIONS and _SAFE_VALUE.fullmatch(value) is not None


def _field_problems(config: Config) -> Iterator[str]:
    """Fields out of their range, and lists and texts longer than any run needs."""
    for name, value, allowed in _fields(config):
        items = [*_flat(value)]
        if isinstance(value, tuple) and len(value) > _MAX_ITEMS:
            yield f"{name} has {len(value)} values; more than {_MAX_ITEMS} are not possible."
        if any(isinstance(item, str) and len(item) > _MAX_CHARACTERS for item in items):
            yield f"{name} has a text of more than {_MAX_CHARACTERS} characters."
        if allowed is not None and not all(item in allowed for item in items if item is not None):
            yield f"{name} = {printable(repr(value), 100)} must be {allowed}."


def _fields(group: Any, prefix: str = "") -> Iterator[tuple[str, Any, Range | None]]:
    """Full name, value and range (if it has one) of each field."""
    for name, hint in typing.get_type_hints(type(group), include_extras=True).items():
        value = getattr(group, name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            ranges = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)]
            yield f"{prefix}{name}", value, ranges[0] if ranges else None


def _flat(value: Any) -> Iterator[Any]:
    """The items of nested tuples."""
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
    """Heads, assigners and losses that can't be combined."""
    head, assigner, loss = config.head, config.assigner, config.loss
    if head.kind == "t_head" and (head.norm != "group" or head.tower_bias):
        yield "head.kind = t_head has GroupNorm and no bias in its tower: set norm = group and tower_bias = False."
    if head.kind == "parallel" and head.deformable_convs:
        yield f"head.deformable_convs = {head.deformable_convs} is for head.kind = t_head; set 0 for a parallel head."
    if head.kind == "parallel" and config.train.pack_levels == "always":
        yield "train.pack_levels = always is for head.kind = t_head; set auto for a parallel head."
    if config.parallel.space > 1 and config.train.pack_levels == "always":
        yield "train.pack_levels = always needs parallel.space = 1: the rows of a packed canvas can't be split evenly."
    if head.deformable_convs > head.num_convs:
        yield f"head.deformable_convs = {head.deformable_convs} exceeds head.num_convs = {head.num_convs}."
    if head.deformable_convs and head.channels % 4:
        yield f"head.channels = {head.channels} must be a multiple of the 4 deformable groups."
    if head.anchors_per_location > 1:
        if head.kind == "t_head" or head.alignment:
            yield (
                f"{head.anchors_per_location} anchors per location (head.anchor_octaves · head.anchor_ratios) need "
                f"head.kind = parallel and head.alignment = False."
            )
        if assigner.kind != "max_iou":
            yield (
                f"{head.anchors_per_location} anchors per location (head.anchor_octaves · head.anchor_ratios) need "
                f"assigner.kind = max_iou; {assigner.kind} takes one per location."
            )
    if assigner.kind != "task_aligned":
        for name, value in (("cls_target", loss.cls_target), ("box_weight", loss.box_weight)):
            if value == "alignment":
                yield f"loss.{name} = alignment needs assigner.kind = task_aligned, not {assigner.kind}."
    if loss.box in ("l1", "smooth_l1") and (head.alignment or head.box_coding == "binned_distances"):
        yield (
            f"loss.box = {loss.box} is a loss of box logits: it needs head.alignment = False and a head.box_coding "
            f"other than binned_distances; or set loss.box = giou."
        )
    if assigner.negative_iou > assigner.positive_iou:
        yield (
            f"assigner.negative_iou = {assigner.negative_iou} must not exceed "
            f"assigner.positive_iou = {assigner.positive_iou}."
        )


def _run_problems(config: Config) -> Iterator[str]:
    data, optimizer, train = config.data, config.optimizer, config.train
    if not config.name or "/" in config.name or "\\" in config.name or config.name in (".", ".."):
        yield f"name = {config.name!r} must be a file name without slashes: the run's folder has this name."
    low, high = data.train_short_side
    if low > high:
        yield f"data.train_short_side = {data.train_short_side} must be (smallest, largest)."
    short = max(high, data.eval_short_side)
    if short > data.max_long_side:
        yield f"data.max_long_side = {data.max_long_side} must be at least the largest short side, {short}."
    if not data.buckets:
        yield "data.buckets = () must have at least one canvas (height, width)."
    else:
        largest = (max(height for height, _ in data.buckets), max(width for _, width in data.buckets))
        if min(largest) < short:
            yield f"data.buckets: the largest height and width, {largest}, must reach the largest short side, {short}."
    module, _, function = data.augment_hook.partition(":")
    if data.augment_hook and not (function.isidentifier() and all(map(str.isidentifier, module.split(".")))):
        yield f"data.augment_hook = {printable(data.augment_hook)} must be module:function, such as mine:augment."
    if data.train.folder and data.train.folder == data.val.folder and data.train.folder_seed != data.val.folder_seed:
        yield "data.train.folder_seed and data.val.folder_seed must be equal, or images of val are trained on."
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
            f"optimizer.step_epochs = {steps} must increase and lie between 0 and train.epochs = {train.epochs} "
            f"(for a shorter run, set both)."
        )


def warnings(config: Config) -> list[str]:
    """Return one sentence for each setting that is valid but probably not intended."""
    backbone, optimizer, train, found = config.backbone, config.optimizer, config.train, []
    rate = optimizer.learning_rate * train.batch_size / optimizer.learning_rate_batch
    if rate > 0.1:
        found.append(
            f"The learning rate scaled to {train.batch_size} images is {rate:g}; above 0.1 training usually diverges."
        )
    if optimizer.learning_rate / optimizer.learning_rate_batch > 0.005:
        found.append(
            f"optimizer.learning_rate = {optimizer.learning_rate:g} for {optimizer.learning_rate_batch} images is more "
            f"than eight times the published 0.01 for 16: training collapses easily."
        )
    if config.assigner.kind == "task_aligned" and 0 < train.epochs <= config.assigner.warmup_epochs:
        found.append(
            f"assigner.warmup_epochs = {config.assigner.warmup_epochs:g} covers all {train.epochs} epochs: "
            f"the task-aligned phase never starts."
        )
    if config.data.augmentation in ("strong", "aerial") and train.epochs <= config.data.closing_epochs:
        found.append(
            f"data.closing_epochs = {config.data.closing_epochs} covers all {train.epochs} epochs: no image "
            f"becomes part of a mosaic."
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
            f"each thread prepares a whole batch ahead, so some are idle; raise data.prefetch_batches too."
        )
    if config.detect.score_threshold > 0.05:
        found.append(f"detect.score_threshold = {config.detect.score_threshold:g} above 0.05 lowers AP.")
    if config.detect.max_detections < 100:
        found.append(f"detect.max_detections = {config.detect.max_detections} below 100 lowers AP and AR100.")
    return found
