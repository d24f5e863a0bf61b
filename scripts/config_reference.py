"""Write docs/configuration.md, the reference of all config fields, from the schema; --check only compares.

.venv/bin/python scripts/config_reference.py [--check]
"""

import ast
import dataclasses
import inspect
import itertools
import sys
import types
import typing
from pathlib import Path

from tood_jax.config import schema, schema_data
from tood_jax.config.ranges import Range

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
INTRO = """# Configuration reference

<!-- Written by scripts/config_reference.py from tood_jax/config/schema.py: edit the schema and run the script. -->

A config is a Python file with a function `config()` that returns a `tood_jax.config.Config`
([Training](training.md#configs-and-overrides)). Every field can be set on the command line as `--group.field=value`;
a tuple is written with commas (`--optimizer.step_epochs=16,22`), canvas sizes as `--data.buckets=800x1088,1088x800`.
`.venv/bin/python -m tood_jax.cli.show_config --config configs/NAME.py` prints all values of a config.

The defaults are those of the published ResNet-50 setting.
"""


def page() -> str:
    """The text of the page."""
    sections = [INTRO]
    for group in dataclasses.fields(schema.Config):
        assert isinstance(group.type, type), f"the type of {group.name} is not a class"
        if not dataclasses.is_dataclass(group.type):
            text = documented(schema.Config)[group.name]
            sections.append(f"## {group.name}\n\n`{group.type.__name__}`, default `{group.default}`: {text}\n")
            continue
        sections.append(section(group.name, group.type))
        if group.type is schema_data.DataConfig:
            sections.append(section("data.train", schema_data.SplitConfig, "`data.val` has the same fields."))
    return "\n".join(sections)


def section(name: str, group: type, note: str = "") -> str:
    """The table of one group."""
    texts, summary = documented(group), inspect.getdoc(group)
    assert summary is not None, f"{group.__name__} has no docstring"
    lines = [f"## {name}", "", " ".join(summary.split()), ""]
    lines += [note, ""] if note else []
    lines += ["| field | values | default | meaning |", "|---|---|---|---|"]
    hints = typing.get_type_hints(group, include_extras=True)
    for entry in dataclasses.fields(group):
        if dataclasses.is_dataclass(hints[entry.name]):
            continue
        values = cell(values_of(hints[entry.name]))
        lines.append(f"| `{entry.name}` | {values} | `{default_of(entry)}` | {cell(texts[entry.name])} |")
    return "\n".join(lines) + "\n"


def documented(group: type) -> dict[str, str]:
    """The docstring of each field: the text below it in the source."""
    (definition,) = ast.parse(inspect.getsource(group).lstrip()).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in itertools.pairwise(definition.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                found[name] = " ".join(words.split())
    return found


def values_of(hint) -> str:
    """What a field takes: its names, or its type and range."""
    if typing.get_origin(hint) is typing.Annotated:
        kind, *extras = typing.get_args(hint)
        limits = [str(extra) for extra in extras if isinstance(extra, Range)]
        return ", ".join([type_of(kind), *limits])
    return type_of(hint)


def type_of(hint) -> str:
    """A type in words."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if inner[-1] is Ellipsis:
            return f"list of {type_of(inner[0])}"
        return f"{len(inner)} × {type_of(inner[0])}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("None" if part is type(None) else type_of(part) for part in typing.get_args(hint))
    return hint.__name__


def default_of(entry: dataclasses.Field) -> str:
    """A default as it is written on the command line."""
    value = entry.default
    if isinstance(value, tuple):
        return ",".join("x".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value) or "()"
    return '""' if value == "" else str(value)


def cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return text.replace("|", "\\|")


def main() -> None:
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE.relative_to(ROOT)} differs from the schema: run .venv/bin/python scripts/config_reference.py")


if __name__ == "__main__":
    main()
