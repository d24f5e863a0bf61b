"""The one typed schema of a run. A file in configs/ is a flat function that returns a `Config`.

Every field carries its meaning, unit and range; `--help` prints them, and every field can be set on the command
line as `--group.field=value`. Nothing here imports JAX.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal


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
    """GroupNorm after each convolution helps when training from scratch."""


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
    largest height and width catches the rest. Each size is one compilation."""
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
    weight_decay: float = 1e-4
    """On every trained parameter, as published."""
    warmup_steps: int = 500
    """Steps of linear warm-up; 0 for none."""
    warmup_factor: float = 0.001
    """The warm-up starts at this share of the peak."""
    schedule: Literal["step", "cosine"] = "step"
    step_epochs: tuple[int, ...] = (8, 11)
    """Epochs at whose start the rate is multiplied by `step_factor` (schedule = step)."""
    step_factor: float = 0.1
    clip_norm: float | None = None
    """Clip the global gradient norm to this; None for no clipping."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights and evaluate it (0.999, say); None for none."""


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large, how often."""

    epochs: int = 12
    batch_size: int = 16
    """Images a step, over all devices and processes."""
    accumulate_steps: int = 1
    """The batch is worked off in this many parts, one after the other, to save memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, scores, boxes, assignment and losses stay in float32."""
    seed: int = 0
    eval_every_epochs: int = 1
    """Evaluate after this many epochs, and always after the last; 0 evaluates only at the end."""
    eval_batch_size: int = 16
    checkpoint_every_steps: int = 1000
    """Save after this many steps, and at each evaluation and the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; the best one (by AP) is kept besides."""
    log_every_steps: int = 50
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
        return self.train.workdir or f"runs/{self.name}"
