"""The typed schema of a run: every field with its default, range, meaning and unit.

`--help` prints the fields, and the command line sets them as `--group.field=value`. `presets.py` has whole configs,
`serialization.py` the conversion to JSON and back, `validation.py` the checks across fields and the warnings, and
`renames.py` the former names of fields. This module does not import JAX.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tood_jax.config.old_names import accept_old_names
from tood_jax.config.ranges import Range


@dataclass(frozen=True)
class ModelConfig:
    """The network as a whole."""

    padding: Literal["masked", "canvas"] = "masked"
    """masked: the predictions of an image do not depend on the canvas around it, padded to a multiple of 32, nor on the
    other images of the batch (as published code tests, one image at a time); canvas: the padding is computed like the
    image."""


@dataclass(frozen=True)
class BackboneConfig:
    """ResNet / ResNeXt, torchvision layout (the stride is in the 3×3 convolution)."""

    depth: Literal[18, 34, 50, 101] = 50
    """Layers; 18 and 34 have basic blocks, 50 and 101 have bottlenecks."""
    groups: Annotated[int, Range(1, 1_024)] = 1
    """Groups of the 3×3 convolutions (64 in X101-64x4d)."""
    width_per_group: Annotated[int, Range(1, 4_096)] = 64
    """Channels per group in the bottleneck of stage 1 (4 in X101-64x4d)."""
    width: Annotated[int, Range(1, 4_096)] = 64
    """Channels of the stem, and base width of stage 1."""
    norm: Literal["frozen_batch", "batch", "group"] = "frozen_batch"
    """frozen_batch: fixed statistics and a trained affine map (for pre-trained weights); batch: statistics over the
    global batch; group: GroupNorm (for training from scratch with small batches)."""
    frozen_stages: Annotated[int, Range(-1, 4)] = 1
    """-1 trains everything, 0 freezes the stem, 1 the stem and stage 1, …, 4 the whole backbone."""
    deformable_stages: Annotated[tuple[int, ...], Range(2, 4)] = ()
    """Stages (2–4; stage k computes C(k+1)) whose bottlenecks have a deformable 3×3 convolution; (2, 3, 4) is c3–c5."""


@dataclass(frozen=True)
class NeckConfig:
    """Feature pyramid P3–P7."""

    channels: Annotated[int, Range(1, 4_096)] = 256
    """Channels of every level."""
    norm: Literal["none", "group"] = "none"
    """none: as published; group: GroupNorm after each convolution helps when training from scratch."""
    extra_levels: Literal["on_output", "on_input"] = "on_output"
    """P6 is computed from P5 (on_output) or from C5 (on_input: RetinaNet, FoveaBox)."""
    relu_before_p7: bool = False
    """A ReLU between P6 and P7 (FCOS)."""


@dataclass(frozen=True)
class HeadConfig:
    """The head, shared by all levels: its network, the coding of its boxes, and its anchors."""

    kind: Literal["t_head", "parallel"] = "t_head"
    """t_head: one interactive tower and two task decompositions (paper section 3.1); parallel: two separate towers."""
    channels: Annotated[int, Range(1, 4_096)] = 256
    """Channels of the tower."""
    num_convs: Annotated[int, Range(1, 64)] = 6
    """t_head: number N of interactive convolutions; parallel: convolutions of each tower (4 as published)."""
    norm: Literal["group", "none"] = "group"
    """Normalization in the tower; none is for the parallel head only (RetinaNet, FoveaBox)."""
    norm_groups: Annotated[int, Range(1, 4_096)] = 32
    """Groups of GroupNorm in the head, the neck and the backbone."""
    tower_bias: bool = False
    """The tower's convolutions have a bias (parallel head; FCOS, and those without a norm)."""
    deformable_convs: Annotated[int, Range(0, 64)] = 0
    """t_head: number of deformable convolutions at the start of the tower, with 4 deformable groups (2 as
    published)."""
    alignment: bool = True
    """Align the predictions: scores √(P·M), box sides sampled at learned offsets (paper equations 5 and 6)."""
    quality: Literal["none", "centerness", "iou"] = "none"
    """A branch on the regression features that predicts centerness (FCOS, ATSS) or IoU (PAA, OTA)."""
    box_coding: Literal["exp_distances", "relu_distances", "binned_distances", "anchor_deltas"] = "exp_distances"
    """Meaning of the box logits of a location: distances to the four sides of the box, by exp, by ReLU or as the mean
    of a distribution over bins (GFL); or deltas from the anchor."""
    distance_unit: Annotated[float, Range(0, 10_000, above=True)] = 1.0
    """exp_distances: distance in strides of a box logit of 0 (2 in FoveaBox)."""
    distance_bins: Annotated[int, Range(1, 1_024)] = 16
    """binned_distances: largest distance in strides; the distribution has one more bin."""
    delta_stds: Annotated[tuple[float, float, float, float], Range(0, 10_000, above=True)] = (0.1, 0.1, 0.2, 0.2)
    """anchor_deltas: a box logit of 1 moves the center by this fraction of the anchor's side (x, y), or adds this
    number to the logarithm of the side (w, h)."""
    level_scales: bool = True
    """Multiply the box logits of each level by a learned scale."""
    point_offset: Annotated[float, Range(0, 1)] = 0.0
    """Offset of the locations from the corners of the grid, in strides: 0 in TOOD and ATSS, 0.5 in FCOS and
    FoveaBox."""
    anchor_scale: Annotated[float, Range(0, 10_000, above=True)] = 8.0
    """Side of the (smallest) anchor in strides; ATSS assignment uses anchors with every box coding."""
    anchor_octaves: Annotated[int, Range(1, 16)] = 1
    """Anchor sizes per location, each 2^(1/octaves) times the previous one (3 in RetinaNet)."""
    anchor_ratios: Annotated[tuple[float, ...], Range(0, 10_000, above=True)] = (1.0,)
    """Height / width of the anchors at a location."""

    @property
    def anchors_per_location(self) -> int:
        """Anchors, and thus predictions, per location."""
        return self.anchor_octaves * len(self.anchor_ratios)


@accept_old_names("assigner")
@dataclass(frozen=True)
class AssignerConfig:
    """The assigner, which decides which locations are positive for which object."""

    kind: Literal["task_aligned", "atss", "max_iou", "center_sampling", "fovea", "paa", "simota", "ota"] = (
        "task_aligned"
    )
    """task_aligned: TAL (paper section 3.2) after a warm-up with ATSS; the others are those that the paper compares
    with: max_iou (RetinaNet), center_sampling (FCOS), fovea (FoveaBox), and ATSS, PAA, SimOTA and OTA."""
    warmup_epochs: Annotated[float, Range(0, 1_000_000)] = 4.0
    """task_aligned: epochs with ATSS before the task-aligned phase begins; 0 for none."""
    atss_topk: Annotated[int, Range(1, 10_000)] = 9
    """ATSS and PAA: candidate locations per level for an object."""
    topk: Annotated[int, Range(1, 10_000)] = 13
    """task_aligned: number m of best-aligned locations per object that may become positive."""
    alpha: Annotated[float, Range(0, 10_000)] = 1.0
    """Exponent of the score in the alignment metric."""
    beta: Annotated[float, Range(0, 10_000)] = 6.0
    """Exponent of the IoU in the alignment metric."""
    rescue_iou: Annotated[float, Range(0, 1)] = 0.1
    """task_aligned: an object whose candidates all stay below this IoU is assigned by ATSS in that step, because
    targets from its own predictions would be too small to learn from; 0 turns this off, as published."""
    min_positives: Literal[0, 1] = 0
    """task_aligned, after the warm-up: 1 gives an object that got no location, such as one smaller than a stride, its
    best location that no other object has; 0: it is background in that step, as published."""
    positive_iou: Annotated[float, Range(0, 1)] = 0.5
    """max_iou: anchors with at least this IoU are positive (0.1 in PAA)."""
    negative_iou: Annotated[float, Range(0, 1)] = 0.4
    """max_iou: anchors below this IoU are background; those between the two thresholds are ignored."""
    center_radius: Annotated[float, Range(0, 1_000_000, above=True)] = 1.5
    """center_sampling, simota, ota: largest distance of candidates from the object's center, in strides (simota, ota:
    2.5)."""


@dataclass(frozen=True)
class LossConfig:
    """The losses and their targets. The ATSS warm-up of task_aligned always has focal loss towards 1, and GIoU weighted
    by centerness: `cls`, `cls_target`, `focal_…`, `normalizer`, `box` and `box_weight` have no effect there."""

    cls: Literal["quality_focal", "focal"] = "quality_focal"
    """Classification loss."""
    cls_target: Literal["alignment", "iou", "one"] = "alignment"
    """Target for the class of the assigned object: t̂ (paper section 3.2), the IoU of the predicted box (GFL), or 1."""
    focal_alpha: Annotated[float, Range(0, 1)] = 0.25
    """Focal loss: weight of the positives (negatives: 1 − α)."""
    focal_gamma: Annotated[float, Range(0, 10_000)] = 2.0
    """Exponent of the focusing factor of both classification losses."""
    normalizer: Literal["targets", "positives", "positives_per_image", "positives_and_images"] = "targets"
    """Divisor of the classification loss: the sum of its targets, the number of positives, that number with at least 1
    per image, or positives + images (FoveaBox)."""
    box: Literal["giou", "l1", "smooth_l1"] = "giou"
    """giou is computed on boxes; l1 and smooth_l1 (β = 0.11) on box logits (RetinaNet, FoveaBox)."""
    box_weight: Literal["alignment", "centerness", "iou", "score", "one"] = "alignment"
    """Weight of a positive in the box loss: t̂, centerness, IoU of the predicted box, its best score (GFL), or 1."""
    box_loss_weight: Annotated[float, Range(0, 1_000_000)] = 2.0
    """Weight of the box loss relative to the classification loss."""
    quality_loss_weight: Annotated[float, Range(0, 1_000_000)] = 1.0
    """Weight of the cross entropy of the quality branch."""
    distribution_loss_weight: Annotated[float, Range(0, 1_000_000)] = 0.25
    """Weight of the distribution focal loss (binned_distances)."""


@dataclass(frozen=True)
class SplitConfig:
    """One split of a data set: a COCO directory (images and annotations), or records, or tfds, or a folder. Paths may
    be remote, such as gs://…, except that of a folder (docs/data.md)."""

    images: str = ""
    """Folder of the image files."""
    annotations: str = ""
    """COCO instances JSON."""
    records: str = ""
    """Alternative: a folder that `python -m tood_jax.cli.to_array_record` wrote."""
    tfds: str = ""
    """Alternative: a folder that TensorFlow Datasets prepared as ArrayRecord (…/coco/2017/1.1.0)."""
    tfds_split: str = ""
    """tfds: the split, such as train, validation or train[:10%]."""
    folder: str = ""
    """Alternative: a folder with a whole data set, whose layout (COCO, YOLO, Pascal VOC, records, TFDS) is recognized.
    `--data FOLDER` sets it for both splits."""
    folder_split: str = ""
    """folder: train, val or test. Without a val of its own, a fifth of the training images is val."""
    folder_seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """folder: the seed that chooses these images; it must be the same for train and val."""

    @property
    def source(self) -> str:
        """Folder or file of the data, for messages."""
        if self.folder:
            return f"{self.folder} ({self.folder_split})"
        return self.records or (f"{self.tfds} ({self.tfds_split})" if self.tfds else self.annotations)


@dataclass(frozen=True)
class DataConfig:
    """Where images come from, and how they are resized and placed on a canvas."""

    train: SplitConfig = field(default_factory=SplitConfig)
    val: SplitConfig = field(default_factory=SplitConfig)
    train_short_side: Annotated[tuple[int, int], Range(1, 16_384)] = (800, 800)
    """Range of the random short side in training, pixels (equal numbers: no multi-scale)."""
    eval_short_side: Annotated[int, Range(1, 16_384)] = 800
    """Short side in evaluation, pixels."""
    max_long_side: Annotated[int, Range(1, 16_384)] = 1333
    """Largest long side, pixels (the aspect ratio is kept)."""
    buckets: Annotated[tuple[tuple[int, int], ...], Range(32, 16_384, multiple_of=32)] = (
        (800, 1088),
        (800, 1344),
        (1088, 800),
        (1344, 800),
    )
    """Canvas sizes (height, width), multiples of 32. An image is placed on the smallest that holds it; one more canvas
    has the largest height and width. Each size is one compilation. (--data.buckets=800x1088,1088x800)"""
    flip_probability: Annotated[float, Range(0, 1)] = 0.5
    """Probability of a left-right flip in training."""
    vertical_flip_probability: Annotated[float, Range(0, 1)] = 0.0
    """Probability of an up-down flip in training (for images without an up direction, such as microscopy)."""
    augmentation: Literal["none", "light", "strong", "aerial"] = "none"
    """none: flips and resizing only, as published; light: random crops, zoom-out and colour; strong: also rotation,
    shear, mosaic and mixup; aerial: quarter turns, mosaic and weaker crops, for images from above."""
    mosaic_probability: Annotated[float | None, Range(0, 1)] = None
    """Probability that a training image is put together of four; None: that of `augmentation` (strong 0.5, aerial
    0.3)."""
    mixup_probability: Annotated[float | None, Range(0, 1)] = None
    """Probability that a training image is blended with another one; None: that of `augmentation` (strong 0.1)."""
    rotation_degrees: Annotated[float | None, Range(0, 180)] = None
    """Largest random rotation to either side; None: that of `augmentation` (strong 10, aerial 5)."""
    min_visible: Annotated[float, Range(0, 1, above=True)] = 0.3
    """augmentation: an object is dropped if less than this share of its box remains in the augmented image."""
    closing_epochs: Annotated[int, Range(0, 1_000_000)] = 2
    """Epochs at the end of a run without mosaic and mixup."""
    augment_hook: str = ""
    """A function of your own, module:function, called last as (rng, image, boxes, labels) and returning (image, boxes,
    labels) (docs/training.md)."""
    repeat_threshold: Annotated[float, Range(0, 1)] = 0.0
    """Images with a class that less than this share of the images has occur more often in an epoch (LVIS: 0.001); 0:
    every image once."""
    max_objects: Annotated[int, Range(1, 100_000)] = 100
    """Objects kept per image (padded to this number); truncated images are counted and reported."""
    filter_empty: bool = False
    """Leave images without any annotation out of training, as published for COCO (117,266 of 118,287 images remain)."""
    min_image_side: Annotated[int, Range(0, 16_384)] = 0
    """Leave images with a side below this out of training, pixels (32 as published); 0 for none."""
    filter_tiny_boxes: bool = False
    """Leave boxes with a side below 1 pixel, or an area of 0 or less, in the annotation file out of training, as
    published."""
    broken_images: Literal["fail", "skip"] = "fail"
    """With a missing or unreadable image file: fail stops and names it, skip leaves it out and counts it."""
    scaled_decoding: bool = False
    """Decode a JPEG that is twice as large as needed, or more, at a half, quarter or eighth of its size: faster for
    images of many megapixels; pixels are averaged instead of sampled, boxes are the same. No effect on COCO."""
    bit_depth: Literal[9, 10, 11, 12, 13, 14, 15, 16] = 16
    """Significant bits of images with more than 8 bits per channel: 12 for 12-bit data in 16-bit files, which are
    otherwise read at 1/16 of their brightness. Images with 8 bits are unchanged."""
    workers: Annotated[int, Range(0, 512)] = 0
    """Worker processes that decode images; 0 decodes in threads of the training process."""
    threads: Annotated[int, Range(1, 1_024)] = 2
    """Decoding threads per process."""
    prefetch_batches: Annotated[int, Range(1, 10_000)] = 4
    """Batches prepared ahead of the step."""
    timeout_seconds: Annotated[float, Range(0, 1_000_000_000)] = 300.0
    """A batch that takes longer ends the run and names the images that were being read; 0 waits without a limit."""
    pixel_mean: Annotated[tuple[float, float, float], Range(-1_000_000, 1_000_000)] = (123.675, 116.28, 103.53)
    """Subtracted from RGB values 0–255, on the device."""
    pixel_std: Annotated[tuple[float, float, float], Range(0, 1_000_000, above=True)] = (58.395, 57.12, 57.375)
    """RGB values are divided by this after the mean is subtracted."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    kind: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum, as published; adamw: needs a lower learning rate and more weight decay (0.001 and 0.05 in
    configs/small_set.py)."""
    learning_rate: Annotated[float, Range(0, 1_000_000, above=True)] = 0.01
    """Peak learning rate for a global batch of `learning_rate_batch` images; scaled linearly to the actual batch."""
    learning_rate_batch: Annotated[int, Range(1, 1_000_000)] = 16
    """Global batch, in images, that `learning_rate` is for."""
    momentum: Annotated[float, Range(0, 1, below=True)] = 0.9
    """Fraction of the previous update that is added to the next (adamw: β₁)."""
    weight_decay: Annotated[float, Range(0, 1_000_000)] = 1e-4
    """Weight decay of every trained parameter, as published."""
    warmup_steps: Annotated[int, Range(0, 1_000_000_000)] = 500
    """Steps of linear warm-up; 0 for none."""
    warmup_factor: Annotated[float, Range(0, 1, above=True)] = 0.001
    """The warm-up starts at this fraction of the peak."""
    schedule: Literal["step", "cosine"] = "step"
    """After the warm-up: step reduces the rate at `step_epochs`; cosine decays it to 0 over the whole run."""
    step_epochs: Annotated[tuple[int, ...], Range(0, 1_000_000)] = (8, 11)
    """schedule = step: the rate is multiplied by `step_factor` at the start of these epochs."""
    step_factor: Annotated[float, Range(0, 1, above=True)] = 0.1
    """Factor of the rate at each of `step_epochs`."""
    clip_norm: Annotated[float | None, Range(0, 1_000_000_000, above=True)] = None
    """Clip the global gradient norm to this; None for no clipping."""
    ema_decay: Annotated[float | None, Range(0, 1, above=True, below=True)] = None
    """Decay of an exponential moving average of the weights, which is then evaluated (for example 0.999); None for
    none."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop: length, batch, precision, memory, checkpoints and logging."""

    epochs: Annotated[int, Range(1, 1_000_000)] = 12
    """Passes over the training images."""
    batch_size: Annotated[int, Range(1, 100_000)] = 16
    """Images per step, over all devices and processes."""
    accumulate_steps: Annotated[int, Range(1, 100_000)] = 1
    """Split the batch into this many parts and add their gradients, to save memory. Losses and gradients equal those of
    the whole batch, but for backbone.norm = batch, whose statistics are those of each part. Two or more parts cost one
    more forward pass."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters, scores, boxes, assignment and losses stay in float32."""
    remat: Literal["none", "blocks"] = "none"
    """blocks: keep only the inputs of residual blocks and of the head's layers (per level where levels are not packed)
    for the backward pass and recompute the rest: less memory, more computation."""
    scan_blocks: bool = False
    """Loop over equal residual blocks, and over the equal layers of a packed T-head, instead of unrolling them: the
    same numbers, less to compile (for deep backbones on TPUs); slow on CPUs."""
    pack_levels: Literal["auto", "always", "never"] = "auto"
    """Run T-head on one canvas with all levels instead of once per level: the same numbers, less to compile. auto: on
    TPUs only. Not with parallel.space > 1."""
    compiler_options: tuple[str, ...] = ()
    """XLA options for the training and the evaluation step, each name=value; on TPUs two have defaults that these
    override (docs/performance.md)."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the initial weights, the order of images and their augmentation."""
    eval_every_epochs: Annotated[int, Range(0, 1_000_000)] = 1
    """Evaluate after every so many epochs, and after the last; 0 evaluates only at the end."""
    eval_batch_size: Annotated[int, Range(1, 100_000)] = 16
    """Images per step in evaluation, over all devices and processes."""
    eval_losses: bool = False
    """Also compute the loss on the val split at each evaluation, in the same pass."""
    checkpoint_every_steps: Annotated[int, Range(1, 1_000_000_000)] = 1000
    """Save after every so many steps, at each evaluation and at the end."""
    keep_checkpoints: Annotated[int, Range(1, 1_000_000)] = 2
    """Newest checkpoints to keep, in addition to the best one."""
    best: Literal["AP", "AP50", "AP75", "AP90", "APs", "APm", "APl", "AR100"] = "AP"
    """Metric of the evaluations that ranks checkpoints, for keep_checkpoints, --step=best and patience."""
    patience: Annotated[int, Range(0, 1_000_000)] = 0
    """End the run after so many evaluations in a row without a better train.best, those of the ATSS warm-up not
    counted; 0: never."""
    max_hours: Annotated[float, Range(0, 1_000_000)] = 0.0
    """End the run with an evaluation once its starts have taken so many hours in all; 0: no limit."""
    log_every_steps: Annotated[int, Range(1, 1_000_000_000)] = 50
    """Steps between two log lines."""
    draw_targets: bool = True
    """Draw a few images with the positives of their objects at the start of the run and of the task-aligned phase."""
    collapse_steps: Annotated[int, Range(0, 1_000_000_000)] = 100
    """Training counts as collapsed after this many consecutive steps whose objects gave almost no training signal: no
    positives, targets near 0, or boxes that miss their objects; 0 turns the check off."""
    on_collapse: Literal["stop", "warn"] = "stop"
    """stop: end the run with an error and keep the newest checkpoint from before; warn: continue."""
    accept_other_data: bool = False
    """Resume from a checkpoint although images, boxes, batch size or steps per epoch have changed; the log names the
    changes."""
    workdir: str = ""
    """Folder for logs and checkpoints; empty means runs/NAME."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the devices share the work. By default all devices split the batch."""

    space: Annotated[int, Range(1, 1_024)] = 1
    """Number of devices that share an image; its height is split over them. For batches smaller than the number of
    devices."""
    split_state: bool = False
    """Also split parameters, momentum and moving average over the devices (ZeRO / FSDP): less memory, more
    communication."""


@dataclass(frozen=True)
class DetectConfig:
    """Post-processing, on the device."""

    score_threshold: Annotated[float, Range(0, 1)] = 0.05
    """Detections at or below this score are dropped."""
    candidates_per_level: Annotated[int, Range(1, 100_000)] = 1000
    """Best (location, class) pairs per level that NMS receives."""
    nms_iou: Annotated[float, Range(0, 1)] = 0.6
    """Of two boxes of a class with a larger IoU, NMS removes the one with the lower score."""
    max_detections: Annotated[int, Range(1, 100_000)] = 100
    """Detections kept per image, best first (COCO counts at most 100)."""
    clip_boxes: bool = False
    """Clip boxes to the image (as the authors' TOOD and mmdetection's other detectors; mmdetection's TOOD does not)."""
    clip_margin: Annotated[float, Range(0, 10_000)] = 0.0
    """clip_boxes: margin in canvas pixels at the right and the bottom (1 in FoveaBox)."""
    score_voting: bool = False
    """After NMS, replace each box by the mean of the candidates of its class around it, weighted by score and IoU
    (PAA)."""
    quality_fusion: Literal["product", "geometric_mean"] = "product"
    """Final score with a quality branch: score · quality, after threshold and top-k; or its square root, which these
    select by (PAA, OTA)."""


@accept_old_names("")
@dataclass(frozen=True)
class Config:
    """The config of a run."""

    name: str = "tood"
    """Name of the run and, by default, of its folder."""
    model: ModelConfig = field(default_factory=ModelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    assigner: AssignerConfig = field(default_factory=AssignerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)

    @property
    def compiler_options(self) -> dict[str, str | bool]:
        """train.compiler_options by name; true and false are booleans, because XLA does not accept the words."""
        words = {"true": True, "false": False}
        pairs = (option.split("=", 1) for option in self.train.compiler_options)
        return {name: words.get(value.lower(), value) for name, value in pairs}

    @property
    def workdir(self) -> str:
        """Folder of the logs and checkpoints of this run."""
        return self.train.workdir or f"runs/{self.name}"
