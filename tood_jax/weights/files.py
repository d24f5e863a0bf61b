"""Read and write files of tensors: PyTorch's `.pth` (or `.pt`, `.pth.tar`) and `.safetensors`.

A `.pth` is a pickle, and a pickle can run any program. This module reads only tensors and plain values; a file with
anything else is refused before any of it has run. PyTorch itself is needed for `.pth` only.
"""

import importlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  adds bfloat16 to numpy
import numpy as np
import safetensors
import safetensors.numpy

from tood_jax.untrusted.bounded_json import JsonError, as_text, parse_json
from tood_jax.untrusted.file_kinds import unexpected_kind
from tood_jax.untrusted.printable import printable
from tood_jax.weights.mapping import Tensors, WeightsError

MAX_BYTES = 8 << 30  # of a file; X101-DCN has 0.7 GB with its optimizer
_MAX_ABOUT_BYTES = 16 << 20
_MAX_NAME_LENGTH = 1000  # of a tensor, in characters
_ABOUT = "tood_jax"  # key of `about` in the metadata of the file
_WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which published files have the tensors
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_TO_FLOAT32 = (np.dtype(np.float64), np.dtype(np.float16), np.dtype("bfloat16"))
_SAFETENSORS_TYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
# Training checkpoints of mmengine have the history of their log, which is not needed: an empty object replaces each of
# these, including `getattr` (by which the methods of the history are pickled), and none of them is called.
_REPLACED = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.dtypes.{name}DType" for name in ("Float64", "Float32", "Int64", "Int32", "Bool", "UInt8")),
)


class WeightsFile(NamedTuple):
    """The content of a file."""

    tensors: Tensors  # other floating-point types are converted to float32
    class_names: tuple[str, ...] | None  # by label, if the file has them
    about: dict[str, Any]  # the argument `about` of `write_weights`; {} for files of other programs


class _Placeholder:
    """Replaces an object that is not needed; accepts any arguments and any state, and keeps none."""

    def __init__(self, *_: Any, **__: Any): ...

    def __new__(cls, *_: Any, **__: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None: ...


def is_weights_file(path: str | os.PathLike[str]) -> bool:
    """Return whether `read_weights` and `write_weights` support the ending of this name."""
    return str(path).endswith((".safetensors", ".pth", ".pt", ".pth.tar"))


def read_weights(path: str | os.PathLike[str]) -> WeightsFile:
    """Return all tensors of a file, without the prefixes and wrappers of training programs.

    Raises:
        WeightsError: the file does not exist, can't be read, or is refused because it could run a program.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"There is no file {path}.")
    if not is_weights_file(path):
        raise WeightsError(f"{path} must end in .pth, .pt or .safetensors.")
    _refuse_other_files(path)
    tensors, class_names, about = (_read_safetensors if str(path).endswith(".safetensors") else _read_torch)(path)
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors.")
    if invalid := [name for name in tensors if as_text(name, _MAX_NAME_LENGTH) is None or not name.isprintable()]:
        raise WeightsError(f"{path} names a tensor {printable(repr(invalid[0]), 100)}, which is not a valid name.")
    with np.errstate(over="ignore"):  # too large numbers become infinite, which `check_finite` finds
        in_float32 = {name: a.astype(np.float32) if a.dtype in _TO_FLOAT32 else a for name, a in tensors.items()}
    return WeightsFile(in_float32, class_names, about)


def write_weights(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    class_names: tuple[str, ...] | None,
    about: Mapping[str, Any],
) -> None:
    """Write tensors atomically, and create the folder.

    Args:
        path: a name that ends in .safetensors or .pth.
        tensors: by name.
        class_names: names of the classes by label; in a .pth also where mmdetection reads them.
        about: JSON values that `read_weights` returns.

    Raises:
        WeightsError: a .pth without PyTorch.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    contiguous = {name: np.require(array, requirements="C") for name, array in tensors.items()}  # keeps 0-d arrays 0-d
    try:
        if path.suffix == ".safetensors":
            metadata = {"format": "pt", _ABOUT: json.dumps(about)}
            if class_names is not None:
                metadata["classes"] = json.dumps(class_names)
            temporary.touch()
            mode = temporary.stat().st_mode
            safetensors.numpy.save_file(contiguous, temporary, metadata=metadata)
            temporary.chmod(mode)  # safetensors makes files that only their owner can read
        else:
            torch = _torch(path, "written")
            names = {} if class_names is None else {"CLASSES": class_names, "dataset_meta": {"classes": class_names}}
            state_dict = {name: torch.from_numpy(np.array(array)) for name, array in contiguous.items()}
            torch.save({"state_dict": state_dict, "meta": {**names, _ABOUT: json.dumps(about)}}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_other_files(path: Any) -> None:
    """Raise WeightsError for a file of another kind, and for a file that is larger than any detector."""
    try:
        with open(path, "rb") as file:
            kind = unexpected_kind(file.read(256))
    except OSError as error:
        raise WeightsError(f"{path} can't be read ({error.strerror or error}).") from None
    if kind:
        raise WeightsError(f"{path} is {kind}, not a file of weights.")
    if (size := os.path.getsize(path)) > MAX_BYTES:
        raise WeightsError(f"{path} has {size:,} bytes, more than the {MAX_BYTES:,} that a detector can have.")


def _read_safetensors(path: Any) -> tuple[Tensors, tuple[str, ...] | None, dict[str, Any]]:
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  not a dict
            for name, kind in types.items():
                if kind not in _SAFETENSORS_TYPES:
                    raise WeightsError(f"{path}: {name} has the type {kind}, which is not supported.")
            tensors = {name: file.get_tensor(name) for name in types}
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a whole .safetensors file ({printable(_first_line(error))}).") from None
    return tensors, _names(_parse(metadata.get("classes"))), _about(metadata, path)


def _read_torch(path: Any) -> tuple[Tensors, tuple[str, ...] | None, dict[str, Any]]:
    torch = _torch(path, "read")
    _refuse_compressed(path)
    try:
        with torch.serialization.safe_globals([(_Placeholder, name) for name in _REPLACED]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # PyTorch raises many types for damaged files
        requested = re.search(r"GLOBAL ([\w.]+)|(?:function|but got) ([^\n]+)", str(error))
        if requested and type(error).__name__ == "UnpicklingError":
            what = requested[1] or requested[2]
            raise WeightsError(
                f"{path} is refused: it also contains {what}, which could run a program. Nothing of it was run."
            ) from None
        raise WeightsError(f"{path} is not a whole PyTorch checkpoint ({printable(_first_line(error))}).") from None
    meta = _dict(_dict(content).get("meta"))
    tensors = dict(_arrays(_unwrap(content, torch, path), torch, path))
    return tensors, _meta_class_names(meta), _about(meta, path)


def _torch(path: Any, done: str) -> Any:
    """Return PyTorch. Raises WeightsError, "can only be {done} with", if it is missing or too old."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        torch = None
    # Before 2.6 a crafted file could run code despite weights-only loading (CVE-2025-32434).
    if torch is None or tuple(map(int, re.findall(r"\d+", str(torch.__version__))[:2])) < (2, 6):
        raise WeightsError(
            f"{path} can only be {done} with PyTorch 2.6 or newer: pip install 'torch>=2.6' (the CPU build is enough), "
            f"or use .safetensors, to which tood_jax.cli.convert converts it where PyTorch is installed."
        )
    return torch


def _refuse_compressed(path: Any) -> None:
    """Refuse an archive that is larger when unpacked: PyTorch never compresses, so it is a decompression bomb."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a whole PyTorch checkpoint ({printable(_first_line(error))}).") from None
    if unpacked > os.path.getsize(path):
        raise WeightsError(f"{path} is refused: it unpacks to {unpacked} bytes, and PyTorch doesn't compress.")


def _unwrap(content: Any, torch: Any, path: Any) -> Mapping[str, Any]:
    """Return the dictionary of tensors in what a training program saved."""
    for _ in range(3):
        inner = next((content[key] for key in _WRAPPERS if isinstance(_dict(content).get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        found = ", ".join(map(str, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise WeightsError(f"{path} holds no dictionary of tensors; it holds {found or 'nothing'}.")
    return content


def _arrays(state_dict: Mapping[str, Any], torch: Any, path: Any) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in state_dict.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            raise WeightsError(f"{path}: {name} is not a plain tensor but a {type(value).__name__}.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(f"{path} is refused: {name} has more values than the file holds.")
        value = value.detach()
        yield str(name), (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _meta_class_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the class names in the meta of mmdetection 3 (dataset_meta) or 2 (CLASSES)."""
    inner = {str(key).lower(): value for key, value in _dict(meta.get("dataset_meta")).items()}
    return _names(inner.get("classes")) or _names(meta.get("CLASSES"))


def _names(value: Any) -> tuple[str, ...] | None:
    is_list_of_texts = isinstance(value, (list, tuple)) and value and all(as_text(name) is not None for name in value)
    return tuple(value) if is_list_of_texts else None


def _about(metadata: Mapping[str, Any], path: Any) -> dict[str, Any]:
    """Return the `about` of `write_weights`; {} for other files. Raises WeightsError if it is damaged."""
    try:
        about = parse_json(metadata[_ABOUT], _MAX_ABOUT_BYTES) if isinstance(metadata.get(_ABOUT), str) else {}
        if not isinstance(about, dict):
            raise JsonError("is not an object")
    except JsonError as error:
        raise WeightsError(f"{path}: its metadata {_ABOUT!r} {error}; convert the weights again.") from None
    return about


def _parse(text: Any) -> Any:
    """Return the value of a JSON text of any program; None if it is not JSON."""
    try:
        return parse_json(text, _MAX_ABOUT_BYTES) if isinstance(text, str) else None
    except JsonError:
        return None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
