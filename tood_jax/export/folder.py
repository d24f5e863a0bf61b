"""Folders of exported detectors.

manifest.json         classes, thresholds, canvases, inputs and outputs, versions, and the SHA-256 of every file
weights.safetensors   the weights in float32 under flax names: the first argument of each program
*.stablehlo           one program per canvas, in the format of `jax.export`
run.py                detects objects in images, without this package
parity.json           how far the results differ from those of the checkpoint
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tood_jax.checkpoint.about_json import MAX_ABOUT_BYTES, check_about
from tood_jax.checkpoint.reader import Checkpoint, CheckpointError
from tood_jax.config import Config
from tood_jax.config.validation import stored_config
from tood_jax.data.dataset import ClassInfo
from tood_jax.files import write_atomically
from tood_jax.untrusted.bounded_json import JsonError, as_integer, parse_json
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import read_regular
from tood_jax.weights.files import read_weights
from tood_jax.weights.model_folder import ModelFolder, open_model

MANIFEST, WEIGHTS, PARITY = "manifest.json", "weights.safetensors", "parity.json"
FORMAT, FORMAT_NAMES = "tood_jax export 1", ("stablehlo", "onnx")
_MAX_BYTES = 4 << 30
_HASH = "sha256"


class ExportError(CheckpointError):
    """A detector can't be exported, or an exported folder can't be used."""


class Program(NamedTuple):
    """A file with the program of a canvas."""

    file: str
    canvas: tuple[int, int]  # (height, width) of the network's input, pixels
    batch: int  # number of images; 0 for any


@dataclass(frozen=True)
class ExportedFolder(ModelFolder):
    """An exported folder whose manifest and weights were checked; it opens like a checkpoint."""

    manifest: Mapping[str, Any]
    config: Config
    classes: tuple[ClassInfo, ...]
    programs: Mapping[str, tuple[Program, ...]]
    """Of each format: its programs, smallest canvas first."""

    def read(self, name: str) -> bytes:
        """Return the content of a file; errors are those of `open_exported`."""
        return _read(self.folder, self.manifest, name)


def _read(folder: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    expected = manifest[_HASH].get(name)
    if expected is None:
        raise ExportError(f"{folder / MANIFEST} has no {_HASH} of {printable(name)}: export it again.")
    try:
        data = read_regular(folder / name, _MAX_BYTES)
    except OSError as error:
        raise ExportError(f"{folder / name} can't be read ({error.strerror or error}).") from None
    if hashlib.sha256(data).hexdigest() != expected:
        raise ExportError(f"{folder / name} differs from the {_HASH} in {MANIFEST}: copy or export it again.")
    return data


def is_exported(folder: str | Path) -> bool:
    """Return whether this is an exported folder, by its manifest."""
    return (Path(folder) / MANIFEST).is_file()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file that people can read."""
    write_atomically(path, f"{json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode())


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the manifest, with the SHA-256 of all other files of the folder."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    write_json(folder / MANIFEST, {"format": FORMAT, **values, _HASH: hashes})


def open_trained(
    name: str | Path,
    step: int | Literal["best", "latest"] = "best",
    log: Callable[[str], object] = print,
    warn: Callable[[str], object] = print,
) -> Checkpoint:
    """Open an exported folder, or what `open_model` opens; arguments and errors are those of `open_model`."""
    return open_exported(name) if is_exported(name) else open_model(name, step, log, warn)


def open_exported(folder: str | Path) -> ExportedFolder:
    """Open an exported folder; its programs are checked when they are read.

    Raises:
        ExportError: the manifest or another file has another form, is damaged, or can't be read.
    """
    path = Path(folder) / MANIFEST
    try:
        values = parse_json(read_regular(path, MAX_ABOUT_BYTES), MAX_ABOUT_BYTES)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise JsonError(f"has no format {FORMAT!r}; export the checkpoint again")
        if not isinstance(values.get(_HASH), dict):
            raise JsonError(f"has no table {_HASH!r}; export the checkpoint again")
        about = {key: values.get(key) for key in ("config", "classes", "step")}
        check_about(about)
        programs = {name: _programs(name, values.get(name)) for name in FORMAT_NAMES if name in values}
    except JsonError as error:
        raise ExportError(f"{path} {error}.") from None
    except OSError as error:
        raise ExportError(f"{path} can't be read ({error.strerror or error}).") from None
    classes = tuple(ClassInfo(one["id"], one["name"]) for one in values["classes"])
    config, _ = stored_config(values.get("config"), path)
    _read(Path(folder), values, WEIGHTS)  # compares the checksum
    tensors = read_weights(Path(folder) / WEIGHTS).tensors
    leaves = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in tensors.items()}
    return ExportedFolder(
        folder=Path(folder),
        step=values["step"],
        about=about,
        leaves=leaves,
        tensors=tensors,
        manifest=values,
        config=config,
        classes=classes,
        programs=programs,
    )


def _programs(name: str, section: Any) -> tuple[Program, ...]:
    """Return the programs in the section of a format. Raises JsonError."""
    found = []
    for entry in section.get("programs", ()) if isinstance(section, dict) else ():
        given = entry if isinstance(entry, dict) else {}
        canvas, file, batch = given.get("canvas"), given.get("file"), as_integer(given.get("batch", 0), 0, 1 << 16)
        sides = [as_integer(side, 1, 1 << 16) or 0 for side in canvas] if isinstance(canvas, list) else []
        if len(sides) != 2 or 0 in sides or batch is None or not isinstance(file, str) or Path(file).name != file:
            raise JsonError(f"has a program in {name!r} without a canvas and a file name; export the checkpoint again")
        found.append(Program(file, (sides[0], sides[1]), batch))
    return tuple(found)
