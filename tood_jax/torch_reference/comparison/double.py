"""This package once more, in double precision: every type `float32` in its sources read as `float64`.

Rounding is what two right implementations differ by in float32; in float64 next to nothing is left of it, and what
remains is a real difference. The product computes in float32 by intention and says so in many places, so the sources
are read again with the other word rather than taught a second precision. For comparisons only.
"""

import importlib
import importlib.machinery
import re
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

import jax

PACKAGE = __name__.partition(".")[0]


def in_double(source: str) -> str:
    """A source with the other type; the word in quotation marks is a config's value and stays."""
    return re.sub(r"(?<![\"'])float32(?![\"'])", "float64", source)


class _DoubleLoader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return compile(in_double(self.get_data(path).decode()), path, "exec", dont_inherit=True)


class _DoubleFinder:
    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, target: ModuleType | None = None):
        if not name.startswith(f"{PACKAGE}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _DoubleLoader(spec.loader.name, spec.loader.path)
        return spec


def is_double() -> bool:
    """Whether `import_in_double` has happened."""
    return _DoubleFinder in sys.meta_path


def import_in_double(module: str) -> ModuleType:
    """A module of this package, and all that it imports of it, in float64. It can't be undone in this process."""
    jax.config.update("jax_enable_x64", True)
    sys.meta_path.insert(0, _DoubleFinder)
    for name in [name for name in sys.modules if name.startswith(f"{PACKAGE}.") and name != __name__]:
        del sys.modules[name]
    return importlib.import_module(module)
