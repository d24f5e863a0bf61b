"""Parse the command line of a program: `--config configs/NAME.py`, its fields, and the program's own options.

    @dataclass(frozen=True)
    class Args:
        resume: bool = False
        \"""Resume from the newest checkpoint.\"""

    args, config = parse(Args, sys.argv[1:], prog="train.py", description="Train a detector.")

    python train.py --config configs/NAME.py --train.batch_size=8 --optimizer.clip_norm=None --resume

An option is written `--group.field=value` or `--group.field value`, with `_` or `-`. A boolean option may stand alone
(`--resume`) or have the value True or False. Lists of numbers are split at commas, blanks, brackets and ×, so that
`--data.buckets=800x1088,1088x800`, `--data.buckets 800 1088 1088 800` and `--optimizer.step_epochs=8,11` all work;
`--optimizer.step_epochs=()` is the empty list.

The command line overrides the config: a source of data on the command line replaces the source in the config (for
example records replace a folder of images). `--data FOLDER` names one folder for both splits. An option given twice is
an error. Every error is one sentence with exit status 2.
"""

import contextlib
import dataclasses
import difflib
import io
import re
import typing
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, TypeVar

import tyro

from tood_jax.cli.process import prepare_process
from tood_jax.cli.ranges_in_help import with_ranges
from tood_jax.config import Config
from tood_jax.config.conversion import ConfigError, describe_type, did_you_mean, leaf_hints
from tood_jax.config.files import list_configs, load_config
from tood_jax.config.paths import expand_paths
from tood_jax.config.renames import current_name
from tood_jax.config.repeated_options import repeated_option
from tood_jax.config.validation import check
from tood_jax.untrusted.terminal import end_quietly_when_closed, print_warning

Args = TypeVar("Args")
_BOOLEANS = {"true": "True", "false": "False"}
_SOURCES = {  # fields of a split by the form of data; each field outside _DETAILS implies the form
    "images": ("images", "annotations"),
    "records": ("records",),
    "tfds": ("tfds", "tfds_split"),
    "folder": ("folder", "folder_split"),
}
_DETAILS = {f"data.{split}.{name}" for split in ("train", "val") for name in ("tfds_split", "folder_split")}
STYLE = (tyro.conf.FlagConversionOff,)  # boolean options take a value, like all others


@end_quietly_when_closed()
def parse(
    args_type: type[Args],
    argv: Sequence[str],
    *,
    prog: str,
    description: str = "",
    default_config: str | Config = "",
) -> tuple[Args, Config]:
    """Return the program's own options, and the config with the fields of the command line, both checked.

    Args:
        args_type: a dataclass of the program's own options, with a docstring for each field;
            `tyro.conf.Positional[...]` marks arguments without a name. Field names must differ from the groups of
            `Config`.
        argv: the words after the name of the program.
        prog: the name of the program, for help and errors.
        description: what the program does, for help.
        default_config: the config without `--config`, or its path; "" makes `--config` obligatory.

    Raises:
        SystemExit: with status 0 after `--help`, and with status 2 after an error in one sentence on stderr.
    """
    prepare_process()
    try:
        path, words = _split_config_option(list(argv), default_config)
        words = _with_current_names(_with_data_folder(words), prog)
        if problem := repeated_option(words):
            raise ConfigError(problem)
        is_help = "-h" in words or "--help" in words
        if is_help and not path:
            _help_without_config(args_type, prog, description)
        if not path:
            names = ", ".join(name for name, _ in list_configs())
            raise ConfigError(f"Name a config: {prog} --config configs/NAME.py, where NAME is one of {names}.")
        config = load_config(path) if isinstance(path, str) else path
        options = [] if is_help else _checked_options(args_type, words, leaf_hints(Config) | leaf_hints(args_type))
        config = _without_replaced_sources(config, options)
        parsed: Any = expand_paths(_call_tyro(args_type, config, options, is_help, prog, description))
        check(parsed.config)
    except ConfigError as error:
        _exit_with_error(prog, str(error))
    return parsed.args, parsed.config


@end_quietly_when_closed()
def parse_without_config(args_type: type[Args], argv: Sequence[str], *, prog: str, description: str) -> Args:
    """Return the options of a program that takes no config, checked; arguments and errors are those of `parse`."""
    prepare_process()
    try:
        if problem := repeated_option(argv):
            raise ConfigError(problem)
        is_help = "-h" in argv or "--help" in argv
        words = ["--help"] if is_help else _checked_options(args_type, list(argv), leaf_hints(args_type))
        parsed = tyro.cli(args_type, args=words, prog=prog, description=description, use_underscores=True, config=STYLE)
        return expand_paths(parsed)
    except ConfigError as error:
        _exit_with_error(prog, str(error))


def refuse_repeated_options(argv: Sequence[str], prog: str) -> None:
    """Exit with status 2 if an option is given twice; for programs that read options before they call `parse`."""
    if problem := repeated_option(argv):
        _exit_with_error(prog, problem)


def _without_replaced_sources(config: Config, options: Sequence[str]) -> Config:
    """Return the config without the sources of data that the options replace.

    Raises:
        ConfigError: two options name sources of the same split.
    """
    named = {word[2:].partition("=")[0] for word in options if word.startswith("--") and not word.endswith("=")}
    named -= _DETAILS
    data = config.data
    for split in ("train", "val"):
        given = [form for form, fields in _SOURCES.items() if any(f"data.{split}.{name}" in named for name in fields)]
        if len(given) > 1:
            names = " and ".join(f"--data.{split}.{form}" for form in given)
            raise ConfigError(f"{names} each name a source of the split {split}; give one of them.")
        others = [name for form, fields in _SOURCES.items() if given and form != given[0] for name in fields]
        cleared = dataclasses.replace(getattr(data, split), **dict.fromkeys(others, ""))
        data = dataclasses.replace(data, **{split: cleared})
    return dataclasses.replace(config, data=data)


def _split_config_option(words: list[str], default: str | Config) -> tuple[str | Config, list[str]]:
    """Return the path after --config (or the default), and the other words."""
    others: list[str] = []
    paths: list[str] = []
    stream = iter(words)
    for word in stream:
        name, equals, value = word.partition("=")
        if name != "--config":
            others.append(word)
            continue
        value = value if equals else next(stream, "")
        if not value or value.startswith("-"):
            raise ConfigError("--config needs a value: the path of a config.")
        paths.append(value)
    if len(paths) > 1:
        raise ConfigError(f"--config is given more than once: {', '.join(paths)}.")
    return (paths[0] if paths else default), others


def _with_data_folder(words: Sequence[str]) -> list[str]:
    """Return the words with `--data FOLDER` replaced by the fields of both splits that it stands for."""
    others: list[str] = []
    stream = iter(words)
    for word in stream:
        _, equals, value = word.partition("=")
        if _name_of(word) != "data":
            others.append(word)
            continue
        value = value if equals else next(stream, "")
        if not value or value.startswith("-"):
            raise ConfigError("--data needs a value: the folder of a data set.")
        for split in ("train", "val"):
            others.append(f"--data.{split}.folder={value}")
            if not any(_name_of(word) == f"data.{split}.folder_split" for word in words):
                others.append(f"--data.{split}.folder_split={split}")
    return others


def _name_of(word: str) -> str:
    """Return the name of the option that a word is; "" for a value."""
    return word[2:].partition("=")[0].replace("-", "_") if word.startswith("--") else ""


def _with_current_names(words: Sequence[str], prog: str) -> list[str]:
    """Return the words with the current names of renamed options, after a note on each."""
    renamed = []
    for word in words:
        name, equals, value = word.partition("=")
        old = name.removeprefix("--").replace("-", "_")
        new = current_name(old) if word.startswith("--") else old
        if new != old:
            print_warning(f"{prog}: note: the option --{old} is now --{new}.")
            word = f"--{new}{equals}{value}"
        renamed.append(word)
    return renamed


def _checked_options(args_type: Any, words: list[str], hints: dict[str, Any]) -> list[str]:
    """Return the words in the form that tyro reads, after a check of the name and the value of each option."""
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
            raise ConfigError(_describe_unknown(name, list(hints)))
        values = [value] if equals else _take_values(hints[name], words)
        named += _checked_option(name, hints[name], values)
    return plain + named  # in this order, because a list option takes all words that follow it


def _take_values(hint: Any, words: list[str]) -> list[str]:
    """Remove the values of an option of this type from the front of `words`, and return them."""
    values: list[str] = []
    many = typing.get_origin(hint) is tuple
    while words and not words[0].startswith("--") and (many or not values):
        if hint is bool and words[0].lower() not in _BOOLEANS:
            break
        values.append(words.pop(0))
    return values


def _checked_option(name: str, hint: Any, values: list[str]) -> list[str]:
    """Return one option in the form that tyro reads. Raises ConfigError if its value has another type."""
    given = " ".join(values)
    if not values:
        if hint is not bool:
            raise ConfigError(f"--{name} needs a value: {describe_type(hint)}.")
        values = ["True"]
    if _is_numbers(hint):
        values = [number for value in values for number in re.split(r"[\s,;x×()\[\]]+", value) if number]
    if hint is bool:
        values = [_BOOLEANS.get(value.lower(), value) for value in values]
    if type(None) in typing.get_args(hint):
        values = ["None" if value.lower() == "none" else value for value in values]
    alone = dataclasses.make_dataclass("Alone", [("value", hint)])
    words = [f"--value={values[0]}"] if len(values) == 1 else ["--value", *values]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # tyro prints its own message
            tyro.cli(alone, args=words, console_outputs=False, config=STYLE)
    except SystemExit:
        literals = [str(part) for part in typing.get_args(hint)] if typing.get_origin(hint) is typing.Literal else []
        raise ConfigError(f"--{name}={given} must be {describe_type(hint)}.{did_you_mean(given, literals)}") from None
    return [words[0].replace("--value", f"--{name}", 1), *words[1:]]


def _is_numbers(hint: Any) -> bool:
    """Return whether a type is a tuple of numbers, or of such tuples."""
    parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
    return typing.get_origin(hint) is tuple and all(part in (int, float) or _is_numbers(part) for part in parts)


def _describe_unknown(name: str, names: list[str]) -> str:
    """Return the error message for an option that does not exist, with similar options."""
    inside = [other for other in names if other.startswith(f"{name}.")]
    if inside:
        return f"--{name} is a group of options; set one of --{', --'.join(inside)}."
    leaf = name.rpartition(".")[2]
    same = [other for other in names if other.rpartition(".")[2] == leaf]
    if same:
        return f"There is no option --{name}. Did you mean --{' or --'.join(same)}?"
    suggestion = did_you_mean(f"--{name}", [f"--{other}" for other in [*names, "config", "help"]])
    leaves = {other.rpartition(".")[2]: other for other in names}
    if not suggestion and (close := difflib.get_close_matches(leaf, list(leaves), n=1)):
        suggestion = f" Did you mean --{leaves[close[0]]}?"
    return f"There is no option --{name}.{suggestion or ' --help lists all options.'}"


def _has_positional(args_type: Any) -> bool:
    marker = typing.get_args(tyro.conf.Positional[int])[1]
    hints = typing.get_type_hints(args_type, include_extras=True)
    return any(marker in typing.get_args(hint) for hint in hints.values())


def _call_tyro(args_type: Any, config: Config, options: list[str], is_help: bool, prog: str, description: str) -> Any:
    """Return an object with the program's own options as `.args` and the config as `.config`."""
    type_ = options_type(args_type, with_ranges(config) if is_help else config)
    words = ["--help"] if is_help else options
    return tyro.cli(type_, args=words, prog=prog, description=description, use_underscores=True, config=STYLE)


def options_type(args_type: Any, config: Config) -> Any:
    """Return a dataclass of a program's own options (`args`) and the fields of a config (`config`), for tyro."""
    flat = tyro.conf.arg(name="")
    fields: list[Any] = [("args", Annotated[args_type, flat]), ("config", Annotated[type(config), flat], config)]
    return dataclasses.make_dataclass("Options", fields, frozen=True)


def _help_without_config(args_type: Any, prog: str, description: str) -> NoReturn:
    print(f"{description}\n\n    {prog} --config configs/NAME.py [--data FOLDER] [--group.field=value …]\n\nConfigs:")
    configs = list_configs()
    width = max([len(name) for name, _ in configs], default=0)
    for name, line in configs:
        print(f"  {name:{width}}  {line}")
    print(
        f"\n`{prog} --config configs/NAME.py --help` explains every field, with the values of that config.\n\n"
        "Options without a config:\n"
    )
    tyro.cli(args_type, args=["--help"], prog=prog, use_underscores=True, config=STYLE)
    raise SystemExit(0)


def _exit_with_error(prog: str, message: str) -> NoReturn:
    print_warning(f"{prog}: {message}")
    raise SystemExit(2)
