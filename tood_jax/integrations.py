"""The detector in engines for data on many machines."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from tood_jax.api import Detections, load
from tood_jax.api.rows import Row, import_pyarrow, parquet_schema, row_of
from tood_jax.data.errors import BrokenImageError
from tood_jax.data.image_io import decode_image


@dataclass(frozen=True)
class _EncodedImage:
    """The `ImagePath` of an image file that was read before."""

    path: str
    data: bytes

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    def read_bytes(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return self.path


class RayPredictor:
    """A class for `map_batches` of Ray Data: from image files to the rows of `predict.py --format parquet`.

    Each actor loads the checkpoint once. A file that can't be read has a row with "error".

        files = ray.data.read_binary_files("pictures", include_paths=True)
        found = files.map_batches(RayPredictor, fn_constructor_args=["runs/mine"], batch_size=16, concurrency=2)
        found.write_parquet("found")

    Args:
        checkpoint: as for `load`; every machine must reach it.
        step: as for `load`.
        options: of the call of `TrainedDetector`, such as threshold, batch or tiles.

    Raises:
        CheckpointError, ConfigError: as `load`.
    """

    def __init__(self, checkpoint: str, step: int | Literal["best", "latest"] = "best", **options: Any):
        self._model, self._options = load(checkpoint, step), options
        self._arrow, _ = import_pyarrow()

    def __call__(self, files: dict[str, Any]) -> Any:
        """Return the rows of a batch as `pyarrow.Table`.

        Args:
            files: "path" and "bytes" of each file, as `read_binary_files` with include_paths gives them.
        """
        rows = {}
        images = []
        for index, (path, data) in enumerate(zip(files["path"], files["bytes"], strict=True)):
            try:
                image = _EncodedImage(str(path), bytes(data))
                images.append((index, image.path, decode_image(image, bit_depth=self._model.config.data.bit_depth)))
            except BrokenImageError as error:
                rows[index] = {"path": str(path), "error": str(error)}
        found = self._model([pixels for _, _, pixels in images], **self._options)
        for (index, path, pixels), one in zip(images, found, strict=True):
            rows[index] = self._row(path, pixels.shape[:2], one)
        ordered = [rows[index] for index in range(len(rows))]
        return self._arrow.Table.from_pylist(ordered, schema=parquet_schema())

    def _row(self, path: str, size: tuple[int, int], found: Detections) -> Row:
        return row_of(path, size, found, found.classes, ())
