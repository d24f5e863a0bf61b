"""Packages are layers: a module imports only from layers below its own, and data workers never load JAX."""

import ast
import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "tood_jax"

LAYERS = [  # from the bottom up; packages of one layer do not import each other
    {"untrusted", "files"},
    {"types", "precision", "config"},
    {"geometry", "data", "run_log"},
    {"distributed"},
    {"checkpoint", "ops", "postprocess"},
    {"assigners", "losses", "models"},
    {"criterion"},
    {"weights", "evaluation", "training", "visualization"},
    {"export"},
    {"api", "report"},
    {"cli"},
    {"tools", "integrations"},
]
LAYER = {package: number for number, packages in enumerate(LAYERS) for package in packages}
WITHOUT_JAX = {"types", "untrusted", "files", "config", "data"}
WITHOUT_OPENCV = ("tood_jax.checkpoint.reader", "tood_jax.weights.load")
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


def package_of(module: str) -> str:
    return module.split(".")[1]


def violations(package: str, modules: set[str]) -> list[str]:
    """Return the imports of a package that point upwards, or that load JAX where it must not."""
    packages = {package_of(module) for module in modules if module.startswith("tood_jax.")} - {package}
    found = [f"{package} imports {other}" for other in packages if LAYER[other] >= LAYER[package]]
    if package in WITHOUT_JAX:
        found += [f"{package} imports {module}" for module in modules if module.split(".")[0] in JAX]
    return found


def test_test_files_have_different_names():
    """pytest imports a test file by its bare name where its folder is no package."""
    names = [file.name for file in Path(__file__).parent.rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_downwards(file):
    parts = ("tood_jax", *file.relative_to(PACKAGE).with_suffix("").parts)
    assert parts[1] in LAYER, f"{parts[1]} has no layer yet: give it one in LAYERS"
    modules = imported_modules(file.read_text(encoding="utf-8"), ".".join(parts[:-1]))
    assert violations(parts[1], modules) == []


def test_the_package_itself_imports_nothing_of_jax():
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert {module.split(".")[0] for module in imported_modules(source, "tood_jax")} & JAX == set()


@pytest.mark.parametrize(
    ("package", "source", "expected"),
    [
        ("geometry", "from tood_jax.models.layers import conv", ["geometry imports models"]),
        ("losses", "def f():\n    import tood_jax.models.fpn", ["losses imports models"]),
        ("data", "import jax.numpy as jnp", ["data imports jax.numpy"]),
        ("evaluation", "from tood_jax import visualization", ["evaluation imports visualization"]),
        ("training", "from ..cli import command_line", ["training imports cli"]),
        ("cli", "from tood_jax.visualization.draw import save_image", []),
        ("models", "from tood_jax.models.layers import conv\nfrom .fpn import FPN\nimport numpy", []),
    ],
)
def test_the_rule_itself(package, source, expected):
    assert violations(package, imported_modules(source, f"tood_jax.{package}")) == expected


def test_data_workers_never_load_jax():
    modules = sorted(
        ".".join(("tood_jax", *file.relative_to(PACKAGE).with_suffix("").parts))
        for file in FILES
        if package_of(f"tood_jax.{file.relative_to(PACKAGE).with_suffix('').parts[0]}") in WITHOUT_JAX
        and file.name != "__init__.py"
    )
    assert_does_not_load("jax", modules)


def test_reading_a_checkpoint_does_not_load_opencv():
    assert_does_not_load("cv2", WITHOUT_OPENCV)


SIDE_EFFECTS = """
import importlib, logging, os, sys

import absl.logging, cv2, flax, grain.python, jax, optax, orbax.checkpoint, tensorboardX  # theirs do not count

def state():
    loggers = [logging.root, *(one for one in logging.root.manager.loggerDict.values() if hasattr(one, "filters"))]
    known = {one.name: (one.level, list(one.handlers), list(one.filters)) for one in loggers if one.name in names}
    return dict(os.environ), sys.unraisablehook, sys.excepthook, dict(jax.config.values), known

names = {"root", *logging.root.manager.loggerDict}
before = state()
for module in sys.argv[1:]:
    importlib.import_module(module)
    assert state() == before, module
"""


def test_importing_a_library_module_has_no_side_effects():
    """Environment, hooks, JAX's configuration and logging stay; only programs may set them."""
    modules = [
        ".".join(("tood_jax", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for file in FILES
        if file.relative_to(PACKAGE).parts[0] not in ("cli", "tools")
    ]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    environment = {k: v for k, v in environment.items() if k not in ("OPENCV_IO_MAX_IMAGE_PIXELS", "EPATH_USE_TF")}
    command = [sys.executable, "-c", SIDE_EFFECTS, *modules]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def assert_does_not_load(package, modules):
    code = f"import sys, {', '.join(modules)}; sys.exit('{package}' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"{package} was loaded"


def test_every_imported_package_is_declared():
    """Also one that another package brings along: it may stop doing so."""
    names = {
        "cv2": "opencv-python-headless",
        "orbax": "orbax-checkpoint",
        "absl": "absl-py",
        "torch": "torch",
        "yaml": "pyyaml",
    }
    # Imported where they are asked for:
    optional = {
        "torch", "tensorflow_datasets", "hotcoco", "supervision", "matplotlib", "pyarrow", "gradio", "ray", "PIL",
        "onnxruntime",
    }  # fmt: skip
    imported = set()
    for file in FILES:
        modules = imported_modules(file.read_text(encoding="utf-8"), "")
        imported |= {module.split(".")[0] for module in modules if module} - set(sys.stdlib_module_names)
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[\[<>=]", text)[0] for text in project["dependencies"]}
    assert {names.get(name, name) for name in imported - optional - {"tood_jax"}} <= declared


def test_the_picture_of_the_architecture_page_shows_the_layers():
    """A package of a higher layer stands above those of lower layers."""
    picture = (PACKAGE.parent / "docs" / "images" / "packages.svg").read_text(encoding="utf-8")
    places = {name: int(y) for y, name in re.findall(r'<text x="[\d.]+" y="(\d+)">(\w+)</text>', picture)}
    assert places.keys() == LAYER.keys()
    for above, below in itertools.permutations(LAYER, 2):
        if LAYER[above] > LAYER[below]:
            assert places[above] < places[below], f"{above} must stand above {below}"
