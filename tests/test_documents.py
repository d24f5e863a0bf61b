"""Every file, folder and Python name that the manual and the docstrings mention exists."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted(
    file for name in ("tood_jax", "configs", "benchmarks", "scripts") for file in (ROOT / name).rglob("*.py")
)
FOLDERS = ("tood_jax", "configs", "tests", "benchmarks", "scripts", "docs", "reports")
PATH = re.compile(rf"(?<![\w./<-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)(?![\w*<…])")
EXAMPLES = {"configs/mine.py", "benchmarks/results/gpu"}  # what the reader makes
NAME = re.compile(r"\btood_jax(?:\.\w+)+")


@pytest.mark.parametrize("file", [*DOCUMENTS, *SOURCES], ids=lambda file: str(file.relative_to(ROOT)))
def test_paths_exist(file):
    text = file.read_text(encoding="utf-8")
    paths = {path for path in PATH.findall(text) if file.suffix == ".md" or "." in path}  # code has other names with /
    missing = {path for path in paths if not is_there(ROOT / path) and "NAME" not in path}
    missing -= EXAMPLES
    assert not missing


@pytest.mark.parametrize("file", [*DOCUMENTS, *SOURCES], ids=lambda file: str(file.relative_to(ROOT)))
def test_python_names_exist(file):
    names = set(NAME.findall(file.read_text(encoding="utf-8")))
    assert not {name for name in names if not resolves(name)}


def is_there(path):
    """Whether a file, or a folder with files in it, exists; Git leaves no others."""
    return path.is_file() or (path.is_dir() and any(file.is_file() for file in path.rglob("*")))


def resolves(name):
    """Whether a dotted name is a module, or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        try:
            return hasattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError:
            return False
    return True


def test_symbols_of_the_architecture_page_exist():
    """A name that the page says to be in a file is defined there."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("docs/architecture.md", "CONTRIBUTING.md"))
    pairs = re.findall(r"`(\w+)` in `([\w/]+\.py)`", text)
    pairs += [(symbol, path) for path, symbol in re.findall(r"`([\w/]+\.py)` \(`(\w+)`\)", text)]
    assert len(pairs) > 10
    for symbol, path in pairs:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {symbol}\b|^{symbol}\b.*=", source, re.MULTILINE), f"{symbol} in {path}"
