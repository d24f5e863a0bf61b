"""Old names of config fields: stored configs and command lines may use them, with one note."""

import copy
import json

import pytest

from tood_jax.cli.command_line import parse
from tood_jax.cli.evaluate import Args
from tood_jax.config import AssignerConfig, Config, ConfigError, from_dict, load_config_json, to_dict
from tood_jax.config.conversion import leaf_hints
from tood_jax.config.files import load_config
from tood_jax.config.renames import RENAMED, current_name, with_current_names
from tood_jax.config.validation import stored_config
from tood_jax.training.resume import changed_fields, in_current_form

CONFIG = Config(assigner=AssignerConfig(kind="atss", atss_topk=7, topk=9))


@pytest.fixture
def old_values():
    """CONFIG as it was stored before the group `learning` became `assigner`."""
    values = to_dict(CONFIG)
    values["learning"] = values.pop("assigner")
    values["learning"]["assigner"] = values["learning"].pop("kind")
    return values


def test_every_new_name_is_in_the_schema_and_no_old_one():
    names = {*leaf_hints(Config), *(name.rpartition(".")[0] for name in leaf_hints(Config))}
    assert set(RENAMED.values()) <= names
    assert set(RENAMED) & names == set()


def test_names_of_options():
    assert current_name("learning.assigner") == "assigner.kind"
    assert current_name("learning.topk") == "assigner.topk"
    assert current_name("learning") == "assigner"
    assert current_name("learning_rate") == "learning_rate"
    assert current_name("optimizer.learning_rate") == "optimizer.learning_rate"


def test_an_old_file_is_the_same_config(old_values, tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(old_values))
    assert load_config_json(file) == CONFIG
    assert load_config(str(file)) == CONFIG
    note = f"Note: {file} has old names of config fields: learning.assigner is now assigner.kind, learning is now "
    assert capsys.readouterr().err == f"{note}assigner.\n"


def test_an_old_checkpoint_has_the_same_config_and_one_note(old_values):
    config, notes = stored_config(old_values, "runs/x/3")
    assert config == CONFIG
    assert len(notes) == 1
    assert notes[0].startswith("the config in runs/x/3 has old names of fields: learning.assigner is now assigner.kind")


def test_a_renamed_field_is_no_changed_field(old_values):
    before = copy.deepcopy(old_values)
    assert changed_fields(in_current_form(old_values), to_dict(CONFIG)) == []
    assert old_values == before
    del old_values["optimizer"]["kind"]  # a field that did not exist then
    assert changed_fields(in_current_form(old_values), to_dict(CONFIG)) == []
    newer = to_dict(CONFIG) | {"unknown": 1}
    assert changed_fields(in_current_form(newer), to_dict(CONFIG)) == ["unknown"]


def test_a_current_config_has_nothing_renamed():
    assert with_current_names(to_dict(CONFIG)) == (to_dict(CONFIG), "")


def test_an_old_and_a_new_group_are_one():
    assert from_dict({"learning": {"topk": 9, "assigner": "atss"}, "assigner": {"atss_topk": 7}}) == CONFIG


@pytest.mark.parametrize(
    "values",
    [
        {"learning": {"topk": 9}, "assigner": {"topk": 9}},
        {"learning": {"assigner": "atss"}, "assigner": {"kind": "atss"}},
        {"learning": {"assigner": "atss"}, "assigner": 3},
        {"learning": 3, "assigner": {"topk": 9}},
    ],
)
def test_a_value_under_both_names_is_refused(values):
    with pytest.raises(ConfigError, match=r"has values under learning.* and under assigner"):
        from_dict(values)


@pytest.mark.parametrize("values", [{"learning": 3}, {"learning": {"x": 3}}, {"learning": {"assigner": {"x": 1}}}])
def test_a_wrong_value_under_an_old_name_is_named(values):
    with pytest.raises(ConfigError, match="assigner"):
        from_dict(values)


@pytest.mark.parametrize("words", [["--learning.topk=9"], ["--learning.topk", "9"]])
def test_an_old_option_works_with_a_note(words, capsys):
    _, config = parse(Args, words, prog="eval.py", default_config=Config())
    assert config.assigner.topk == 9
    assert capsys.readouterr().err == "eval.py: note: the option --learning.topk is now --assigner.topk.\n"


def test_an_old_option_beside_its_new_name_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Args, ["--learning.assigner=atss", "--assigner.kind=paa"], prog="eval.py", default_config=Config())
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("eval.py: --assigner.kind is given more than once; give it once.\n")


def test_python_configs_with_old_names_work_with_a_warning():
    with pytest.warns(FutureWarning, match="LearningConfig is now AssignerConfig"):
        from tood_jax.config import LearningConfig
    with pytest.warns(FutureWarning, match=r"AssignerConfig\(assigner=…\) is now AssignerConfig\(kind=…\)"):
        learning = LearningConfig(assigner="atss", topk=9)
    with pytest.warns(FutureWarning, match=r"Config\(learning=…\) is now Config\(assigner=…\)"):
        config = Config(learning=learning)
    assert config == Config(assigner=AssignerConfig(kind="atss", topk=9))
    with pytest.raises(TypeError, match="has values for learning and for assigner"):
        Config(learning=learning, assigner=learning)
    with pytest.raises(ImportError, match="Nonsense"):
        from tood_jax.config import Nonsense  # noqa: F401
