"""The detections of one image, and what is done with them: COCO results, a drawing, crops, supervision."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tood_jax.api.images import Image, to_pixels
from tood_jax.data.dataset import ClassInfo, class_names
from tood_jax.data.errors import DataError
from tood_jax.evaluation.coco_ap import coco_results
from tood_jax.visualization.draw import draw_detections, resize_for_drawing, save_image

_OTHER_CHARACTERS = re.compile(r"[^\w-]+")  # than those of a file name of a crop


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The detections of one image, best first."""

    boxes: np.ndarray
    """[k, 4] float32 xyxy, pixels of the original image."""
    scores: np.ndarray
    """[k] float32, 0–1."""
    labels: np.ndarray
    """[k] int32, positions in `classes`."""
    classes: tuple[ClassInfo, ...]
    """Category id and name of each label."""
    image: Image
    """The image as it was given: a path, an array or a PIL image."""
    bit_depth: int = 16
    """Significant bits of image files with more than 8 bits per channel."""

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        source = f" in {self.image}" if isinstance(self.image, str | Path) else ""
        return f"<{len(self)} detections{source}>"

    @property
    def names(self) -> np.ndarray:
        """[k] names of the classes."""
        return np.asarray(class_names(self.classes), dtype=str)[self.labels]

    def above(self, threshold: float) -> "Detections":
        """Return the detections of at least this score."""
        keep = self.scores >= threshold
        boxes, scores, labels = self.boxes[keep], self.scores[keep], self.labels[keep]
        return Detections(boxes, scores, labels, self.classes, self.image, self.bit_depth)

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Return COCO results: image_id, category_id, bbox (x, y, width, height), score and category.

        Args:
            image_id: COCO's id of the image; by default its path, or 0 for an image without a path.
        """
        if image_id is None:
            image_id = str(self.image) if isinstance(self.image, str | Path) else 0
        ids = [category.id for category in self.classes]
        rows = coco_results([(self.boxes, self.scores, self.labels)], [image_id], ids)
        return [{**row, "category": str(name)} for row, name in zip(rows, self.names, strict=True)]

    def plot(self, image: Image | None = None) -> np.ndarray:
        """Return a drawing, uint8 RGB [h, w, 3]; a small image is enlarged by a whole factor.

        Args:
            image: what to draw on; by default the image that was given.

        Raises:
            DataError: the image cannot be read.
        """
        large, boxes = resize_for_drawing(self._pixels(image), self.boxes)
        return draw_detections(large, boxes, self.scores, self.labels, class_names(self.classes), threshold=0.0)

    def save_crops(self, folder: str | Path, image: Image | None = None) -> list[Path]:
        """Write the part of the image in each box as PNG, and return the files: NAME_NUMBER_CLASS.png.

        Args:
            folder: created if missing; files of these names are replaced.
            image: what to cut; by default the image that was given.

        Returns:
            The files; a box without a pixel of the image has none.

        Raises:
            DataError: the image cannot be read.
        """
        pixels = self._pixels(image)
        height, width = pixels.shape[:2]
        stem = Path(self.image).stem if isinstance(self.image, str | Path) else "image"
        files = []
        for number, (box, name) in enumerate(zip(self.boxes, self.names, strict=True)):
            x0, y0 = np.floor(np.clip(box[:2], 0, [width, height])).astype(int)
            x1, y1 = np.ceil(np.clip(box[2:], 0, [width, height])).astype(int)
            if x1 > x0 and y1 > y0:
                files.append(Path(folder) / f"{stem}_{number:03d}_{_OTHER_CHARACTERS.sub('_', name)[:60]}.png")
                save_image(files[-1], pixels[y0:y1, x0:x1])
        return files

    def to_supervision(self) -> Any:
        """Return the detections as `supervision.Detections`, with data["class_name"].

        Raises:
            ImportError: the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise ImportError("to_supervision needs the package supervision: pip install supervision") from None
        return supervision.Detections(
            xyxy=self.boxes, confidence=self.scores, class_id=self.labels, data={"class_name": self.names}
        )

    def _pixels(self, image: Image | None) -> np.ndarray:
        image = self.image if image is None else image
        if image is None:
            raise DataError("these detections have no image: give one.")
        return to_pixels(image, self.bit_depth)
