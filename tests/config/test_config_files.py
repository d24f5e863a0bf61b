"""Config files are loaded and listed. (tests/cli/test_command_line.py has the errors.)"""

import pytest

from tood_jax.config import Config, ConfigError, SplitConfig, save_config
from tood_jax.config.files import list_configs, load_config


def test_other_files_are_not_configs(tmp_path):
    path = tmp_path / "notes.txt"
    path.touch()
    with pytest.raises(ConfigError, match="neither a Python file"):
        load_config(str(path))


def test_a_saved_config_can_be_loaded(tmp_path):
    save_config(Config(name="again"), tmp_path / "config.json")
    assert load_config(str(tmp_path / "config.json")) == Config(name="again")


def test_lists_of_a_handwritten_config_become_tuples(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from tood_jax.config import *\ndef config():\n    return Config(data=DataConfig(buckets=[[800, 1344]]))",
        encoding="utf-8",
    )
    assert load_config(str(path)).data.buckets == ((800, 1344),)


def test_a_broken_file_in_the_folder_does_not_break_the_list(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "bad.py").write_text("def (", encoding="utf-8")
    (tmp_path / "configs" / "good.py").write_text('"""Good.\n\nMore."""', encoding="utf-8")
    (tmp_path / "configs" / "_hidden.py").touch()
    monkeypatch.chdir(tmp_path)
    assert {"bad": "(can't be read)", "good": "Good."}.items() <= dict(list_configs()).items()
    assert "_hidden" not in dict(list_configs())


def test_published_configs_are_found_by_name_everywhere_and_a_file_here_hides_its_namesake(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    mine = "from tood_jax.config import *\ndef config():\n    return Config(name='mine')"
    (tmp_path / "configs" / "small_set.py").write_text(mine, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_config("small_set").name == "mine"
    assert load_config("tood_r50_fpn_1x_coco") == load_config("configs/tood_r50_fpn_1x_coco.py")
    assert load_config("rivals/gfl_r50_fpn_1x_coco").name == "gfl_r50_fpn_1x_coco"
    with pytest.raises(ConfigError, match="Did you mean tood_r50_fpn_1x_coco"):
        load_config("tood_r50_fpn_1x_cocoo")


def test_a_folder_replaces_the_data_of_a_config():
    found = load_config("small_set", data="/data/cells").data
    assert found.train == SplitConfig(folder="/data/cells", folder_split="train")
    assert found.val == SplitConfig(folder="/data/cells", folder_split="val")
    assert load_config("small_set").data.train == SplitConfig()
