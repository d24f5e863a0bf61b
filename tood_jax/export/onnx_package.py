"""The optional package onnx, imported where it is used."""

import importlib
from types import ModuleType

from tood_jax.export.folder import ExportError


def onnx() -> ModuleType:
    """Return the package onnx. Raises ExportError if it is missing."""
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise ExportError("exporting ONNX needs the package onnx: pip install 'tood_jax[onnx]'.") from None


def helper() -> ModuleType:
    """Return `onnx.helper`."""
    onnx()
    return importlib.import_module("onnx.helper")


def numpy_helper() -> ModuleType:
    """Return `onnx.numpy_helper`."""
    onnx()
    return importlib.import_module("onnx.numpy_helper")
