"""Measure the memory of a process that reads an annotation file of COCO's size, with and without what evaluation needs.

    python -m benchmarks.cases.annotation_memory

writes a JSON of 118,000 images and 860,000 boxes into a temporary folder, and reads it in a process of its own for each
row: peak and resident memory after reading, and the time. Only evaluation needs the annotations as they are in the
file: training reads its set without them, and so do all processes but the primary one with the validation set.
"""

import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.harness.options import Options, read_options
from benchmarks.harness.report import begin_report, finish_report
from benchmarks.harness.tables import print_table

NAME = "annotation_memory"
READ_OPTION = "--read"  # of the child process
MEGABYTE = 1e6


@dataclass(frozen=True)
class Args(Options):
    """Options of the table; the boxes depend on --seed."""

    images: int = 118_000
    """Images of the file."""
    boxes: int = 860_000
    """Boxes of the file."""


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == [READ_OPTION]:
        print(json.dumps(read(Path(argv[1]), argv[2] == "True")))
        return
    args = read_options(Args, argv, NAME, __doc__ or "")
    report = begin_report(NAME, argv, args)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "annotations.json"
        write_annotations(file, args.images, args.boxes, args.seed)
        rows = [
            {"annotations as in the file": "kept" if kept else "not kept", **read_in_new_process(file, kept)}
            for kept in (True, False)
        ]
    print_table("One process, one annotation file", list(rows[0]), [list(row.values()) for row in rows])
    finish_report(report, args, rows=rows)


def write_annotations(file: Path, images: int, boxes: int, seed: int) -> None:
    """Write an instances JSON without polygons, its boxes spread over the images at random."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, 400, (boxes, 2)).tolist()
    sides = random.uniform(5, 200, (boxes, 2)).round(2).tolist()
    tree = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 640} for i in range(images)],
        "annotations": [
            {"id": k, "image_id": int(i), "category_id": int(c), "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            for k, (i, c, (x, y), (w, h)) in enumerate(
                zip(random.integers(0, images, boxes), random.integers(1, 81, boxes), corners, sides, strict=True), 1
            )
        ],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(1, 81)],
    }
    file.write_text(json.dumps(tree))


def read_in_new_process(file: Path, kept: bool) -> dict[str, float]:
    """Return what `read` measures in a new process."""
    command = [sys.executable, "-m", f"benchmarks.cases.{NAME}", READ_OPTION, str(file), str(kept)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def read(file: Path, kept: bool) -> dict[str, float]:
    """Read the file as the programs do, and measure this process; memory in 10⁶ bytes."""
    from tood_jax.data.formats.coco import parse_coco, read_coco_json

    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    dataset = parse_coco(
        read_coco_json(file.read_bytes(), file),
        file,
        lambda names: [file.parent / name for name in names],
        for_evaluation=kept,
    )
    seconds = time.perf_counter() - began
    gc.collect()
    now = psutil.Process().memory_info().rss
    assert dataset.images
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "resident MB": round((now - before) / MEGABYTE),
        "peak MB": round((peak - before) / MEGABYTE),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
