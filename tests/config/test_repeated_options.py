"""Every program refuses an option that is given twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cases import ablation, small_sets
from benchmarks.harness.training_runs import replace_options
from tood_jax.cli import convert, evaluate, launch, predict, to_array_record, train
from tood_jax.config.repeated_options import repeated_option
from tood_jax.data import synthetic
from tood_jax.tools.compare_torch import main as compare_torch
from tood_jax.tools.compile_for import main as compile_for

PROGRAMS = {
    train: ["--config", "configs/demo.py", "--train.seed=1", "--train.seed=2"],
    evaluate: ["--checkpoint", "/nowhere/a", "--checkpoint", "/nowhere/b"],
    predict: ["--checkpoint=/nowhere", "--images", "a", "--images", "b"],
    convert: ["--weights=/nowhere/a.pth", "--weights", "/nowhere/b.pth", "--out=x"],
    compile_for: ["--config", "configs/demo.py", "--topology=here", "--topology=v5e:2x4"],
    compare_torch: ["--config", "configs/demo.py", "--precision=single", "--precision=double"],
    launch: ["-n", "2", "-n", "3", "train.py"],
    to_array_record: ["--images=a", "--images", "b", "--annotations=c", "--out=/nowhere/d"],
    synthetic: ["--out=/nowhere/a", "--max-objects=2", "--max_objects=2"],
    small_sets: ["--steps=1", "--steps", "2"],
    ablation: ["--seeds", "0", "1", "--seeds", "2"],
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_an_option_given_twice_is_refused(program, capsys):
    with pytest.raises(SystemExit) as caught:
        program.main(PROGRAMS[program])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert lines[-1].endswith(" is given more than once; give it once.")


def test_the_launcher_leaves_the_options_of_its_program_alone():
    words = ["-n", "2", "--logs=x", "train.py", "-n", "3", "--logs=y", "--logs=z"]
    assert launch.parse_arguments(words).command == words[3:]


names = st.sampled_from(["a", "b.c", "d_e", "d-e"])


@given(st.lists(st.tuples(names, st.sampled_from(["=1", "= -1", " 1", " -1 --no".replace(" --no", ""), ""]))))
def test_repetitions_are_found_in_all_spellings(options):
    words = [word for name, value in options for word in f"--{name}{value}".split(" ") if word]
    given_names = [name.replace("-", "_") for name, _ in options]
    assert bool(repeated_option(words)) == (len(set(given_names)) < len(given_names))


def test_overrides_replace():
    options = ["--config=a.py", "--train.epochs=3", "--data.buckets", "1", "2", "--train.seed=1"]
    overrides = ["--train.epochs", "4", "--data.buckets=5x6", "--new=1"]
    found = replace_options(options, overrides)
    assert found == ["--config=a.py", "--train.epochs", "4", "--data.buckets=5x6", "--train.seed=1", "--new=1"]
    assert not repeated_option(found)
