"""Put the folder configs/ into wheels as tood_jax/configs; all else is in pyproject.toml.

An editable installation reads configs/ of the checkout.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "tood_jax" / "configs"
            shutil.copytree("configs", folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
