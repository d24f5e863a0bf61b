"""Config files: Python files with a function `config()`, JSON files of `save_config`, and the published configs.

The published configs are the folder configs/ of the repository; an installed package has a copy of it (setup.py).
"""

import ast
import importlib.util
import traceback
from dataclasses import replace
from pathlib import Path

from tood_jax.config.conversion import ConfigError, did_you_mean
from tood_jax.config.paths import expand_home
from tood_jax.config.schema import Config, SplitConfig
from tood_jax.config.serialization import from_dict, load_config_json, to_dict
from tood_jax.untrusted.terminal import print_warning

_OWN_FOLDER = Path("configs")  # of the working directory


def load_config(path: str, data: str = "") -> Config:
    """Return the config of a Python file, of a JSON file, or of a name of `find_configs`.

    configs/NAME.py is also found where that folder does not exist, so that commands of the manual work everywhere.

    Args:
        path: the file or the name.
        data: a folder with a data set in a common layout, which replaces both splits of the config; "" keeps them.

    Raises:
        ConfigError: the file does not exist or has no `config()`, or what failed in it and in which line.
    """
    file = _find(path)
    if file.suffix == ".json":
        return _with_data(load_config_json(file, lambda note: print_warning(f"Note: {note}")), data)
    config = _run(file, path)
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: config() returned {type(config).__name__}, not a Config.")
    try:
        return _with_data(from_dict(to_dict(config)), data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _with_data(config: Config, folder: str) -> Config:
    if not folder:
        return config
    train, val = (SplitConfig(folder=expand_home(folder), folder_split=split) for split in ("train", "val"))
    return replace(config, data=replace(config.data, train=train, val=val))


def find_configs() -> dict[str, Path]:
    """Return the published configs and the files of the working directory's folder configs/, by name, sorted.

    The name of the published configs/rivals/NAME.py is rivals/NAME. A file here hides a published one of its name.
    """
    published = published_folder()
    files = {file.relative_to(published).with_suffix("").as_posix(): file for file in published.rglob("*.py")}
    files |= {file.stem: file.resolve() for file in _OWN_FOLDER.glob("*.py")}
    return dict(sorted((name, file) for name, file in files.items() if not file.name.startswith("_")))


def published_folder() -> Path:
    """Return the folder with the published configs: that of the installed package, or of the repository."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def list_configs() -> list[tuple[str, str]]:
    """Return names and first docstring lines of the configs that are in no subfolder, sorted; nothing is run."""
    return [(name, docstring(file).partition("\n")[0]) for name, file in find_configs().items() if "/" not in name]


def docstring(file: Path) -> str:
    """Return the docstring of a Python file; "" if it has none, "(can't be read)" if it is not Python."""
    try:
        return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").strip()
    except (SyntaxError, ValueError):
        return "(can't be read)"


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


def _find(path: str) -> Path:
    file = Path(expand_home(path))
    if file.is_file():
        return file.resolve()
    known = find_configs()
    name = path.removeprefix("configs/").removesuffix(".py")
    if (own := _OWN_FOLDER / f"{name}.py").is_file():
        return own.resolve()
    if name in known:
        return known[name]
    has_folder = file.parent.is_dir() and file.parent != Path()
    names = sorted(found.stem for found in file.parent.glob("*.py")) if has_folder else list(known)
    where = f"The folder {file.parent} has" if has_folder else "There are"
    listed = f" {where}: {', '.join(names) or 'no configs'}."
    raise ConfigError(f"There is no config {path}.{did_you_mean(file.stem, names, count=3, cutoff=0.4) or listed}")
