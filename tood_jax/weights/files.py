"""Reading and writing files of tensors: PyTorch's `.pth` (or `.pt`, `.pth.tar`) and `.safetensors`.

A `.pth` is a pickle, and a pickle can run any program. Here only tensors and plain values are taken from it; a file
that asks for anything else is refused before anything of it has run. PyTorch itself is needed for `.pth` only.
"""

import importlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  teaches numpy bfloat16
import numpy as np
import safetensors
import safetensors.numpy

from tood_jax.weights.mapping import Tensors, WeightsError

_ABOUT = "tood_jax"  # the key in the file's metadata under which `about` lies
_WRAPPERS = ("state_dict", "model", "model_state_dict")  # in which published files keep the tensors
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_LOSES = (np.dtype(np.float64), np.dtype(np.float16), np.dtype("bfloat16"))
_SAFETENSORS_TYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
# Training checkpoints of mmengine hold the history of their log. It is not wanted, so an empty object takes the place
# of each of these, `getattr` among them (which the history's methods are pickled by): nothing of them is called.
_IGNORED = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.dtypes.{name}DType" for name in ("Float64", "Float32", "Int64", "Int32", "Bool", "UInt8")),
)


class WeightsFile(NamedTuple):
    """What a file held."""

    tensors: Tensors  # float32 where the file had another float
    class_names: tuple[str, ...] | None  # by label, if the file names them
    about: dict[str, Any]  # what `write_weights` of this package was given; {} in other files


class _Ignored:
    """Stands for an object that isn't wanted; takes any arguments and any state, and keeps none."""

    def __init__(self, *_: Any, **__: Any): ...

    def __new__(cls, *_: Any, **__: Any) -> "_Ignored":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None: ...


def is_weights_file(path: str | os.PathLike[str]) -> bool:
    """Whether the name's ending is one that `read_weights` and `write_weights` know."""
    return str(path).endswith((".safetensors", ".pth", ".pt", ".pth.tar"))


def read_weights(path: str | os.PathLike[str]) -> WeightsFile:
    """All tensors of a file, without the prefixes and wrappers of training programs.

    Raises:
        WeightsError: in one sentence: no such file, not readable, or refused because it wants to run something.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"There is no file {path}.")
    if not is_weights_file(path):
        raise WeightsError(f"{path} must end in .pth, .pt or .safetensors.")
    tensors, class_names, about = (_read_safetensors if str(path).endswith(".safetensors") else _read_torch)(path)
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors.")
    singles = {name: a.astype(np.float32) if a.dtype in _LOSES else a for name, a in tensors.items()}
    return WeightsFile(singles, class_names, about)


def write_weights(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    class_names: tuple[str, ...] | None,
    about: Mapping[str, Any],
) -> None:
    """Write tensors, the classes' names by label (also where mmdetection looks for them) and `about` (plain JSON).

    The folder is made; the file appears whole or not at all. Raises WeightsError without PyTorch for a `.pth`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    whole = {name: np.require(array, requirements="C") for name, array in tensors.items()}  # keeps 0-d arrays 0-d
    try:
        if path.suffix == ".safetensors":
            metadata = {"format": "pt", _ABOUT: json.dumps(about)}
            if class_names is not None:
                metadata["classes"] = json.dumps(class_names)
            safetensors.numpy.save_file(whole, fresh, metadata=metadata)
        else:
            torch = _torch(path, "written")
            names = {} if class_names is None else {"CLASSES": class_names, "dataset_meta": {"classes": class_names}}
            state_dict = {name: torch.from_numpy(np.array(array)) for name, array in whole.items()}
            torch.save({"state_dict": state_dict, "meta": {**names, _ABOUT: json.dumps(about)}}, fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _read_safetensors(path: Any) -> tuple[Tensors, tuple[str, ...] | None, dict[str, Any]]:
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  not a dict
            for name, kind in types.items():
                if kind not in _SAFETENSORS_TYPES:
                    raise WeightsError(f"{path}: {name} has the type {kind}, which can't be read.")
            tensors = {name: file.get_tensor(name) for name in types}
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a whole .safetensors file ({_first_line(error)}).") from None
    return tensors, _names(_parse(metadata.get("classes"))), _dict(_parse(metadata.get(_ABOUT)))


def _read_torch(path: Any) -> tuple[Tensors, tuple[str, ...] | None, dict[str, Any]]:
    torch = _torch(path, "read")
    _refuse_compressed(path)
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in _IGNORED]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # PyTorch reports damage by many types
        wanted = re.search(r"GLOBAL ([\w.]+)|(?:function|but got) ([^\n]+)", str(error))
        if wanted and type(error).__name__ == "UnpicklingError":
            what = wanted[1] or wanted[2]
            raise WeightsError(
                f"{path} is refused: besides tensors it asks for {what}, which could run a program. Nothing of it ran."
            ) from None
        raise WeightsError(f"{path} is not a whole PyTorch checkpoint ({_first_line(error)}).") from None
    meta = _dict(_dict(content).get("meta"))
    tensors = dict(_arrays(_unwrap(content, torch, path), torch, path))
    return tensors, _names_in(meta), _dict(_parse(meta.get(_ABOUT)))


def _torch(path: Any, done: str) -> Any:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        torch = None
    # Before 2.6 a crafted file could run code in spite of weights-only loading (CVE-2025-32434).
    if torch is None or tuple(map(int, re.findall(r"\d+", str(torch.__version__))[:2])) < (2, 6):
        raise WeightsError(
            f"{path} can only be {done} with PyTorch 2.6 or newer: pip install 'torch>=2.6' (its CPU build will do), "
            f"or use .safetensors, to which tood_jax.cli.convert brings it once, wherever PyTorch is installed."
        )
    return torch


def _refuse_compressed(path: Any) -> None:
    """PyTorch never compresses, so an archive that is larger inside than outside is a bomb."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            inside = sum(one.file_size for one in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a whole PyTorch checkpoint ({_first_line(error)}).") from None
    if inside > os.path.getsize(path):
        raise WeightsError(f"{path} is refused: it unpacks to {inside} bytes, and PyTorch doesn't compress.")


def _unwrap(content: Any, torch: Any, path: Any) -> Mapping[str, Any]:
    """The dictionary of tensors in what a training program saved."""
    for _ in range(3):
        inner = next((content[key] for key in _WRAPPERS if isinstance(_dict(content).get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        held = ", ".join(map(str, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise WeightsError(f"{path} holds no dictionary of tensors; it holds {held or 'nothing'}.")
    return content


def _arrays(state_dict: Mapping[str, Any], torch: Any, path: Any) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in state_dict.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            raise WeightsError(f"{path}: {name} is no plain tensor but a {type(value).__name__}.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(f"{path} is refused: {name} claims more numbers than the file holds.")
        value = value.detach()
        yield str(name), (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _names_in(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Classes from the meta of mmdetection 3 (dataset_meta) or 2 (CLASSES)."""
    inner = {str(key).lower(): value for key, value in _dict(meta.get("dataset_meta")).items()}
    return _names(inner.get("classes")) or _names(meta.get("CLASSES"))


def _names(value: Any) -> tuple[str, ...] | None:
    whole = isinstance(value, (list, tuple)) and value and all(isinstance(name, str) for name in value)
    return tuple(value) if whole else None


def _parse(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
