"""Imports inside benchmarks/ go in one direction, and have no cycle."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from benchmarks.harness.options import ROOT

LAYERS = ("harness", "peers", "cases", "suite")  # from the bottom up
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file.read_text(encoding="utf-8") for file in FILES}


def imported_modules(source, modules):
    """Return the modules among `modules` that a source imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "benchmarks/ has absolute imports only"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & set(modules)


def layer(module):
    return LAYERS.index(module.split(".")[1])


def check_no_cycle(sources):
    graph = {name: imported_modules(source, sources) - {name} for name, source in sources.items()}
    TopologicalSorter(graph).prepare()


def test_no_import_cycle():
    check_no_cycle(MODULES)


def test_a_cycle_through_a_function_is_found():
    sources = {"a": "from b import f", "b": "def f():\n    import a"}
    with pytest.raises(CycleError):
        check_no_cycle(sources)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "benchmarks"])
def test_a_module_imports_from_its_own_layer_or_below(module):
    imported = imported_modules(MODULES[module], MODULES) - {"benchmarks"}
    assert [name for name in imported if layer(name) > layer(module)] == []


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("benchmarks.cases.")])
def test_a_case_imports_no_other_case(module):
    assert not [name for name in imported_modules(MODULES[module], MODULES) if name.startswith("benchmarks.cases")]
