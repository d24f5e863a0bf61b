"""The command `tood`: it starts at once, runs the programs under its name, and completes."""

import dataclasses
import subprocess
import sys
from importlib import import_module

import pytest

from tests.runs import ROOT
from tood_jax.cli.main import COMMANDS, main

LARGE = ("jax", "numpy", "cv2", "flax", "orbax", "grain", "tyro", "tood_jax.config")


def run(*words):
    """Exit status of `tood` with these words."""
    try:
        main(words)
    except SystemExit as ended:
        return ended.code or 0
    return 0


def test_help_loads_nothing_large_and_lists_the_commands():
    code = f"""import sys
from tood_jax.cli.main import main
main(["--help"])
sys.exit(", ".join(name for name in {LARGE} if name in sys.modules) or 0)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout and command.summary in done.stdout for name, command in COMMANDS.items())


def test_listing_configs_and_runs_loads_no_jax(tmp_path):
    code = """import sys
from tood_jax.cli.main import main
main(["configs"])
main(["runs", "nowhere"])
sys.exit("jax" in sys.modules or "numpy" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no such folder" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "tood: there is no command trian. Did you mean train?"),
        (["evaluate"], "tood: there is no command evaluate. Did you mean eval?"),
        (["x\n"], r"tood: there is no command x\n. Commands: train, eval, "),
        (["train"], "tood train: Name a config: "),
        (["train", "--config=small_sett"], "tood train: There is no config small_sett. Did you mean small_set"),
        (["eval"], "tood eval: name a checkpoint: "),
        (["predict", "--checkpoint", "/nowhere"], "tood predict: no such folder: /nowhere"),
        (["convert", "--config=small_set"], "tood convert: Name the input and the output: "),
        (
            ["compare-torch", "--config=small_set", "--peer=x"],
            "tood compare-torch: --peer=x must be one of torch_reference, mmdet.",
        ),
        (["compare", "one"], "tood compare: name A and B, two runs or two files of COCO results; "),
        (["compare", "--config=x"], "tood compare: give two runs or two files of COCO results; the comparison with Py"),
        (["compare", "a.json", "b.json"], "tood compare: there is no run and no file a.json."),
        (["compile", "--config=small_set", "--topology=v5e"], "tood compile: "),
        (["info", "--config=small_set", "--checkpoint=x"], "tood info: give --config or --checkpoint, not both"),
        (["runs", "no*where"], "tood runs: no folder matches no*where."),
        (["--print_completion", "fish"], "tood: name one shell: --print_completion bash or zsh."),
    ],
)
def test_errors_are_one_sentence_that_names_the_command(capsys, words, message):
    assert run(*words) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_without_a_command_it_prints_help(capsys):
    assert run() == 0
    assert "tood COMMAND [options]" in capsys.readouterr().out


def test_the_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("tood_jax 0.")


def test_the_file_for_completion_has_the_options_and_the_configs(capsys):
    assert run("--print_completion", "bash") == 0
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    for word in (*COMMANDS, "--config", "tood_r50_fpn_1x_coco", "--train.batch_size", "--init_from", "--topology"):
        assert word in script


def test_every_command_has_options_with_explanations():
    for command in COMMANDS.values():
        assert dataclasses.is_dataclass(import_module(command.module).Args)
