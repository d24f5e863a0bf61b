"""The command line: valid options are read, and errors are one sentence with exit status 2."""

import dataclasses
import re
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from tood_jax.cli.command_line import parse
from tood_jax.config import Config, DataConfig, SplitConfig
from tood_jax.config.files import list_configs, load_config
from tood_jax.config.ranges import Range

ROOT = Path(__file__).resolve().parents[2]
NAME = "tood_r50_fpn_1x_coco"
CONFIG = f"--config={ROOT}/configs/{NAME}.py"


@dataclass(frozen=True)
class TrainArgs:
    resume: bool = False
    """Resume from the newest checkpoint."""
    weights: str | None = None
    """A file of weights."""


@dataclass(frozen=True)
class PredictArgs:
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files."""
    threshold: float = 0.3
    """Smallest score drawn."""


def read(*argv: str, args_type=TrainArgs, **options):
    return parse(args_type, argv, prog="train.py", description="Train a detector.", **options)


@pytest.fixture
def refused(capsys):
    """Read a command line that must be refused, and return the message."""

    def run(*argv: str, args_type=TrainArgs) -> str:
        with pytest.raises(SystemExit) as caught:
            read(*argv, args_type=args_type)
        assert caught.value.code == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("train.py: ")
        assert output.err.count("\n") == 1
        return output.err.removeprefix("train.py: ").removesuffix("\n")

    return run


def test_a_config_file_alone():
    args, config = read(CONFIG)
    assert args == TrainArgs()
    assert config == load_config(NAME)


def test_config_may_be_anywhere_and_in_two_words():
    assert read("--resume", "--config", f"{ROOT}/configs/{NAME}.py", "--train.seed=3")[1].train.seed == 3


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--train.batch_size=8"], "train.batch_size", 8),
        (["--train.batch-size", "8"], "train.batch_size", 8),
        (["--optimizer.learning_rate=1e-3"], "optimizer.learning_rate", 0.001),
        (["--optimizer.clip_norm=None"], "optimizer.clip_norm", None),
        (["--optimizer.clip_norm", "none"], "optimizer.clip_norm", None),
        (["--optimizer.clip_norm", "35"], "optimizer.clip_norm", 35.0),
        (["--backbone.frozen_stages", "-1"], "backbone.frozen_stages", -1),
        (["--backbone.frozen_stages=-1"], "backbone.frozen_stages", -1),
        (["--backbone.depth=101"], "backbone.depth", 101),
        (["--backbone.norm", "batch"], "backbone.norm", "batch"),
        (["--detect.clip_boxes"], "detect.clip_boxes", True),
        (["--detect.clip-boxes=true"], "detect.clip_boxes", True),
        (["--detect.clip_boxes", "False"], "detect.clip_boxes", False),
        (["--data.train.images=some where/x"], "data.train.images", "some where/x"),
        (["--data.train.images="], "data.train.images", ""),
        (["--data.val.annotations", "-odd.json"], "data.val.annotations", "-odd.json"),
        (["--optimizer.step_epochs=3,5"], "optimizer.step_epochs", (3, 5)),
        (["--optimizer.step_epochs", "3", "5"], "optimizer.step_epochs", (3, 5)),
        (["--optimizer.step_epochs=7"], "optimizer.step_epochs", (7,)),
        (["--optimizer.step_epochs=()"], "optimizer.step_epochs", ()),
        (["--data.train_short_side=480,800"], "data.train_short_side", (480, 800)),
        (["--data.pixel_mean", "0", "0.5", "1"], "data.pixel_mean", (0.0, 0.5, 1.0)),
        (["--data.buckets=800x1344,1344x800"], "data.buckets", ((800, 1344), (1344, 800))),
        (["--data.buckets=((800, 1344), (1344, 800))"], "data.buckets", ((800, 1344), (1344, 800))),
        (["--data.buckets", "800x1344", "1344×800"], "data.buckets", ((800, 1344), (1344, 800))),
        (["--data.buckets", "800", "1344"], "data.buckets", ((800, 1344),)),
    ],
)
def test_every_kind_of_field_can_be_set(argv, field, value):
    _, config = read(CONFIG, *argv)
    result = config
    for name in field.split("."):
        result = getattr(result, name)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    "argv",
    [
        "--train.batch_size=8 --train.batch-size=4",
        "--train.batch_size 8 --train.epochs=3 --train.batch_size 8",
        "--resume --resume=False",
        "--data.buckets 800x1344 --data.buckets=1344x800",
    ],
)
def test_an_option_given_twice_is_refused(refused, argv):
    name = argv.replace("=", " ").split()[0]
    assert refused(CONFIG, *argv.split()) == f"{name} is given more than once; give it once."


def test_a_value_that_looks_like_an_option_is_no_repetition():
    config = read(CONFIG, "--backbone.frozen_stages", "-1", "--data.val.annotations", "-1")[1]
    assert (config.backbone.frozen_stages, config.data.val.annotations) == (-1, "-1")


DIRECTORY = {"images": "old", "annotations": "old.json"}
FORMS = {
    "directory": DIRECTORY,
    "records": {"records": "old"},
    "tfds": {"tfds": "old", "tfds_split": "train"},
    "folder": {"folder": "old", "folder_split": "val"},
    "two": {**DIRECTORY, "records": "old"},
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("old", sorted(FORMS))
@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"images": "new", "annotations": "new.json"}, {"images", "annotations"}),
        ({"annotations": "new.json"}, {"images", "annotations"}),
        ({"records": "new"}, {"records"}),
        ({"tfds": "new", "tfds_split": "x"}, {"tfds", "tfds_split"}),
        ({"folder": "new", "folder_split": "test"}, {"folder", "folder_split"}),
    ],
)
def test_a_source_on_the_command_line_replaces_those_of_the_config(split, old, given, left):
    """Only in the split of the option."""
    data = DataConfig(train=SplitConfig(**FORMS[old]), val=SplitConfig(**FORMS[old]))
    argv = [f"--data.{split}.{name}={value}" for name, value in given.items()]
    found = read(*argv, default_config=Config(data=data))[1].data
    expected = {name: value for name, value in FORMS[old].items() if name in left} | given
    other = "val" if split == "train" else "train"
    assert getattr(found, split) == SplitConfig(**expected)
    assert getattr(found, other) == getattr(data, other)


@pytest.mark.parametrize("argv", [["--data=new"], ["--data", "new"]])
@pytest.mark.parametrize("old", sorted(FORMS))
def test_data_names_one_folder_for_both_splits(old, argv):
    config = Config(data=DataConfig(train=SplitConfig(**FORMS[old]), val=SplitConfig(**FORMS[old])))
    data = read(*argv, default_config=config)[1].data
    assert data.train == SplitConfig(folder="new", folder_split="train")
    assert data.val == SplitConfig(folder="new", folder_split="val")
    assert read(*argv, "--data.val.folder_split=test", default_config=config)[1].data.val.folder_split == "test"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--data=a --data=b", "--data.train.folder is given more than once; give it once."),
        ("--data", "--data needs a value: the folder of a data set."),
        ("--data --resume", "--data needs a value: the folder of a data set."),
        (
            "--data=a --data.val.records=b",
            "--data.val.records and --data.val.folder each name a source of the split val;",
        ),
    ],
)
def test_data_that_is_unclear_is_refused(refused, argv, message):
    assert refused(CONFIG, *argv.split()).startswith(message)


def test_an_empty_source_only_clears_itself():
    data = DataConfig(val=SplitConfig(**FORMS["two"]))
    assert read("--data.val.records=", default_config=Config(data=data))[1].data.val == SplitConfig(**DIRECTORY)


@pytest.mark.parametrize(
    "argv",
    [
        "--data.val.records=a --data.val.images=b",
        "--data.val.records a --data.val.tfds b",
        "--data.val.annotations=a --data.val.tfds b",
        "--data.val.images= --data.val.records=a --data.val.tfds b",
    ],
)
def test_two_sources_of_one_split_are_refused(refused, argv):
    message = refused(CONFIG, *argv.split())
    assert message.endswith(" each name a source of the split val; give one of them.")


def test_the_own_options_of_a_program():
    args, _ = read(CONFIG, "--resume", "--weights", "resnet50.pth")
    assert args == TrainArgs(resume=True, weights="resnet50.pth")
    args, _ = read(CONFIG, "--resume=False", "--weights=None")
    assert args == TrainArgs()


def test_arguments_without_a_name():
    argv = ("a.jpg", CONFIG, "--threshold", "0.5", "--data.buckets=800x800", "b.jpg")
    args, config = read(*argv, args_type=PredictArgs)
    assert args == PredictArgs(images=("a.jpg", "b.jpg"), threshold=0.5)
    assert config.data.buckets == ((800, 800),)


def test_a_default_config():
    assert read(default_config=NAME)[1].name == NAME
    assert read(CONFIG.replace("1x", "ms_2x"), default_config=NAME)[1].train.epochs == 24


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("--train.batchsize=4", "There is no option --train.batchsize. Did you mean --train.batch_size?"),
        ("--batch_size=4", "There is no option --batch_size. Did you mean --train.batch_size?"),
        ("--norm=group", "There is no option --norm. Did you mean --backbone.norm or --neck.norm or --head.norm?"),
        ("--epoch=3", "There is no option --epoch. Did you mean --train.epochs?"),
        ("--resum", "There is no option --resum. Did you mean --resume?"),
        ("--zzz=1", "There is no option --zzz. --help lists all options."),
        (
            "--neck=3",
            "--neck is a group of options; set one of --neck.channels, --neck.norm, --neck.extra_levels, "
            "--neck.relu_before_p7.",
        ),
        ("foo", "'foo' is not an option; options are written --group.field=value."),
        ("-resume", "'-resume' is not an option; options are written --group.field=value."),
        ("--train.batch_size", "--train.batch_size needs a value: an integer."),
        ("--weights --resume", "--weights needs a value: text or None."),
        ("--train.batch_size=four", "--train.batch_size=four must be an integer."),
        ("--train.batch_size=4.5", "--train.batch_size=4.5 must be an integer."),
        ("--optimizer.clip_norm=x", "--optimizer.clip_norm=x must be a number or None."),
        ("--detect.clip_boxes=maybe", "--detect.clip_boxes=maybe must be True or False."),
        ("--data.buckets 800 1088 32", "--data.buckets=800 1088 32 must be a list of groups of 2 integers."),
        ("--data.pixel_mean=1,2", "--data.pixel_mean=1,2 must be 3 numbers."),
        ("--backbone.depth=35", "--backbone.depth=35 must be one of 18, 34, 50, 101."),
        (
            "--backbone.norm=grop",
            "--backbone.norm=grop must be one of frozen_batch, batch, group. Did you mean group?",
        ),
        ("--data.flip_probability=2", "data.flip_probability = 2.0 must be from 0 to 1."),
        (
            "--train.accumulate_steps=3",
            "train.batch_size = 16 must be a multiple of train.accumulate_steps = 3.",
        ),
    ],
)
def test_errors_are_one_sentence(refused, argv, sentence):
    assert refused(CONFIG, *argv.split()) == sentence


def test_a_missing_positional_argument_is_an_empty_list():
    assert read(CONFIG, args_type=PredictArgs)[0].images == ()


def test_a_config_must_be_named(refused):
    message = refused("--resume")
    assert message.startswith("Name a config: train.py --config configs/NAME.py, where NAME is one of ")
    assert NAME in message
    assert refused("--config") == "--config needs a value: the path of a config."
    assert refused("--config", "--resume") == "--config needs a value: the path of a config."
    assert refused(CONFIG, "--config=b.py") == f"--config is given more than once: {CONFIG[9:]}, b.py."


def test_the_error_for_a_missing_file_lists_similar_names(refused, tmp_path):
    assert f"Did you mean {NAME}" in refused(f"--config={ROOT}/configs/tood_r50_fpn_1x_coc.py")
    (tmp_path / "cells.py").touch()
    assert (
        refused(f"--config={tmp_path}/x.py") == f"There is no config {tmp_path}/x.py. The folder {tmp_path} has: cells."
    )
    assert refused(f"--config={tmp_path}/cell.py") == f"There is no config {tmp_path}/cell.py. Did you mean cells?"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x = 1", "{path} has no function config() that returns a Config."),
        ("config = 3", "{path} has no function config() that returns a Config."),
        ("def config():\n    return 3", "{path}: config() returned int, not a Config."),
        ("\n1 / 0", "{path}, line 2: ZeroDivisionError: division by zero."),
        ("def config():\n    return nowhere", "{path}, line 2: NameError: name 'nowhere' is not defined."),
        ("def config(:", "{path}, line 1: SyntaxError: invalid syntax."),
        ("import no_such_thing", "{path}, line 1: ModuleNotFoundError: No module named 'no_such_thing'."),
        (
            "from tood_jax.config import *\ndef config():\n    return Config(train=TrainConfig(epoch=3))",
            "{path}, line 3: TypeError: TrainConfig.__init__() got an unexpected keyword argument 'epoch'",
        ),
        (
            "from tood_jax.config import *\ndef config():\n    return Config(train=TrainConfig(epochs='3'))",
            "{path}: train.epochs = '3' must be an integer.",
        ),
    ],
)
def test_errors_in_a_config_file_name_file_and_line(refused, tmp_path, source, sentence):
    path = tmp_path / "mine.py"
    path.write_text(source, encoding="utf-8")
    assert refused(f"--config={path}").startswith(sentence.format(path=path))


def test_help_without_a_config_lists_them(capsys):
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "Train a detector." in text
    assert "--config configs/NAME.py" in text
    assert all(name in text and line in text and line for name, line in list_configs())
    assert "--resume" in text
    assert "Resume from the newest checkpoint." in text


def test_help_with_a_config_explains_every_field_with_its_values(capsys):
    with pytest.raises(SystemExit) as caught:
        read(CONFIG.replace("1x", "ms_2x"), "--help")
    assert caught.value.code == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Resume from the newest checkpoint." in words
    assert "--train.epochs INT Passes over the training images. (from 1 to 1,000,000; default: 24)" in words
    assert "--data.train_short_side INT INT" in words
    assert "default: 480 800)" in words
    assert "--data.buckets=800x1088,1088x800" in words


def test_help_has_the_range_of_every_number(capsys):
    with pytest.raises(SystemExit):
        read(CONFIG, "--help")
    blocks = re.split(r"^[│ ]*--", capsys.readouterr().out, flags=re.MULTILINE)
    described = {block.split()[0]: "".join(block.replace("│", " ").split()) for block in blocks}
    ranges = {
        f"{group.name}.{field.name}": part
        for group in dataclasses.fields(Config)
        if dataclasses.is_dataclass(group.type)
        for field in dataclasses.fields(group.type)
        for part in typing.get_args(field.type)
        if isinstance(part, Range)
    }
    assert len(ranges) > 50
    for name, range_ in ranges.items():
        assert f"({range_};default:".replace(" ", "") in described[name]
