"""The part of the schema that says which images there are, and how they are read, resized and augmented."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tood_jax.config.ranges import Range


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
