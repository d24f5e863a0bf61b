"""tood export: write a trained detector as programs that run without this package, and prove that they are equal."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tood_jax.api import TrainedDetector, load_trained_model
from tood_jax.api.evaluation import evaluate_checkpoint, evaluate_exported
from tood_jax.checkpoint.reader import named_leaves
from tood_jax.checkpoint.store import Checkpoint
from tood_jax.cli.common import parse_with_checkpoint, report_errors, use_compilation_cache
from tood_jax.cli.outputs import check_output_folder
from tood_jax.cli.push import without_absolute_paths
from tood_jax.config import Config, ConfigError
from tood_jax.data.errors import DataError
from tood_jax.data.image_io import decode_image
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.preprocess import canvases
from tood_jax.evaluation.predict import ImageDetections
from tood_jax.export.folder import ExportedFolder, ExportError
from tood_jax.export.model import ExportedModel
from tood_jax.export.parity import MAX_AP_DIFFERENCE
from tood_jax.export.write import FORMATS, CompareAP, ComparedImages, write_exported
from tood_jax.models.build import build_model
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line

PROG = "tood export"


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), the folder of one step, or a model of `tood push`."""
    step: str = "best"
    """best (by AP), latest, or the number of a saved step."""
    out: str = ""
    """The new folder that is written."""
    formats: str = "stablehlo"
    """stablehlo, onnx; several are separated by commas."""
    compared_images: int = 8
    """Images of the val split on which the programs are compared with the checkpoint, besides those of odd sizes."""
    compare_ap: bool = False
    """Also evaluate the checkpoint and each program on the whole val split, and compare their AP."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Write an exported folder."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Export a trained detector with preprocessing and NMS, and compare it with the checkpoint."
    args, config, checkpoint = parse_with_checkpoint(Args, argv, prog=prog, description=description)
    use_compilation_cache()
    with report_errors(prog):
        for line in export(args, config, checkpoint):
            print_line(line)


def export(args: Args, config: Config, checkpoint: Checkpoint) -> Iterator[str]:
    """Write the folder; yield messages for the user.

    Raises:
        ConfigError: an option is invalid, or the folder has files.
        ExportError: a program gives other detections than the checkpoint.
    """
    formats = list(dict.fromkeys(name.strip() for name in args.formats.split(",")))
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ConfigError(f"--formats={printable(unknown[0])} must be one or more of {', '.join(FORMATS)}.")
    if args.compared_images < 0:
        raise ConfigError(f"--compared_images={args.compared_images} must be 0 or more.")
    check_output_folder("--out", args.out)
    out = Path(args.out)
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out={printable(out)} has files: name a new folder.")
    trained = load_trained_model(checkpoint, config)
    leaves = named_leaves({"params": trained.params, "batch_stats": trained.batch_stats})
    weights = {name: np.asarray(array, np.float32) for name, array in leaves.items()}
    model = build_model(config, len(trained.classes), platform="cpu")  # of its formulations, those of all platforms
    exported = ExportedModel(model, weights, trained.classes, without_absolute_paths(config), checkpoint.step)
    photos, note = _val_images(config, args.compared_images)
    if note:
        yield note
    images = photos | _odd_images(next(iter(photos.values()), None), config)
    found = TrainedDetector(trained, config)(list(images.values()))
    detections = [ImageDetections(i, one.boxes, one.scores, one.labels) for i, one in enumerate(found)]
    compared = ComparedImages(list(images), list(images.values()), detections)
    yield from write_exported(
        out, exported, formats, compared, _compare_ap(checkpoint, config) if args.compare_ap else None
    )


def _compare_ap(checkpoint: Checkpoint, config: Config) -> CompareAP:
    """Return a function that compares the AP of an exported program with that of the checkpoint, which is found here.

    Raises:
        ConfigError, DataError: the val split has other classes, or can't be read.
    """
    dataset = load_dataset(config.data.val, config.data.broken_images)
    if not dataset.has_annotations:
        raise ConfigError("--compare_ap needs a val split with annotations: set data.val.")
    expected = evaluate_checkpoint(checkpoint, dataset, config).metrics.AP

    def compare(opened: ExportedFolder, name: str) -> dict[str, float]:
        found = evaluate_exported(opened, dataset, config, name).metrics.AP
        if abs(found - expected) > MAX_AP_DIFFERENCE:
            raise ExportError(
                f"the {name} program has AP {found:.4f} and the checkpoint {expected:.4f}, so nothing was exported."
            )
        return {"checkpoint": expected, "exported": found, "limit": MAX_AP_DIFFERENCE}

    return compare


def _val_images(config: Config, count: int) -> tuple[dict[str, np.ndarray], str]:
    """Return the first images of the val split by name, and a note if they can't be read."""
    try:
        images = load_dataset(config.data.val, "skip", False).images[:count] if count else ()
        return {
            f"val {i}: {Path(str(one.path)).name}": decode_image(one.path, bit_depth=config.data.bit_depth)
            for i, one in enumerate(images)
        }, ""
    except (DataError, OSError) as error:
        return {}, f"Note: only images of noise are compared, because the val split can't be read: {error}"


def _odd_images(photo: np.ndarray | None, config: Config) -> dict[str, np.ndarray]:
    """Return images of unusual sizes by name, repetitions of a photo or of noise."""
    if photo is None:
        photo = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    height, width = canvases(config.data)[-1]
    sizes = [(1, 1), (37, 1333), (1333, 37), (height + 1, 2 * width), photo.shape[:2][::-1]]
    return {f"{h}×{w}": _tiled(photo, h, w) for h, w in sizes}


def _tiled(photo: np.ndarray, height: int, width: int) -> np.ndarray:
    return photo[np.arange(height) % photo.shape[0]][:, np.arange(width) % photo.shape[1]]
