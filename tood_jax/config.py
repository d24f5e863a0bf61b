"""The one typed schema of a run. A file in configs/ is a flat function that returns a `Config`.

Every field carries its meaning, unit and range; `--help` prints them, and every field can be set on the command
line as `--group.field=value`. Nothing here imports JAX.

    to_dict / from_dict, save_config / load_config_json   exact round trips through plain JSON
    check                                                 what can't work: one sentence a problem, as a ConfigError
    warnings                                              what is legal and probably not meant
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tood_jax.typed import ConfigError, from_plain, to_plain


@dataclass(frozen=True)
class BackboneConfig:
    """ResNet / ResNeXt, torchvision layout (the stride sits in the 3×3 convolution)."""

    depth: Literal[18, 34, 50, 101] = 50
    """Layers: 18 and 34 are built of basic blocks, 50 and 101 of bottlenecks."""
    groups: int = 1
    """Groups of the 3×3 convolutions (64 in X101-64x4d)."""
    width_per_group: int = 64
    """Channels a group in the bottleneck of stage 1 (4 in X101-64x4d)."""
    width: int = 64
    """Channels of the stem, and base width of stage 1; less for small networks."""
    norm: Literal["frozen_batch", "batch", "group"] = "frozen_batch"
    """frozen_batch: running statistics, trained affine (for pre-trained weights); batch: statistics over the global
    batch; group: GroupNorm (for training from scratch with small batches)."""
    frozen_stages: int = 1
    """-1 trains everything, 0 freezes the stem, 1 the stem and stage 1, …, 4 the whole backbone."""


@dataclass(frozen=True)
class NeckConfig:
    """Feature pyramid P3–P7."""

    channels: int = 256
    """Channels of every level."""
    norm: Literal["none", "group"] = "none"
    """none: as published; group: GroupNorm after each convolution helps when training from scratch."""


@dataclass(frozen=True)
class HeadConfig:
    """T-head (paper section 3.1)."""

    channels: int = 256
    """Channels of the tower."""
    num_convs: int = 6
    """N, the interactive convolutions."""
    norm_groups: int = 32
    """Groups of the head's (and the neck's and backbone's) GroupNorm."""
    anchor_type: Literal["anchor_free", "anchor_based"] = "anchor_free"
    """anchor_free: distances from the cell's point; anchor_based: deltas from a square anchor."""
    anchor_scale: float = 8.0
    """Side of the anchor in strides (ATSS assignment uses it in both types)."""


@dataclass(frozen=True)
class LearningConfig:
    """Task alignment learning (paper section 3.2) and its warm-up."""

    warmup_epochs: float = 4.0
    """Epochs assigned by ATSS before the task-aligned phase begins; 0 for none."""
    atss_topk: int = 9
    """ATSS: nearest cells a level that are candidates."""
    topk: int = 13
    """m: best-aligned cells an object that may become positive."""
    alpha: float = 1.0
    """Exponent of the score in the alignment metric."""
    beta: float = 6.0
    """Exponent of the IoU in the alignment metric."""
    box_loss_weight: float = 2.0
    """Weight of the GIoU loss beside the classification loss."""


@dataclass(frozen=True)
class SplitConfig:
    """One COCO-format split."""

    images: str = ""
    """Folder of the image files."""
    annotations: str = ""
    """COCO instances JSON."""


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are brought to the canvas."""

    train: SplitConfig = field(default_factory=SplitConfig)
    val: SplitConfig = field(default_factory=SplitConfig)
    train_short_side: tuple[int, int] = (800, 800)
    """Range from which an image's short side is drawn in training, pixels (equal numbers: no multi-scale)."""
    eval_short_side: int = 800
    """Short side in evaluation, pixels."""
    max_long_side: int = 1333
    """The long side never exceeds this, pixels (the ratio is kept)."""
    buckets: tuple[tuple[int, int], ...] = ((800, 1088), (800, 1344), (1088, 800), (1344, 800))
    """Canvas sizes (height, width), multiples of 32. An image goes to the smallest that holds it; the canvas of the
    largest height and width catches the rest. Each size is one compilation. (--data.buckets=800x1088,1088x800)"""
    flip_probability: float = 0.5
    """Chance of a left-right flip in training."""
    vertical_flip_probability: float = 0.0
    """Chance of an up-down flip in training (for pictures without an up, such as microscopy)."""
    max_objects: int = 100
    """Objects kept an image (padded to this number); a truncation is counted and reported."""
    broken_images: Literal["fail", "skip"] = "fail"
    """A missing or unreadable image file: stop and name it, or leave it out and count it."""
    workers: int = 0
    """Worker processes that decode; 0 decodes in threads of the training process."""
    threads: int = 2
    """Decoding threads a process."""
    prefetch_batches: int = 4
    """Batches held ready ahead of the step."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Subtracted from RGB values 0–255, on the device."""
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """RGB values are divided by this after the mean is taken off."""


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD with momentum and its schedule."""

    learning_rate: float = 0.01
    """Peak learning rate for a global batch of `learning_rate_batch` images; scaled linearly to the batch in use."""
    learning_rate_batch: int = 16
    """Global batch, in images, that `learning_rate` is stated for."""
    momentum: float = 0.9
    """Share of the last update that goes into the next, 0–1."""
    weight_decay: float = 1e-4
    """On every trained parameter, as published."""
    warmup_steps: int = 500
    """Steps of linear warm-up; 0 for none."""
    warmup_factor: float = 0.001
    """The warm-up starts at this share of the peak."""
    schedule: Literal["step", "cosine"] = "step"
    """After the warm-up: step drops the rate at `step_epochs`; cosine lets it fall to 0 over the whole run."""
    step_epochs: tuple[int, ...] = (8, 11)
    """Epochs at whose start the rate is multiplied by `step_factor` (schedule = step)."""
    step_factor: float = 0.1
    """The rate keeps this share at each of `step_epochs`."""
    clip_norm: float | None = None
    """Clip the global gradient norm to this; None for no clipping."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights and evaluate it (0.999, say); None for none."""


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large, how often."""

    epochs: int = 12
    """Passes over the training images."""
    batch_size: int = 16
    """Images a step, over all devices and processes."""
    accumulate_steps: int = 1
    """The batch is worked off in this many parts, one after the other, to save memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, scores, boxes, assignment and losses stay in float32."""
    seed: int = 0
    """Of the initial weights, the order of images and their augmentation."""
    eval_every_epochs: int = 1
    """Evaluate after this many epochs, and always after the last; 0 evaluates only at the end."""
    eval_batch_size: int = 16
    """Images a step in evaluation, over all devices and processes."""
    checkpoint_every_steps: int = 1000
    """Save after this many steps, and at each evaluation and the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; the best one (by AP) is kept besides."""
    log_every_steps: int = 50
    """Steps between two lines of the log."""
    workdir: str = ""
    """Folder of logs and checkpoints; empty means runs/NAME."""


@dataclass(frozen=True)
class DetectConfig:
    """Post-processing, on the device."""

    score_threshold: float = 0.05
    """Detections at or below this score are dropped."""
    candidates_per_level: int = 1000
    """Best (cell, class) pairs kept a level before NMS."""
    nms_iou: float = 0.6
    """Two boxes of one class with a larger IoU: the lower score goes."""
    max_detections: int = 100
    """Detections kept an image, best first (COCO counts at most 100)."""
    clip_boxes: bool = False
    """Clip boxes to the image (the authors' code does, mmdetection does not)."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = "tood"
    """Names the run's folder."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)

    @property
    def workdir(self) -> str:
        """Folder of this run's logs and checkpoints."""
        return self.train.workdir or f"runs/{self.name}"


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested plain dicts, lists, numbers, text, booleans and None, ready for JSON."""
    plain: dict[str, Any] = to_plain(config)
    return plain


def from_dict(values: dict[str, Any]) -> Config:
    """The config of `to_dict`'s output. A field that is missing keeps its default.

    Raises ConfigError for an unknown or ill-typed field: its full name, its value, what was expected, the nearest name.
    """
    config: Config = from_plain(Config, values)
    return config


def save_config(config: Config, path: str | os.PathLike[str]) -> None:
    """Write a config as indented JSON, making the folder; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def load_config_json(path: str | os.PathLike[str]) -> Config:
    """Read a config that `save_config` wrote. Raises ConfigError, naming the file, if it can't be read."""
    try:
        return from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read as a config in JSON: {error}.") from error


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {  # what a number must be, how to tell, and of which fields
    "at least 1": (
        lambda x: x >= 1,
        "backbone.groups backbone.width_per_group backbone.width neck.channels head.channels head.num_convs "
        "head.norm_groups learning.atss_topk learning.topk data.train_short_side data.eval_short_side "
        "data.max_long_side data.max_objects data.threads data.prefetch_batches optimizer.learning_rate_batch "
        "train.epochs train.batch_size train.accumulate_steps train.eval_batch_size train.checkpoint_every_steps "
        "train.keep_checkpoints train.log_every_steps detect.candidates_per_level detect.max_detections",
    ),
    "at least 0": (
        lambda x: x >= 0,
        "learning.warmup_epochs learning.alpha learning.beta learning.box_loss_weight data.workers "
        "optimizer.weight_decay optimizer.warmup_steps train.seed train.eval_every_epochs",
    ),
    "above 0": (lambda x: x > 0, "head.anchor_scale data.pixel_std optimizer.learning_rate optimizer.clip_norm"),
    "from 0 to 1": (
        lambda x: 0 <= x <= 1,
        "data.flip_probability data.vertical_flip_probability detect.score_threshold detect.nms_iou",
    ),
    "above 0 and at most 1": (lambda x: 0 < x <= 1, "optimizer.warmup_factor optimizer.step_factor"),
    "at least 0 and below 1": (lambda x: 0 <= x < 1, "optimizer.momentum"),
    "above 0 and below 1": (lambda x: 0 < x < 1, "optimizer.ema_decay"),
    "from -1 to 4": (lambda x: -1 <= x <= 4, "backbone.frozen_stages"),
    "a multiple of 32 and at least 32": (lambda x: x >= 32 and x % 32 == 0, "data.buckets"),
    "finite": (math.isfinite, "data.pixel_mean"),
}


def check(config: Config) -> None:
    """Raise ConfigError, one sentence and line a problem, if the config can't work.

    Looks at types, at ranges and at how the fields fit each other; not at files, devices or the data set.
    """
    config = from_dict(to_dict(config))
    problems = list(_range_problems(config)) or [*_network_problems(config), *_run_problems(config)]
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
    normed = {"head.channels": head.channels}
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
    if 0 < train.epochs <= config.learning.warmup_epochs:
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
    if config.detect.score_threshold > 0.05:
        found.append(f"detect.score_threshold = {config.detect.score_threshold:g} above 0.05 lowers AP.")
    if config.detect.max_detections < 100:
        found.append(f"detect.max_detections = {config.detect.max_detections} below 100 lowers AP and AR100.")
    return found
