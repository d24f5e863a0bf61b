"""Compile those of mmcv's operators that TOOD needs into the environment at hand; see peers_env.sh.

    python scripts/build_mmcv_operators.py FOLDER    # of mmcv's sources

mmcv.ops is copied beside mmcv-lite; an operator that wasn't compiled says so when it is called.
"""

import re
import shutil
import sys
from pathlib import Path

import mmcv
from torch.utils.cpp_extension import load

SOURCES = ("nms", "deform_conv", "modulated_deform_conv")
OPERATORS = (
    "nms",
    "softnms",
    "deform_conv_forward",
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "modulated_deform_conv_forward",
    "modulated_deform_conv_backward",
)
NAME = "_tood_operators"
FRONT = f'''"""Written by build_mmcv_operators.py."""
import torch  # noqa: F401
from mmcv.{NAME} import *  # noqa: F403


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*_, **__):
        raise NotImplementedError(f"mmcv's operator {{name}} wasn't compiled here (build_mmcv_operators.py).")

    return absent
'''


def main() -> None:
    """Bind, compile, install."""
    sources, installed = Path(sys.argv[1]) / "mmcv" / "ops", Path(mmcv.__file__).parent
    code = sources / "csrc" / "pytorch"
    build = sources.parents[1] / "built"
    build.mkdir(exist_ok=True)
    bindings = (code / "pybind.cpp").read_text()
    wanted = "|".join(OPERATORS)
    declarations = re.findall(rf"^(?:Tensor|void) (?:{wanted})\([^;]*\);", bindings, re.MULTILINE)
    definitions = re.findall(rf'm\.def\("(?:{wanted})",[^;]*\);', bindings)
    if not len(declarations) == len(definitions) == len(OPERATORS):
        raise SystemExit(f"{code / 'pybind.cpp'} isn't mmcv 2.1.0's: it binds other operators than {OPERATORS}.")
    lines = ["#include <torch/extension.h>", '#include "pytorch_cpp_helper.hpp"', *declarations]
    lines += ["PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {", *definitions, "}"]
    (build / "bindings.cpp").write_text("\n".join(lines) + "\n")
    files = [build / "bindings.cpp"]
    for name in SOURCES:  # two files of one name won't do
        files += [code / f"{name}.cpp", build / f"{name}_cpu.cpp"]
        shutil.copy(code / "cpu" / f"{name}.cpp", files[-1])
    library = load(
        NAME,
        [str(file) for file in files],
        extra_include_paths=[str(code), str(code.parent / "common")],
        extra_cflags=["-O3", "-fopenmp", "-std=c++20"],
        build_directory=str(build),
    )
    shutil.copy(library.__file__, installed)
    shutil.copytree(sources, installed / "ops", dirs_exist_ok=True, ignore=shutil.ignore_patterns("csrc"))
    (installed / "_ext.py").write_text(FRONT)


if __name__ == "__main__":
    main()
