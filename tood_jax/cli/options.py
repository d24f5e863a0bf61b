"""The command line of every door: `--config configs/NAME.py`, overrides of its fields, and the door's own options.

    @dataclass(frozen=True)
    class Args:
        resume: bool = False
        \"""Go on from the newest checkpoint.\"""

    args, config = parse(Args, sys.argv[1:], prog="train.py", description="Train a detector.")

    python train.py --config configs/NAME.py --train.batch_size=8 --optimizer.clip_norm=None --resume

An option is written `--group.field=value` or `--group.field value`, with `_` or `-`. Yes-or-no options may stand alone
(`--resume`) or take True or False. Lists of numbers are split at commas, blanks, brackets and ×, so that
`--data.buckets=800x1088,1088x800`, `--data.buckets 800 1088 1088 800` and `--optimizer.step_epochs=8,11` all work;
`--optimizer.step_epochs=()` is the empty list. What is wrong is said in one sentence, with exit status 2.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import io
import re
import sys
import traceback
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import tyro

from tood_jax.config import Config, from_dict, load_config_json, to_dict
from tood_jax.config_rules import check
from tood_jax.typed import ConfigError, expected, leaf_hints, nearest

Args = TypeVar("Args")
_FLAGS = {"true": "True", "false": "False"}
_STYLE = (tyro.conf.FlagConversionOff,)  # yes-or-no options take a value, like all others


def parse(
    args_type: type[Args],
    argv: Sequence[str],
    *,
    prog: str,
    description: str = "",
    default_config: str | Config = "",
) -> tuple[Args, Config]:
    """Read a door's command line: its own options, and the config with its overrides, checked.

    Args:
        args_type: a dataclass of the door's own options, documented field by field; `tyro.conf.Positional[...]` marks
            arguments without a name. Its names must differ from the groups of `Config`.
        argv: the words after the program's name.
        prog: the program's name, for help and errors.
        default_config: the config, or the path of one, taken without `--config`; "" makes `--config` obligatory.

    Exits with status 0 after `--help` and with 2, after one sentence on stderr, when anything is wrong.
    """
    try:
        path, words = _take_config(list(argv), default_config)
        wants_help = "-h" in words or "--help" in words
        if wants_help and not path:
            _help_without_config(args_type, prog, description)
        if not path:
            names = ", ".join(name for name, _ in list_configs())
            raise ConfigError(f"Name a config: {prog} --config configs/NAME.py, where NAME is one of {names}.")
        config = load_config(path) if isinstance(path, str) else path
        options = _options(args_type, words) if not wants_help else []
        whole: Any = _tyro(args_type, config, options, wants_help, prog, description)
        check(whole.config)
    except ConfigError as error:
        _refuse(prog, str(error))
    return whole.args, whole.config


def load_config(path: str) -> Config:
    """The config of a Python file with a function `config()`, a JSON file of `save_config`, or a name in configs/.

    Raises ConfigError in one sentence: no such file (and what is near), no `config()`, or what went wrong in it, where.
    """
    file = _find(path)
    if file.suffix == ".json":
        return load_config_json(file)
    try:
        spec = importlib.util.spec_from_file_location(f"configs.{file.stem}", file)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{path} is neither a Python file (.py) nor a saved config (.json).")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, "config", None)
        if not callable(function):
            raise ConfigError(f"{path} has no function config() that returns a Config.")
        config = function()
    except ConfigError:
        raise
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        text = error.msg if isinstance(error, SyntaxError) else error
        raise ConfigError(f"{path}, line {line}: {type(error).__name__}: {text}.") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: config() returned {type(config).__name__}, not a Config.")
    try:
        return from_dict(to_dict(config))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def list_configs() -> list[tuple[str, str]]:
    """Names of the files in configs/ and the first line of their docstrings, sorted; nothing is run."""
    files = sorted(file for file in _folder().glob("*.py") if not file.name.startswith("_"))
    return [(file.stem, (_docstring(file) or "").strip().partition("\n")[0]) for file in files]


def _docstring(file: Path) -> str | None:
    try:
        return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    except (SyntaxError, ValueError):
        return "(can't be read)"


def _folder() -> Path:
    here = Path("configs")
    return here if here.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def _find(path: str) -> Path:
    file = Path(path)
    if file.is_file():
        return file.resolve()
    named = _folder() / f"{path}.py"
    if named.is_file():
        return named.resolve()
    folder = file.parent if file.parent.is_dir() and file.parent != Path() else _folder()
    stems = sorted(f.stem for f in folder.glob("*.py"))
    near = nearest(file.stem, stems, count=3, cutoff=0.4) or f" There: {', '.join(stems) or 'no configs at all'}."
    raise ConfigError(f"There is no config {path}.{near}")


def _take_config(words: list[str], default: str | Config) -> tuple[str | Config, list[str]]:
    """The path after --config (or the default), and the other words."""
    rest: list[str] = []
    paths: list[str] = []
    stream = iter(words)
    for word in stream:
        name, equals, value = word.partition("=")
        if name != "--config":
            rest.append(word)
            continue
        value = value if equals else next(stream, "")
        if not value or value.startswith("-"):
            raise ConfigError("--config needs the path of a config after it.")
        paths.append(value)
    if len(paths) > 1:
        raise ConfigError(f"--config is given more than once: {', '.join(paths)}.")
    return (paths[0] if paths else default), rest


def _options(args_type: Any, words: list[str]) -> list[str]:
    """The words as tyro wants them, after checking every option's name and value."""
    hints = leaf_hints(Config) | leaf_hints(args_type)
    positional = _has_positional(args_type)
    words, plain, named = list(words), [], []
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if not positional:
                raise ConfigError(f"{word!r} is not an option; options are written --group.field=value.")
            plain.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name[2:].replace("-", "_")
        if name not in hints:
            raise ConfigError(_unknown(name, list(hints)))
        values = [value] if equals else _take_values(hints[name], words)
        named += _option(name, hints[name], values)
    return plain + named  # in this order: a list among the options would swallow what follows it


def _take_values(hint: Any, words: list[str]) -> list[str]:
    """Take the values off the front of `words` that an option of this type may have."""
    values: list[str] = []
    many = typing.get_origin(hint) is tuple
    while words and not words[0].startswith("--") and (many or not values):
        if hint is bool and words[0].lower() not in _FLAGS:
            break
        values.append(words.pop(0))
    return values


def _option(name: str, hint: Any, values: list[str]) -> list[str]:
    """One option in tyro's words; raises ConfigError if its value doesn't fit."""
    given = " ".join(values)
    if not values:
        if hint is not bool:
            raise ConfigError(f"--{name} needs a value: {expected(hint)}.")
        values = ["True"]
    if _numbers(hint):
        values = [number for value in values for number in re.split(r"[\s,;x×()\[\]]+", value) if number]
    if hint is bool:
        values = [_FLAGS.get(value.lower(), value) for value in values]
    if type(None) in typing.get_args(hint):
        values = ["None" if value.lower() == "none" else value for value in values]
    alone = dataclasses.make_dataclass("Alone", [("value", hint)])
    words = [f"--value={values[0]}"] if len(values) == 1 else ["--value", *values]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # tyro's own box of lines
            tyro.cli(alone, args=words, console_outputs=False, config=_STYLE)
    except SystemExit:
        literals = [str(part) for part in typing.get_args(hint)] if typing.get_origin(hint) is typing.Literal else []
        raise ConfigError(f"--{name}={given} must be {expected(hint)}.{nearest(given, literals)}") from None
    return [words[0].replace("--value", f"--{name}", 1), *words[1:]]


def _numbers(hint: Any) -> bool:
    """Whether a type is a tuple of numbers, or of such tuples."""
    parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
    return typing.get_origin(hint) is tuple and all(part in (int, float) or _numbers(part) for part in parts)


def _unknown(name: str, names: list[str]) -> str:
    inside = [other for other in names if other.startswith(f"{name}.")]
    if inside:
        return f"--{name} is a group of options; set one of --{', --'.join(inside)}."
    leaf = name.rpartition(".")[2]
    same = [other for other in names if other.rpartition(".")[2] == leaf]
    if same:
        return f"There is no option --{name}. Did you mean --{' or --'.join(same)}?"
    near = nearest(f"--{name}", [f"--{other}" for other in [*names, "config", "help"]])
    leaves = {other.rpartition(".")[2]: other for other in names}
    if not near and (close := difflib.get_close_matches(leaf, list(leaves), n=1)):
        near = f" Did you mean --{leaves[close[0]]}?"
    return f"There is no option --{name}.{near or ' --help lists them all.'}"


def _has_positional(args_type: Any) -> bool:
    marker = typing.get_args(tyro.conf.Positional[int])[1]
    hints = typing.get_type_hints(args_type, include_extras=True)
    return any(marker in typing.get_args(hint) for hint in hints.values())


def _tyro(args_type: Any, config: Config, options: list[str], wants_help: bool, prog: str, description: str) -> Any:
    """One object with the door's own options as `.args` and the config as `.config`."""
    flat = tyro.conf.arg(name="")
    fields: list[Any] = [("args", Annotated[args_type, flat]), ("config", Annotated[Config, flat], config)]
    whole = dataclasses.make_dataclass("Options", fields, frozen=True)
    words = ["--help"] if wants_help else options
    return tyro.cli(whole, args=words, prog=prog, description=description, use_underscores=True, config=_STYLE)


def _help_without_config(args_type: Any, prog: str, description: str) -> NoReturn:
    print(f"{description}\n\n    {prog} --config configs/NAME.py [--group.field=value …]\n\nConfigs:")
    configs = list_configs()
    width = max([len(name) for name, _ in configs], default=0)
    for name, line in configs:
        print(f"  {name:{width}}  {line}")
    print(
        f"\n`{prog} --config configs/NAME.py --help` explains every field, with that config's values. Always there:\n"
    )
    tyro.cli(args_type, args=["--help"], prog=prog, use_underscores=True, config=_STYLE)
    raise SystemExit(0)


def _refuse(prog: str, message: str) -> NoReturn:
    print(f"{prog}: {message}", file=sys.stderr)
    raise SystemExit(2)
