"""predict.py: detections in files, folders and globs, as drawn pictures and JSON."""

import glob
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from tood_jax.cli.common import load_trained, parse_with_checkpoint, said_in_one_sentence, use_compilation_cache
from tood_jax.config import Config
from tood_jax.data.batching import canvases, place
from tood_jax.data.decode import decode_image
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.pipeline import empty_batch
from tood_jax.data.transforms import resize
from tood_jax.evaluation.coco_ap import coco_results, write_results
from tood_jax.evaluation.predict import compile_detect_step, detect_batches
from tood_jax.training.sharding import make_mesh, replicated
from tood_jax.types import Batch
from tood_jax.visualize.draw import draw_detections, enlarge, save_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), or the folder of one step."""
    step: str = "best"
    """best (by AP), latest, or the number of a saved step."""
    images: tuple[str, ...] = ()
    """Image files, folders (searched through) and globs in quotes."""
    out: str = "predictions"
    """Folder for the drawn pictures and detections.json."""
    threshold: float = 0.3
    """Detections of at least this score are drawn; the JSON holds all."""
    draw: bool = True
    """Draw pictures; False writes the JSON alone."""


def main(argv: list[str] | None = None) -> None:
    """The door `predict.py`."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Detect in pictures: draws what is found and writes it as JSON."
    args, config, checkpoint = parse_with_checkpoint(Args, argv, prog="predict.py", description=description)
    use_compilation_cache()
    with said_in_one_sentence("predict.py"):
        files = find_images(args.images)
        names = output_names(files)
        skipped: list[str] = []
        trained = load_trained(checkpoint, config)
        class_names = [one.name for one in trained.classes]
        mesh = make_mesh(jax.devices()[:1])  # pictures come one by one
        detect_step = compile_detect_step(trained.model, config, mesh)
        params, batch_stats = jax.device_put((trained.params, trained.batch_stats), replicated(mesh))
        results: list[dict[str, Any]] = []
        drawn = 0
        for index, image, batch in tqdm(_read(files, config, skipped), total=len(files), unit="image", leave=False):
            (found,) = detect_batches(detect_step, params, batch_stats, [batch], mesh)
            boxes = (found.boxes, found.scores, found.labels)
            rows = coco_results([boxes], [str(files[index])], [one.id for one in trained.classes])
            results += [
                {**row, "category": class_names[int(label)]} for row, label in zip(rows, found.labels, strict=True)
            ]
            drawn += int((found.scores >= args.threshold).sum())
            if args.draw:
                large, large_boxes = enlarge(image, found.boxes)
                drawing = draw_detections(large, large_boxes, found.scores, found.labels, class_names, args.threshold)
                save_image(Path(args.out) / names[index], drawing)
        write_results(results, Path(args.out) / "detections.json")
        for text in skipped:
            print(f"skipped: {text}", file=sys.stderr)
        print(
            f"{len(files) - len(skipped)} images, {drawn} detections of score ≥ {args.threshold:g} "
            f"({len(results)} in all) in {args.out}/"
        )
        if len(skipped) == len(files):
            raise DataError("not one of the files could be read.")


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Files, folders (with all below them) and globs to image files, each once, sorted within a pattern.

    Raises:
        DataError: if a pattern fits nothing.
    """
    if not patterns:
        raise DataError("name pictures: --images FILE_FOLDER_OR_GLOB …")
    files: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            found = [path]
        else:
            found = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
        if not found:
            raise DataError(f"--images {pattern}: no such file, no folder with images, and no glob that fits any.")
        files.update(dict.fromkeys(found))
    return list(files)


def output_names(files: Sequence[Path]) -> list[str]:
    """A name for each drawn picture: the file's own, numbered where two are the same."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        suffix = file.suffix.lower() if file.suffix.lower() in {".png", ".webp"} else ".jpg"
        name, number = f"{file.stem}{suffix}", 2
        while name in taken:
            name, number = f"{file.stem}_{number}{suffix}", number + 1
        taken.add(name)
        names.append(name)
    return names


def _read(files: Iterable[Path], config: Config, skipped: list[str]) -> Iterator[tuple[int, np.ndarray, Batch]]:
    """(position, image, batch of it alone) of every file that can be read; the others are added to `skipped`."""
    options = canvases(config.data)
    for position, file in enumerate(files):
        try:
            image = decode_image(file)
        except BrokenImageError as error:
            skipped.append(str(error))
            continue
        height, width = image.shape[:2]
        canvas, size = place((height, width), config.data.eval_short_side, config.data.max_long_side, options)
        batch = empty_batch(1, canvas, max_objects=1)
        batch.images[0, : size[0], : size[1]] = resize(image, size)
        batch.sizes[0] = size
        batch.scales[0] = size[0] / height, size[1] / width
        batch.image_indices[0] = position
        yield position, image, batch
