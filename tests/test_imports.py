"""The floors of the house: a module imports only from floors below its own, and data workers never load JAX."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "tood_jax"

FLOORS = [  # from the ground up; rooms on one floor don't import each other
    {"types", "typed", "mesh"},
    {"config"},
    {"config_rules", "compiling"},
    {"geometry"},
    {"assigners", "losses", "networks", "postprocess", "data"},
    {"detectors"},
    {"visualize"},
    {"training"},
    {"evaluation", "weights"},
    {"export", "torch_reference"},
    {"build"},
    {"ahead_of_time"},
    {"cli"},
]
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
MAY_VISUALIZE = {"training", "cli"}
WITHOUT_JAX = {"types", "typed", "config", "config_rules", "data"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "jaxtyping"}


def imported_modules(source: str, package: str) -> set[str]:
    """Full names of the modules that a source file imports anywhere, inside functions too; `package` it lies in."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            modules |= {f"{base}.{alias.name}" for alias in node.names} if base == "tood_jax" else {base}
    return modules


def room_of(module: str) -> str:
    return module.split(".")[1]


def complaints(room: str, modules: set[str]) -> list[str]:
    """What in a room's imports goes against the floors."""
    rooms = {room_of(module) for module in modules if module.startswith("tood_jax.")} - {room}
    found = [f"{room} imports {other}" for other in rooms if HEIGHT[other] >= HEIGHT[room]]
    if "visualize" in rooms and room not in MAY_VISUALIZE:
        found.append(f"{room} imports visualize")
    if room in WITHOUT_JAX:
        found += [f"{room} imports {module}" for module in modules if module.split(".")[0] in JAX]
    return found


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_downwards(file):
    parts = ("tood_jax", *file.relative_to(PACKAGE).with_suffix("").parts)
    assert parts[1] in HEIGHT, f"{parts[1]} has no floor yet: give it one in FLOORS"
    modules = imported_modules(file.read_text(encoding="utf-8"), ".".join(parts[:-1]))
    assert complaints(parts[1], modules) == []


def test_the_package_itself_imports_nothing_of_jax():
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert {module.split(".")[0] for module in imported_modules(source, "tood_jax")} & JAX == set()


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("geometry", "from tood_jax.networks.layers import conv", ["geometry imports networks"]),
        ("losses", "def f():\n    import tood_jax.networks.fpn", ["losses imports networks"]),
        ("data", "import jax.numpy as jnp", ["data imports jax.numpy"]),
        ("evaluation", "from tood_jax import visualize", ["evaluation imports visualize"]),
        ("training", "from ..cli import options", ["training imports cli"]),
        ("cli", "from tood_jax.visualize.draw import save_image", []),
        ("networks", "from tood_jax.networks.layers import conv\nfrom .fpn import FPN\nimport numpy", []),
    ],
)
def test_the_rule_itself(room, source, expected):
    assert complaints(room, imported_modules(source, f"tood_jax.{room}")) == expected


def test_data_workers_never_load_jax():
    modules = sorted(
        ".".join(("tood_jax", *file.relative_to(PACKAGE).with_suffix("").parts))
        for file in FILES
        if room_of(f"tood_jax.{file.relative_to(PACKAGE).with_suffix('').parts[0]}") in WITHOUT_JAX
        and file.name != "__init__.py"
    )
    code = f"import sys, {', '.join(modules)}; sys.exit('jax' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "jax was loaded"
