"""Config files: Python files with a function `config()`, JSON files of `save_config`, and the folder configs/."""

import ast
import importlib.util
import traceback
from pathlib import Path

from tood_jax.config.conversion import ConfigError, did_you_mean
from tood_jax.config.paths import expand_home
from tood_jax.config.schema import Config
from tood_jax.config.serialization import from_dict, load_config_json, to_dict
from tood_jax.untrusted.terminal import print_warning


def load_config(path: str) -> Config:
    """Return the config of a Python file, of a JSON file, or of the file in configs/ that has this name.

    Raises:
        ConfigError: the file does not exist or has no `config()`, or what failed in it and in which line.
    """
    file = _find(path)
    if file.suffix == ".json":
        return load_config_json(file, lambda note: print_warning(f"Note: {note}"))
    config = _run(file, path)
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: config() returned {type(config).__name__}, not a Config.")
    try:
        return from_dict(to_dict(config))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def list_configs() -> list[tuple[str, str]]:
    """Return names and first docstring lines of the files in configs/, sorted; nothing is run."""
    files = sorted(file for file in _folder().glob("*.py") if not file.name.startswith("_"))
    return [(file.stem, (_docstring(file) or "").strip().partition("\n")[0]) for file in files]


def _run(file: Path, path: str) -> object:
    """Return what the function `config()` of a Python file returns; `path` is its name in messages."""
    try:
        spec = importlib.util.spec_from_file_location(f"configs.{file.stem}", file)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{path} is neither a Python file (.py) nor a saved config (.json).")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, "config", None)
        if not callable(function):
            raise ConfigError(f"{path} has no function config() that returns a Config.")
        return function()
    except ConfigError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        text = error.msg if isinstance(error, SyntaxError) else error
        raise ConfigError(f"{path}, line {line}: {type(error).__name__}: {text}.") from error


def _docstring(file: Path) -> str | None:
    try:
        return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    except (SyntaxError, ValueError):
        return "(can't be read)"


def _folder() -> Path:
    """The folder configs/ of the working directory, or else of the repository."""
    here = Path("configs")
    return here if here.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def _find(path: str) -> Path:
    file = Path(expand_home(path))
    if file.is_file():
        return file.resolve()
    in_configs = _folder() / f"{path}.py"
    if in_configs.is_file():
        return in_configs.resolve()
    folder = file.parent if file.parent.is_dir() and file.parent != Path() else _folder()
    names = sorted(found.stem for found in folder.glob("*.py"))
    listed = f" The folder {folder} has: {', '.join(names) or 'no configs'}."
    raise ConfigError(f"There is no config {path}.{did_you_mean(file.stem, names, count=3, cutoff=0.4) or listed}")
