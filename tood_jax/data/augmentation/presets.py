"""How strong the augmentations of `data.augmentation` are."""

from dataclasses import dataclass, replace

from tood_jax.config import DataConfig


@dataclass(frozen=True)
class Augmentation:
    """Probabilities (0–1) and ranges of the augmentations of a training image."""

    crop: float = 0.0  # probability of a random crop that keeps a minimal IoU with some object
    crop_min_side: float = 0.3  # smallest side of a crop, as a share of the image's
    zoom_out: float = 0.0  # probability of placing the image on a larger plane
    zoom_out_max: float = 2.0  # largest side of that plane, in sides of the image
    brightness: float = 0.0  # largest change as a share of the value; the same for the next two
    contrast: float = 0.0
    saturation: float = 0.0
    hue_degrees: float = 0.0
    quarter_turns: bool = False
    rotation_degrees: float = 0.0
    shear_degrees: float = 0.0
    translation: float = 0.0  # share of the side
    scaling: tuple[float, float] = (1.0, 1.0)  # smallest and largest factor
    mosaic: float = 0.0  # probability that an image is put together of four
    mixup: float = 0.0  # probability that an image is blended with another one, if it is no mosaic

    @property
    def is_none(self) -> bool:
        """Whether nothing is ever changed."""
        return self == NONE


NONE = Augmentation()
LIGHT = Augmentation(
    crop=0.5, crop_min_side=0.6, zoom_out=0.25, zoom_out_max=1.5,
    brightness=0.125, contrast=0.25, saturation=0.25, hue_degrees=9.0,
)  # fmt: skip
PRESETS = {
    "none": NONE,
    "light": LIGHT,
    "strong": replace(
        LIGHT, crop_min_side=0.3, zoom_out=0.3, zoom_out_max=3.0,
        brightness=0.25, contrast=0.4, saturation=0.5, hue_degrees=12.0,
        rotation_degrees=10.0, shear_degrees=3.0, translation=0.1, scaling=(0.7, 1.3), mosaic=0.5, mixup=0.1,
    ),
    "aerial": replace(
        LIGHT, crop=0.3, crop_min_side=0.5, quarter_turns=True, rotation_degrees=5.0, scaling=(0.8, 1.25), mosaic=0.3
    ),
}  # fmt: skip


def augmentation_of(data: DataConfig) -> Augmentation:
    """Return the augmentation of a config: its preset with the fields that the config sets itself."""
    preset = PRESETS[data.augmentation]
    return replace(
        preset,
        mosaic=_own_or(data.mosaic_probability, preset.mosaic),
        mixup=_own_or(data.mixup_probability, preset.mixup),
        rotation_degrees=_own_or(data.rotation_degrees, preset.rotation_degrees),
    )


def _own_or(value: float | None, default: float) -> float:
    return default if value is None else value
