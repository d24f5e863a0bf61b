"""The one typed schema of a run. A file in configs/ is a flat function that returns a `Config`.

Every field carries its meaning, unit and range; `--help` prints them, and every field can be set on the command
line as `--group.field=value`. Nothing here imports JAX.

    to_dict / from_dict, save_config / load_config_json   exact round trips through plain JSON

What can't work, and what is probably not meant, is judged in `config_rules.py`.
"""

import json
import os
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
    deformable_stages: tuple[int, ...] = ()
    """Stages (2–4; stage k makes C(k+1)) whose bottlenecks have a deformable 3×3 convolution; (2, 3, 4) is c3–c5."""


@dataclass(frozen=True)
class NeckConfig:
    """Feature pyramid P3–P7."""

    channels: int = 256
    """Channels of every level."""
    norm: Literal["none", "group"] = "none"
    """none: as published; group: GroupNorm after each convolution helps when training from scratch."""
    extra_levels: Literal["on_output", "on_input"] = "on_output"
    """P6 comes from P5 (on_output) or from C5 (on_input: RetinaNet, FoveaBox)."""
    relu_before_p7: bool = False
    """A ReLU between P6 and P7 (FCOS)."""


@dataclass(frozen=True)
class HeadConfig:
    """The head, shared by all levels: its network, what a cell's raw numbers mean, and the anchors behind them."""

    kind: Literal["t_head", "parallel"] = "t_head"
    """t_head: one interactive tower and two task decompositions (paper section 3.1); parallel: two separate towers."""
    channels: int = 256
    """Channels of the tower."""
    num_convs: int = 6
    """N, the interactive convolutions; of a parallel head, the convolutions of each tower (4 as published)."""
    norm: Literal["group", "none"] = "group"
    """Normalisation in the tower; none is for the parallel head only (RetinaNet, FoveaBox)."""
    norm_groups: int = 32
    """Groups of the head's (and the neck's and backbone's) GroupNorm."""
    tower_bias: bool = False
    """The tower's convolutions have a bias (parallel head; FCOS, and those without a norm)."""
    deformable_convs: int = 0
    """So many first convolutions of the tower are deformable, with 4 deformable groups (T-head; 2 where published)."""
    alignment: bool = True
    """Align the predictions explicitly: scores √(P·M), sides sampled at learnt offsets (paper equations 4 and 5)."""
    quality: Literal["none", "centerness", "iou"] = "none"
    """A further branch of the regression features that foretells centerness (FCOS, ATSS) or IoU (PAA, OTA)."""
    box_coding: Literal["exp_distances", "relu_distances", "binned_distances", "anchor_deltas"] = "exp_distances"
    """What a cell's raw numbers say of its box: distances from its point to the four sides, by exp, by ReLU or as the
    mean of a distribution over bins (GFL); or deltas from its anchor."""
    distance_unit: float = 1.0
    """exp_distances: strides that a raw value of 0 stands for (2 in FoveaBox)."""
    distance_bins: int = 16
    """binned_distances: the largest distance in strides; the distribution has one bin more."""
    delta_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    """anchor_deltas: a raw value of 1 stands for this share of the anchor's side (x, y) or of its logarithm (w, h)."""
    level_scales: bool = True
    """Each level multiplies the raw numbers by a learnt scale."""
    point_offset: float = 0.0
    """Where a cell's point lies, in strides from its corner: 0 as in TOOD and ATSS, 0.5 as in FCOS and FoveaBox."""
    anchor_scale: float = 8.0
    """Side of the (smallest) anchor in strides; ATSS assignment uses anchors whatever the coding."""
    anchor_octaves: int = 1
    """Anchor sizes a cell, each 2^(1/octaves) larger than the one before (3 in RetinaNet)."""
    anchor_ratios: tuple[float, ...] = (1.0,)
    """Height over width of a cell's anchors."""

    @property
    def anchors_per_cell(self) -> int:
        """Predictions a cell makes."""
        return self.anchor_octaves * len(self.anchor_ratios)


@dataclass(frozen=True)
class LearningConfig:
    """Which cells learn which object."""

    assigner: Literal["task_aligned", "atss", "max_iou", "center_sampling", "fovea", "paa", "simota", "ota"] = (
        "task_aligned"
    )
    """task_aligned: TAL (paper section 3.2) after a warm-up with ATSS; the others are the paper's rivals: max_iou
    (RetinaNet), center_sampling (FCOS), fovea (FoveaBox), and ATSS, PAA, SimOTA and OTA."""
    warmup_epochs: float = 4.0
    """task_aligned: epochs assigned by ATSS before the task-aligned phase begins; 0 for none."""
    atss_topk: int = 9
    """ATSS and PAA: cells a level that are candidates of an object."""
    topk: int = 13
    """m: best-aligned cells an object that may become positive."""
    alpha: float = 1.0
    """Exponent of the score in the alignment metric."""
    beta: float = 6.0
    """Exponent of the IoU in the alignment metric."""
    positive_iou: float = 0.5
    """max_iou: anchors from this IoU on are positive (PAA begins with 0.1)."""
    negative_iou: float = 0.4
    """max_iou: anchors below this IoU are background; between the two they count for nothing."""
    center_radius: float = 1.5
    """center_sampling, simota, ota: candidates lie within so many strides of the object's centre (simota, ota: 2.5)."""


@dataclass(frozen=True)
class LossConfig:
    """What is learnt there. The ATSS warm-up of task_aligned always learns by focal loss, targets of 1 and boxes
    weighted by centerness; this is for what follows, and for all other assigners."""

    cls: Literal["quality_focal", "focal"] = "quality_focal"
    """Classification loss."""
    cls_target: Literal["alignment", "iou", "one"] = "alignment"
    """Target at an object's class: t̂ (paper equation 7), the IoU of the predicted box (GFL), or 1."""
    focal_alpha: float = 0.25
    """Focal loss: weight of the positives (negatives: 1 − α)."""
    focal_gamma: float = 2.0
    """Exponent of the focusing factor, of both losses."""
    normalizer: Literal["targets", "positives", "positives_per_image", "positives_and_images"] = "targets"
    """The classification loss is divided by the sum of its targets, by the number of positives, by the same with at
    least 1 an image, or by positives + images (FoveaBox)."""
    box: Literal["giou", "l1", "smooth_l1"] = "giou"
    """giou: of the boxes; l1 and smooth_l1 (β = 0.11): of the raw numbers (RetinaNet, FoveaBox)."""
    box_weight: Literal["alignment", "centerness", "iou", "score", "one"] = "alignment"
    """A positive's share in the box loss: t̂, centerness, IoU of the predicted box, its best score (GFL), or equal."""
    box_loss_weight: float = 2.0
    """Weight of the box loss beside the classification loss."""
    quality_loss_weight: float = 1.0
    """Weight of the quality branch's cross entropy."""
    distribution_loss_weight: float = 0.25
    """Weight of the distribution focal loss (binned_distances)."""


@dataclass(frozen=True)
class SplitConfig:
    """One split of a data set: a COCO directory (images and annotations), or in its place records or tfds. Paths may
    begin with gs:// and the like (docs/data.md)."""

    images: str = ""
    """Folder of the image files."""
    annotations: str = ""
    """COCO instances JSON."""
    records: str = ""
    """Instead: a folder that `python -m tood_jax.cli.to_array_record` wrote."""
    tfds: str = ""
    """Instead: the folder of a data set that TensorFlow Datasets prepared as ArrayRecord (…/coco/2017/1.1.0)."""
    tfds_split: str = ""
    """Of tfds: its split, such as train, validation or train[:10%]."""

    @property
    def place(self) -> str:
        """Names the split in messages."""
        return self.records or (f"{self.tfds} ({self.tfds_split})" if self.tfds else self.annotations)


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
    scaled_decoding: bool = False
    """Decode a JPEG that is twice as large as needed, or more, at a half, quarter or eighth of its size: faster for
    photographs of many megapixels; pixels are means instead of samples, boxes the same. COCO's images are too small."""
    workers: int = 0
    """Worker processes that decode; 0 decodes in threads of the training process."""
    threads: int = 2
    """Decoding threads a process."""
    prefetch_batches: int = 4
    """Batches held ready ahead of the step."""
    timeout_seconds: float = 300.0
    """A batch that takes longer ends the run and names the images that were being read; 0 waits for ever."""
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
    remat: Literal["none", "blocks"] = "none"
    """blocks: keep only the inputs of residual blocks and of the head's layers (a level's, where levels aren't packed)
    for the backward pass and compute the rest again, for less memory and more work."""
    scan_blocks: bool = False
    """Loop over equal residual blocks, and over the equal layers of a packed T-head, instead of writing each out: the
    same numbers, less to compile (for deep backbones on TPUs); slow on CPUs."""
    pack_levels: Literal["auto", "always", "never"] = "auto"
    """Run T-head on one canvas that holds all levels instead of level by level: the same numbers, less to compile.
    auto: on TPUs only. Never with parallel.space > 1."""
    compiler_options: tuple[str, ...] = ()
    """Options of XLA for the training and the evaluation step, name=value each; on TPUs two are set that stand behind
    these (docs/pods.md)."""
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
class ParallelConfig:
    """How the devices share the work. Without any setting, all devices split the batch."""

    space: int = 1
    """So many devices share an image: its height is split over them. For a batch smaller than the number of devices."""
    split_state: bool = False
    """Split parameters, momentum and moving average over the devices too, each holding a share (ZeRO / FSDP), for
    less memory and more traffic."""


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
    """Clip boxes to the image (the authors' TOOD does, mmdetection's does not; its other detectors do)."""
    clip_margin: float = 0.0
    """clip_boxes: leave so many pixels of the canvas at the right and the bottom (FoveaBox: 1)."""
    score_voting: bool = False
    """After NMS, replace each box by the mean of its class's candidates around it, by score and IoU (PAA)."""
    quality_fusion: Literal["product", "geometric_mean"] = "product"
    """How a quality branch enters the final score: score · quality, or its square root (PAA, OTA)."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = "tood"
    """Names the run's folder."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)

    @property
    def compiler_options(self) -> dict[str, str | bool]:
        """train.compiler_options by name; true and false as bools, for XLA itself does not read the words."""
        words = {"true": True, "false": False}
        pairs = (option.split("=", 1) for option in self.train.compiler_options)
        return {name: words.get(value.lower(), value) for name, value in pairs}

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
