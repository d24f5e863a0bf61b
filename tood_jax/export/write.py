"""Write a folder with an exported detector, and compare it with the checkpoint before it gets its name."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tood_jax.checkpoint.package_versions import package_versions
from tood_jax.config import Config, to_dict
from tood_jax.data.preprocess import canvases
from tood_jax.evaluation.predict import ImageDetections
from tood_jax.export import parity, run_stablehlo
from tood_jax.export.exported import Run, detect_images, exported_run, fits_canvas, shrinkage
from tood_jax.export.folder import (
    PARITY,
    WEIGHTS,
    ExportedFolder,
    ExportError,
    open_exported,
    write_json,
    write_manifest,
)
from tood_jax.export.model import ExportedModel
from tood_jax.export.onnx_program import BATCHES, onnx_run, write_onnx
from tood_jax.export.program import PLATFORMS, export_program
from tood_jax.weights.files import write_weights

COMPATIBILITY = (
    "jax.export keeps a program readable for six months: by a JAX up to six months newer than versions.jax, and up to "
    "three weeks older."
)
_ARGUMENTS = [
    {"name": "images", "type": "uint8", "shape": ["B", "h", "w", 3], "value": "RGB, padded below and at the right"},
    {"name": "sizes", "type": "int32", "shape": ["B", 2], "value": "(height, width) of each image, pixels"},
]
_RESULTS = [
    {"name": "boxes", "type": "float32", "shape": ["B", "K", 4], "value": "xyxy, pixels of the original image"},
    {"name": "scores", "type": "float32", "shape": ["B", "K"], "value": "0 to 1, best first"},
    {"name": "labels", "type": "int32", "shape": ["B", "K"], "value": "positions in classes; -1 is padding"},
    {"name": "counts", "type": "int32", "shape": ["B"], "value": "number of detections"},
]
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "onnx", "onnxruntime", "tood_jax")


class ComparedImages(NamedTuple):
    """Images on which programs are compared, and what the checkpoint detects in them."""

    names: Sequence[str]
    images: Sequence[np.ndarray]  # uint8 RGB [h, w, 3]
    detections: Sequence[ImageDetections]


def write_stablehlo(folder: Path, exported: ExportedModel) -> dict[str, Any]:
    """Write the programs and run.py, and return the section of the manifest. Raises ExportError."""
    programs = []
    for canvas in canvases(exported.config.data):
        name = f"detector_{canvas[0]}x{canvas[1]}.stablehlo"
        program = export_program(exported.model, exported.config, canvas, exported.weights)
        try:
            (folder / name).write_bytes(program.serialize())
        except ImportError:
            raise ExportError(
                "exporting StableHLO needs the package flatbuffers: pip install 'tood_jax[export]'."
            ) from None
        programs.append({"file": name, "canvas": list(canvas)})
        version = program.calling_convention_version
    shutil.copyfile(run_stablehlo.__file__, folder / "run.py")
    return {
        "programs": programs,
        "platforms": list(PLATFORMS),
        "calling_convention_version": version,
        "compatibility": COMPATIBILITY,
        "first_argument": f"dict of the arrays of {WEIGHTS} by name",
    }


class Format(NamedTuple):
    """How one format is written and read back."""

    write: Callable[[Path, ExportedModel], dict[str, Any]]  # returns its section of the manifest
    run: Callable[[Any], Run]  # of an ExportedFolder


CompareAP = Callable[[ExportedFolder, str], dict[str, Any]]
FORMATS = {"stablehlo": Format(write_stablehlo, exported_run), "onnx": Format(write_onnx, onnx_run)}


def run_of(opened: ExportedFolder, name: str = "") -> tuple[Run, int]:
    """Return the program of an exported folder, and its number of images per batch; 0 for any.

    Args:
        name: a key of FORMATS; "" for the first that the folder has.

    Raises:
        ExportError: there is none, or it can't be read.
    """
    for found, programs in opened.programs.items():
        if programs and name in ("", found):
            return FORMATS[found].run(opened), min(one.batch for one in programs)
    raise ExportError(f"{opened.folder} has no {name or 'programs'}: export it again.")


def write_exported(
    out: Path,
    exported: ExportedModel,
    formats: Sequence[str],
    test: ComparedImages,
    compare_ap: CompareAP | None = None,
) -> Iterator[str]:
    """Write an exported folder, whole or not at all; yield messages for the user.

    Args:
        out: the folder, which must not exist or be empty.
        formats: keys of FORMATS.
        test: at least one image.
        compare_ap: returns a part of parity.json about an opened folder and a format, or raises ExportError.

    Raises:
        ExportError: a program gives other detections than the checkpoint.
    """
    folder = out.with_name(f".{out.name[:50]}.{os.getpid()}.tmp")
    folder.mkdir(parents=True)
    try:
        write_weights(folder / WEIGHTS, exported.weights, None, {})
        values = _manifest(exported)
        for name in formats:
            values[name] = FORMATS[name].write(folder, exported)
        write_manifest(folder, values)
        results = {}
        for name in formats:
            opened = open_exported(folder)
            results[name] = _compare(opened, name, exported.config, test)
            yield _describe(name, results[name])
            if compare_ap is not None:
                ap = results[name]["AP"] = compare_ap(opened, name)
                yield f"{name}: AP {ap['exported']:.4f}, checkpoint {ap['checkpoint']:.4f}."
        write_json(folder / PARITY, results)
        write_manifest(folder, values)
        if out.is_dir():
            out.rmdir()
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    yield f"Wrote {out}: {', '.join(sorted(path.name for path in out.iterdir()))}."


def _manifest(exported: ExportedModel) -> dict[str, Any]:
    data, detect = exported.config.data, exported.config.detect
    return {
        "name": exported.config.name,
        "step": exported.step,
        "classes": [category._asdict() for category in exported.classes],
        "score_threshold": detect.score_threshold,
        "nms_iou": detect.nms_iou,
        "max_detections": detect.max_detections,
        "short_side": data.eval_short_side,
        "max_long_side": data.max_long_side,
        "canvases": [list(canvas) for canvas in canvases(data)],
        "arguments": _ARGUMENTS,
        "results": _RESULTS,
        "versions": package_versions(_PACKAGES),
        "config": to_dict(exported.config),
    }


def _compare(opened: ExportedFolder, name: str, config: Config, test: ComparedImages) -> dict[str, Any]:
    """Return the part of parity.json about a format; large images at batch 1 only, because each shape is compiled."""
    run, results = FORMATS[name].run(opened), {}
    for count in BATCHES:
        numbered = [(i, image) for i, image in enumerate(test.images) if count == 1 or fits_canvas(image, config.data)]
        found = sorted(detect_images(run, config.data, numbered, count), key=lambda one: one.image_index)
        result = parity.compare(
            [test.names[i] for i, _ in numbered],
            [test.detections[i] for i, _ in numbered],
            found,
            config.detect.score_threshold,
            config.detect.max_detections,
            [shrinkage(image, config.data) for _, image in numbered],
        )
        parity.check(result, f"{name} program at batch {count}")
        results[f"batch {count}"] = result
    return results


def _describe(name: str, results: Mapping[str, Any]) -> str:
    compared = list(results.values())
    box, score = (max(result["largest"][what] for result in compared) for what in ("box", "score"))
    images, detections = len(compared[0]["images"]), compared[0]["detections"]
    note = "" if detections else " Note: nothing was detected, so boxes were not compared; name images with objects."
    return (
        f"{name}: {detections} detections in {images} images equal the checkpoint's within {box:.1g} pixels and "
        f"{score:.1g} of the score.{note}"
    )
