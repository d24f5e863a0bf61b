"""The process of a program, and paths with ~."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from tests.runs import ROOT
from tood_jax.cli.command_line import parse
from tood_jax.cli.process import compilation_cache_folder
from tood_jax.config import Config, ConfigError
from tood_jax.config.paths import expand_home, expand_paths


@dataclass(frozen=True)
class Args:
    out: str = ""
    images: tuple[str, ...] = ()
    step: str = "~"
    """Not a path."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(tmp_path)


def test_the_home_folder_in_every_path_option(home):
    words = ["--out=~/o", "--images", "~/a/*.jpg", "b~.jpg", "--train.workdir=~/runs/x", "--data.train.images=~"]
    args, config = parse(Args, words, prog="x", default_config=Config())
    assert args == Args(f"{home}/o", (f"{home}/a/*.jpg", "b~.jpg"))
    assert config.train.workdir == f"{home}/runs/x"
    assert config.data.train.images == home
    for name in ("annotations", "records", "tfds"):
        _, config = parse(Args, [f"--data.val.{name}=~/{name}"], prog="x", default_config=Config())
        assert getattr(config.data.val, name) == f"{home}/{name}"


def test_a_config_may_name_the_home_folder(home):
    with open(f"{home}/c.py", "w") as file:
        file.write("from tood_jax.config import *\ndef config(): return Config(train=TrainConfig(workdir='~/w'))\n")
    _, config = parse(Args, ["--config=~/c.py"], prog="x")
    assert config.train.workdir == f"{home}/w"


def test_options_without_a_tilde_are_the_same_object():
    config = Config()
    assert expand_paths(config) is config


def test_a_user_without_a_home_folder(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="HOME is not set"):
        expand_home("~/runs")
    assert expand_home("~other/runs") == "~other/runs"  # may be a file's name
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert compilation_cache_folder(None) is None
    assert compilation_cache_folder("/cache") == "/cache"


def run(code, **environment):
    words = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=300)


def test_the_limit_of_open_files_is_raised():
    code = """
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
from tood_jax.cli.process import prepare_process
prepare_process()
soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
assert soft == min(hard, 65536) or hard == resource.RLIM_INFINITY, soft
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_a_missing_platform_is_one_sentence(platform):
    code = """
import jax
from tood_jax.cli.common import report_errors
with report_errors("x.py"):
    jax.devices()
"""
    done = run(code, JAX_PLATFORMS=platform)
    if done.returncode == 0:
        pytest.skip(f"there is a {platform}")
    assert done.returncode == 1
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("x.py:")]
    assert f"JAX_PLATFORMS={platform} names a platform that JAX does not find on this machine" in line
    assert ("pip install" in line) == (platform != "nonsense")
    assert "Traceback" not in done.stderr
