"""Draw docs/images/detections.jpg, the picture of the README: photographs of BCCD and, with --demo, generated images.

    .venv/bin/python scripts/readme_picture.py --bccd runs/bccd --photographs 'DIR/val/*.jpg' --demo runs/demo

Needs a run on BCCD, of configs/small_set.py or configs/bccd.py, and `make demo`. Images with few objects are taken, so
that captions do not overlap.
"""

import argparse
import glob
from pathlib import Path

import cv2
import numpy as np

import tood_jax
from tood_jax.api import TrainedDetector
from tood_jax.data.image_io import decode_image
from tood_jax.visualization.draw import contact_sheet, draw_detections, save_image

OUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "detections.jpg"
WIDTH, GAP = 1400, 8
THRESHOLD = 0.4


def draw_row(detector: TrainedDetector, files: list[str], count: int, objects: range) -> list[np.ndarray]:
    """The first `count` images with as many detections as `objects` allows, drawn to fill a row of the picture."""
    row: list[np.ndarray] = []
    for file in files:
        image = decode_image(file)
        found = detector(image)
        if (found.scores >= THRESHOLD).sum() not in objects:
            continue
        scale = (WIDTH - GAP * (count - 1)) / count / image.shape[1]
        filter_ = cv2.INTER_NEAREST if scale > 2 else cv2.INTER_CUBIC
        large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=filter_)
        boxes = found.boxes * scale
        row.append(draw_detections(large, boxes, found.scores, found.labels, detector.class_names, THRESHOLD))
        if len(row) == count:
            break
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bccd", default="runs/bccd")
    parser.add_argument("--photographs", required=True, help="glob of the photographs")
    parser.add_argument("--demo", default="", help="run of the demo, for a second row")
    parser.add_argument("--generated", default="build/demo_data/val/*.jpg")
    args = parser.parse_args()
    rows = [draw_row(tood_jax.load(args.bccd), sorted(glob.glob(args.photographs)), 2, range(7, 12))]
    if args.demo:
        rows.append(draw_row(tood_jax.load(args.demo), sorted(glob.glob(args.generated)), 3, range(3, 6)))
    save_image(OUT, contact_sheet([contact_sheet(row, columns=len(row)) for row in rows], columns=1))


if __name__ == "__main__":
    main()
