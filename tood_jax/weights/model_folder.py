"""Folders of trained models, as `tood push` writes them and the Hub keeps them.

    config.json          format, config, classes, step and metrics
    model.safetensors    the weights under flax names; its metadata has the config and the classes, too
    README.md, …         for people

Other programs may add files and keys of config.json, which are ignored here. A model folder opens like a checkpoint.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tood_jax.checkpoint.about_json import MAX_ABOUT_BYTES, check_about
from tood_jax.checkpoint.reader import Checkpoint, CheckpointError, nest, open_checkpoint
from tood_jax.run_log.strict_json import json_safe
from tood_jax.untrusted.bounded_json import JsonError, parse_json
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import read_regular
from tood_jax.weights import hub
from tood_jax.weights.download import is_remote, parse_remote
from tood_jax.weights.files import read_weights
from tood_jax.weights.mapping import WeightsError

CONFIG, WEIGHTS = "config.json", hub.STANDARD_FILE
FORMAT = "tood_jax model 1"
_KEYS = ("config", "classes", "step", "metrics")  # of the `about` of a checkpoint


def model_json(about: Mapping[str, Any]) -> bytes:
    """Return the content of config.json for the `about` of a checkpoint."""
    values = {"format": FORMAT, **{key: about[key] for key in _KEYS if key in about}}
    return f"{json.dumps(json_safe(values), indent=2, ensure_ascii=False)}\n".encode()


@dataclass(frozen=True)
class ModelFolder(Checkpoint):
    """A model folder, opened like a checkpoint: without the optimizer, and with the moving average as its weights."""

    tensors: Mapping[str, np.ndarray]
    """By flax name."""

    def arrays(self, *groups: str) -> dict[str, Any]:
        """Return a nested dict of numpy arrays of these groups, "params" and "batch_stats"."""
        return nest({name: array for name, array in self.tensors.items() if name.split("/")[0] in groups})


def open_model(
    name: str | Path,
    step: int | Literal["best", "latest"] = "best",
    log: Callable[[str], object] = print,
    warn: Callable[[str], object] = print,
) -> Checkpoint:
    """Open a trained model: a run's folder, a model folder, or one on the Hub.

    Args:
        name: the folder, or hf://USER/REPO[@REVISION].
        step: of a run, as in `open_checkpoint`. A model folder has only one.
        log: called with a line that shows the commit and the checksum of downloaded weights.
        warn: called with a warning for each damaged checkpoint that is skipped.

    Raises:
        CheckpointError: there is none, it is damaged, or it can't be downloaded.
    """
    folder = _download_folder(str(name), log) if is_remote(name) else Path(name)
    if not (folder / WEIGHTS).is_file():
        return open_checkpoint(folder, step, warn)
    about = _read_about(folder / CONFIG, str(name))
    if isinstance(step, int) and step != about.get("step"):
        raise CheckpointError(f"step {step} was asked for, but {printable(name)} has step {about.get('step')} only.")
    tensors = read_weights(folder / WEIGHTS).tensors
    if not all(tensor.startswith(("params/", "batch_stats/")) for tensor in tensors):
        raise WeightsError(f"{folder / WEIGHTS} has weights of another program: convert them with `tood convert`.")
    leaves = {tensor: {"shape": list(array.shape), "dtype": str(array.dtype)} for tensor, array in tensors.items()}
    return ModelFolder(folder, about.get("step", 0), about, leaves, tensors)


def _download_folder(name: str, log: Callable[[str], object]) -> Path:
    """Return the folder in the cache with both files of one commit. Raises WeightsError."""
    remote = parse_remote(name)
    if not remote.repo or remote.file:
        raise WeightsError(
            f"{printable(name)} names a file of weights, and not a model: name a repository, "
            "hf://USER/REPO[@REVISION], or convert the file with `tood convert --weights`."
        )
    config = hub.fetch(remote.repo, remote.revision, CONFIG, None)
    commit = config.path.parent.name
    _read_about(config.path, name)  # before the weights, which may be large
    weights = hub.fetch(remote.repo, commit, WEIGHTS, remote.sha256)
    log(f"{printable(name)}: {weights.origin}, sha256 {weights.sha256}")
    return config.path.parent


def _read_about(path: Path, name: str) -> dict[str, Any]:
    """Return what config.json has of a checkpoint's `about`. Raises CheckpointError, which names the model."""
    try:
        values = parse_json(read_regular(path, MAX_ABOUT_BYTES), MAX_ABOUT_BYTES)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise JsonError(f"has no format {FORMAT!r}; for weights alone, use `tood convert --config … --weights`")
        about = {key: values[key] for key in _KEYS if key in values}
        check_about(about)
    except JsonError as error:
        raise CheckpointError(f"{printable(name)} is no model of tood_jax: its {CONFIG} {error}.") from None
    except OSError as error:
        raise CheckpointError(f"{printable(name)}: {path} can't be read ({error.strerror or error}).") from None
    return about
