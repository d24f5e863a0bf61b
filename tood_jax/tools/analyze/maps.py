"""tood analyze maps: one figure of what a detector computes for an image, level by level."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tood_jax.api import load_trained_model
from tood_jax.cli.common import parse_with_checkpoint, report_errors, use_compilation_cache
from tood_jax.cli.outputs import check_output_file, is_same_file
from tood_jax.cli.tables import format_table
from tood_jax.config import Config, ConfigError
from tood_jax.data.dataset import AnnotatedImage, class_names
from tood_jax.data.errors import DataError
from tood_jax.data.image_io import decode_image
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.preprocess import single_image_batch
from tood_jax.files import write_atomically
from tood_jax.tools.analyze.inner_maps import InnerMaps, inner_maps
from tood_jax.tools.analyze.maps_figure import CREATOR, draw_maps
from tood_jax.types import Batch
from tood_jax.untrusted.terminal import print_line

PROG = "tood analyze maps"


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), or the folder of one step. Its config is used; every field can be overridden."""
    step: str = "best"
    """best (by train.best), latest, or the number of a saved step."""
    image: str = ""
    """Image file. If it is an image of the val split, its annotations give the IoU map and the assignment."""
    out: str = "maps"
    """Name of the figure without its endings: writes OUT.png and OUT.svg."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Write the figure of an image, and print its positives."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Draw P, M, scores, IoU, offsets and assignment of an image at every level."
    args, config, checkpoint = parse_with_checkpoint(Args, argv, prog=prog, description=description)
    use_compilation_cache()
    with report_errors(prog):
        if not args.image:
            raise ConfigError("name an image: --image FILE.")
        files = {suffix: Path(f"{args.out}{suffix}") for suffix in (".png", ".svg")}
        for file in files.values():
            check_output_file("--out", file, is_own_figure, [args.checkpoint, args.image])
        config = replace(config, train=replace(config.train, remat="none"))
        trained = load_trained_model(checkpoint, config)
        batch = annotated_batch(args.image, config)
        maps = inner_maps(trained, config, batch)
        names = class_names(trained.classes)
        title = f"{Path(args.image).name}, {config.name}, step {checkpoint.step}"
        for suffix, content in draw_maps(maps, batch, names, title).items():
            write_atomically(files[suffix], content)
        if table := describe_positives(maps, batch, names):
            print_line(table)
        print_line(f"Written: {', '.join(map(str, files.values()))}")


def is_own_figure(start: bytes) -> bool:
    """Return whether a file starts like a figure of this program, by its metadata."""
    return CREATOR.encode() in start


def annotated_batch(path: str, config: Config) -> Batch:
    """Return a batch of one image, with its objects if it is an image of the val split; prints which.

    Raises:
        DataError: the image cannot be read.
    """
    pixels = decode_image(path, bit_depth=config.data.bit_depth)
    record = _find_record(path, config)
    if record is None:
        return single_image_batch(pixels, config.data)
    return single_image_batch(pixels, config.data, boxes=record.boxes, labels=record.labels)


def _find_record(path: str, config: Config) -> AnnotatedImage | None:
    """Return the record of an image file in the val split; None, after a note, if there is none."""
    try:
        dataset = load_dataset(config.data.val, "skip", for_evaluation=False)
    except (DataError, OSError) as error:
        print_line(f"Without annotations: the val split cannot be read ({error})")
        return None
    named = [image for image in dataset.images if Path(image.path.name).name == Path(path).name]
    for image in named:
        if is_same_file(str(image.path), path):
            return image
    print_line(f"Without annotations: {path} is not an image of {config.data.val.source}.")
    return None


def describe_positives(maps: InnerMaps, batch: Batch, names: tuple[str, ...]) -> str:
    """Return a table of the positives of each object, largest t̂ first; "" without any."""
    assignment = maps.assignment
    positives = np.flatnonzero(assignment.gt_index >= 0)
    order = positives[np.lexsort((-assignment.soft_label[positives], assignment.gt_index[positives]))]
    rows = []
    for n in order.tolist():
        level = next(i for i, part in enumerate(maps.pyramid.level_slices) if part.start <= n < part.stop)
        m = int(assignment.gt_index[n])
        x, y = maps.pyramid.points[n].tolist()
        numbers = (maps.score[n], assignment.iou[n], assignment.metric[n], assignment.soft_label[n])
        label = names[batch.gt_labels[0, m]]
        rows.append((f"{m + 1} {label}", f"P{level + 3}", f"{x:.0f}, {y:.0f}", *(f"{v:.3f}" for v in numbers)))
    header = ("object", "level", "point (x, y)", "score", "IoU", "t", "t̂")
    return format_table(header, rows, right=header[2:]) if rows else ""
