"""The profile of some steps: when it begins and ends, what the log names, and that an error ends no run."""

import jax
import jax.numpy as jnp
import pytest

from tood_jax.config import Config, TrainConfig
from tood_jax.config.conversion import ConfigError
from tood_jax.config.validation import check
from tood_jax.run_log.log import RunLog
from tood_jax.training.step_profile import StepProfile

multiply = jax.jit(lambda x: jnp.sin(x @ x))


def run(profile, first, last):
    """Steps as the loop makes them, from `first` done to `last` done."""
    stops = sorted({*profile.boundaries, last} - set(range(first + 1)))
    step = first
    for stop in (one for one in stops if one <= last):
        profile.before(step)
        for _ in range(stop - step):
            multiply(jnp.ones((128, 128))).block_until_ready()
        step = stop
        profile.after(step)
    profile.end(step)


@pytest.mark.parametrize(
    ("first", "last", "name"),
    [
        (0, 6, "Profile of steps 3 to 4 ("),
        (0, 3, "Profile of step 3 ("),  # stopped inside it
        (0, 2, ""),
        (3, 6, ""),  # resumed inside it
    ],
)
def test_the_log_names_the_longest_operations_of_the_steps(tmp_path, capsys, first, last, name):
    with RunLog(tmp_path) as log:
        run(StepProfile((3, 5), tmp_path, log), first, last)
    output = capsys.readouterr().out
    assert output.startswith(name)
    assert output.count("Profile of") == bool(name)
    assert ("sin" in output) == bool(name)
    assert len([*tmp_path.rglob("*.xplane.pb")]) == bool(name)


def test_other_processes_write_none(tmp_path, capsys):
    with RunLog(tmp_path) as log:
        profile = StepProfile((3, 5), tmp_path, log, is_active=False)
        assert profile.boundaries == (2, 4)
        run(profile, 0, 6)
    assert capsys.readouterr().out == ""


def test_an_error_is_a_warning(tmp_path, capsys):
    (tmp_path / "profile").write_text("a file")
    with RunLog(tmp_path) as log:
        run(StepProfile((1, 2), tmp_path, log), 0, 3)
    assert "warning: there is no profile (train.profile_steps): " in capsys.readouterr().out
    with jax.profiler.trace(str(tmp_path / "other")):
        multiply(jnp.ones((8, 8)))  # another profile can begin


@pytest.mark.parametrize(("text", "steps"), [("", None), ("20:25", (20, 25)), ("1:2", (1, 2)), ("1:1001", (1, 1001))])
def test_steps_of_the_config(text, steps):
    config = Config(train=TrainConfig(profile_steps=text))
    check(config)
    assert config.profile_steps == steps


@pytest.mark.parametrize("text", ["20", "0:5", "5:5", "1:1002", "a:b", "-1:2", "1:2:3", "٣:٥"])
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigError, match=r"train.profile_steps = .* must be FIRST:END .* such as 20:25"):
        check(Config(train=TrainConfig(profile_steps=text)))
