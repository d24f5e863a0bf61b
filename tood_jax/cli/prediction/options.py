"""Options of predict.py."""

from dataclasses import dataclass
from typing import Literal

FormatName = Literal["json", "jsonl", "csv", "yolo", "parquet"]


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), the folder of one step, or a model of `tood push`: its folder or
    hf://USER/REPO[@REVISION]."""
    step: str = "best"
    """best (by train.best), latest, or the number of a saved step."""
    images: tuple[str, ...] = ()
    """Image files, folders (searched recursively), globs in quotes, text files with a path per line (@FILE or
    FILE.txt), tar files, folders of records; also gs://…; or one video: a file, the number of a camera, rtsp://…"""
    out: str = "predictions"
    """Folder for the drawings and detections."""
    format: tuple[FormatName, ...] = ("json",)
    """json (COCO results), jsonl (a line per image), csv, yolo (a text file per image), parquet; one or several."""
    threshold: float | None = None
    """Smallest score of a detection that is drawn; the files have all detections. By default that of each class with
    the highest F1 in the last evaluation of the checkpoint, or 0.3 where it has none."""
    draw: bool = True
    """Draw images; False writes only the detections."""
    batch: int = 0
    """Images per step of each process; 0 means 8 per GPU or TPU, 1 per CPU device."""
    tiles: int = 0
    """Detect in a larger image also in tiles of this side, pixels of the image, and merge; 0 means no tiles."""
    overlap: float = 0.2
    """Smallest share of a tile's side that neighbouring tiles have in common, 0 to 0.9."""
    tta: str = ""
    """Test-time augmentation: detect also in variants of the image, and merge: flip, scales, such as flip,0.8,1.2."""
    resume: bool = False
    """Continue an interrupted job; the same options must be given."""
