"""The detector as ONNX files, one per canvas and batch size, whose weights lie in the folder's weights.safetensors."""

import importlib
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tood_jax.config import Config
from tood_jax.data.preprocess import canvases
from tood_jax.export import run_onnx
from tood_jax.export.exported import Run
from tood_jax.export.folder import WEIGHTS, ExportedFolder, ExportError
from tood_jax.export.model import ExportedModel
from tood_jax.export.onnx_package import helper, onnx
from tood_jax.export.onnx_translation.elementwise import element_type
from tood_jax.export.onnx_translation.graph import OPSET
from tood_jax.export.onnx_translation.translate import translate
from tood_jax.export.program import Found, detect_in_originals
from tood_jax.models.detector import Detector
from tood_jax.untrusted.printable import printable

BATCHES = (1, 8)
_IR_VERSION = 9  # of opset 18 and 19: older runtimes refuse newer ones


def onnx_model(
    model: Detector, config: Config, canvas: tuple[int, int], batch: int, weights: Mapping[str, Any], file: Path
) -> Any:
    """Return the ONNX model of a canvas and a batch size; the height and width of the original images are free.

    Args:
        weights: arrays by flax name.
        file: the written weights in .safetensors, which the model refers to.

    Raises:
        ExportError: an operation has no translation.
    """
    leaves = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    arguments = {
        "images": jax.ShapeDtypeStruct((batch, *canvas, 3), jnp.uint8),
        "sizes": jax.ShapeDtypeStruct((batch, 2), jnp.int32),
    }
    graph = translate(partial(detect_in_originals, model, config, canvas), arguments, leaves)
    info, count = helper().make_tensor_value_info, config.detect.max_detections
    inputs = [
        info("images", element_type(np.uint8), [batch, "h", "w", 3]),
        info("sizes", element_type(np.int32), [batch, 2]),
    ]
    shapes = {"boxes": (np.float32, [count, 4]), "scores": (np.float32, [count]), "labels": (np.int32, [count])}
    shapes["counts"] = (np.int32, [])
    for i, name in enumerate(Found._fields):
        graph.nodes.append(helper().make_node("Identity", [f"output_{i}"], [name]))
    outputs = [info(name, element_type(shapes[name][0]), [batch, *shapes[name][1]]) for name in Found._fields]
    initializers = [*graph.shared.initializers.values(), *_external(weights, file)]
    made = helper().make_graph(graph.nodes, "detector", inputs, outputs, initializers)
    return helper().make_model(
        made, producer_name="tood_jax", opset_imports=[helper().make_opsetid("", OPSET)], ir_version=_IR_VERSION
    )


def _external(weights: Mapping[str, Any], file: Path) -> list[Any]:
    """Return an initializer for each weight that refers to its bytes in the file."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        entries = json.loads(opened.read(length))
    found = []
    for name, array in weights.items():
        start, end = entries[name]["data_offsets"]
        tensor = onnx().TensorProto(name=name, data_type=element_type(array.dtype), dims=array.shape)
        tensor.data_location = onnx().TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", 8 + length + start), ("length", end - start)):
            tensor.external_data.add(key=key, value=str(value))
        found.append(tensor)
    return found


def write_onnx(folder: Path, exported: ExportedModel) -> dict[str, Any]:
    """Write the models, checked by the package onnx, and run_onnx.py; return the section of the manifest.

    Raises:
        ExportError: an operation has no translation, or the package is missing.
    """
    programs = []
    for canvas in canvases(exported.config.data):
        for batch in BATCHES:
            name = f"detector_{canvas[0]}x{canvas[1]}_batch{batch}.onnx"
            made = onnx_model(exported.model, exported.config, canvas, batch, exported.weights, folder / WEIGHTS)
            (folder / name).write_bytes(made.SerializeToString())
            onnx().checker.check_model(str(folder / name), full_check=True)
            programs.append({"file": name, "canvas": list(canvas), "batch": batch})
    shutil.copyfile(run_onnx.__file__, folder / "run_onnx.py")
    return {"programs": programs, "opset": OPSET}


def onnx_run(opened: ExportedFolder) -> Run:
    """Return a function that runs the ONNX program of a canvas and a batch size with ONNX Runtime, on the CPU.

    Raises:
        ExportError: a file is damaged or missing, or ONNX Runtime is missing or refuses it.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        raise ExportError("running ONNX needs the package onnxruntime: pip install 'tood_jax[onnx]'.") from None
    files = {(one.canvas, one.batch): one.file for one in opened.programs.get("onnx", ())}
    sessions: dict[tuple[tuple[int, int], int], Any] = {}

    def run(canvas, images, sizes):
        key = canvas, len(images)
        if key not in files:
            raise ExportError(f"{opened.folder} has no ONNX program of canvas {canvas} for {len(images)} images.")
        if key not in sessions:
            opened.read(files[key])
            path = opened.folder / files[key]
            try:
                sessions[key] = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            except Exception as error:  # of many types
                raise ExportError(f"ONNX Runtime refuses {path} ({printable(error)}): export it again.") from None
        return sessions[key].run(list(Found._fields), {"images": images, "sizes": sizes})

    return run
