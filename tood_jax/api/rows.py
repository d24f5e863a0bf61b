"""The result of one image as a row: what a line of detections.jsonl has, and what every format is made from.

    {"path": …, "width": …, "height": …, "boxes": [[x0, y0, x1, y1], …], "scores": […], "labels": […], "names": […]}
    {"path": …, "error": …}            an image that cannot be read

Boxes are in pixels of the image, labels 0…C-1 and best first. A row may also have "notes", a list of sentences.
"""

import json
from collections.abc import Sequence
from typing import Any

from tood_jax.api.detections import Detections
from tood_jax.config import ConfigError
from tood_jax.data.dataset import ClassInfo
from tood_jax.evaluation.predict import ImageDetections

Row = dict[str, Any]


def row_of(
    path: str,
    size: tuple[int, int],
    found: ImageDetections | Detections,
    classes: Sequence[ClassInfo],
    notes: Sequence[str],
) -> Row:
    """Return the row of an image.

    Args:
        size: (height, width), pixels.
    """
    labels = found.labels.tolist()
    row = {
        "path": path,
        "width": size[1],
        "height": size[0],
        "boxes": found.boxes.tolist(),
        "scores": found.scores.tolist(),
        "labels": labels,
        "names": [classes[label].name for label in labels],
    }
    return row | {"notes": list(notes)} if notes else row


def encode_row(row: Row) -> bytes:
    """Return the line of a row."""
    return json.dumps(row).encode() + b"\n"


def parquet_schema() -> Any:
    """Return the `pyarrow.Schema` of rows. Raises ConfigError if the package is not installed."""
    arrow, _ = import_pyarrow()
    text, number = arrow.string(), arrow.float32()
    columns = {
        "path": text,
        "width": arrow.int32(),
        "height": arrow.int32(),
        "boxes": arrow.list_(arrow.list_(number, 4)),
        "scores": arrow.list_(number),
        "labels": arrow.list_(arrow.int32()),
        "names": arrow.list_(text),
        "error": text,
    }
    return arrow.schema(columns.items(), metadata={"written_by": "tood_jax"})


def import_pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet. Raises ConfigError if the package is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs the package pyarrow: pip install pyarrow, or write another format.") from None
    return pyarrow, pyarrow.parquet
