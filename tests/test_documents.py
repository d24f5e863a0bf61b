"""Every file, folder and Python name that the manual and the docstrings mention exists."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
REPORTS = sorted((ROOT / "reports").rglob("*.md"))
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
    """Whether a dotted name is a module, or is defined or imported in one. Read, not imported: some need PyTorch."""
    module, _, attribute = name.rpartition(".")
    return source_of(name) is not None or attribute in names_bound_in(module)


@functools.cache
def source_of(module):
    """The file of a module or package of this repository; None if there is none."""
    path = ROOT / module.replace(".", "/")
    files = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return files[0] if files else None


@functools.cache
def names_bound_in(module):
    """The names that a module's top level defines, assigns or imports, and those of its `__all__`."""
    source = source_of(module)
    if source is None:
        return frozenset()
    names = set()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
            if "__all__" in names and isinstance(node.value, ast.List):
                names |= {leaf.value for leaf in node.value.elts if isinstance(leaf, ast.Constant)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return frozenset(names)


def test_the_configuration_reference_is_that_of_the_schema():
    script = ROOT / "scripts" / "config_reference.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("file", [*DOCUMENTS, *REPORTS], ids=lambda file: str(file.relative_to(ROOT)))
def test_links_to_files_exist(file):
    """Of the reports and of pages read in the repository; `make docs` also checks the anchors of the site."""
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", file.read_text(encoding="utf-8"))
    assert [link for link in links if not (file.parent / link).exists()] == []


def test_the_manual_is_short():
    """At most 12,000 words (signs such as | are none), without the page that is generated."""
    pages = [file for file in (ROOT / "docs").rglob("*.md") if file.name != "configuration.md"]
    words = [word for page in pages for word in page.read_text(encoding="utf-8").split()]
    assert sum(re.search(r"\w", word) is not None for word in words) <= 12_000


def test_symbols_of_the_architecture_page_exist():
    """A name that the page says to be in a file is defined there."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("docs/architecture.md", "CONTRIBUTING.md"))
    pairs = re.findall(r"`(\w+)` in `([\w/]+\.py)`", text)
    pairs += [(symbol, path) for path, symbol in re.findall(r"`([\w/]+\.py)` \(`(\w+)`\)", text)]
    assert len(pairs) > 10
    for symbol, path in pairs:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {symbol}\b|^{symbol}\b.*=", source, re.MULTILINE), f"{symbol} in {path}"
