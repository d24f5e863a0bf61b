"""Checkpoints and weights from untrusted sources: excessive values are refused before memory is allocated for them."""

import copy
import json
import shutil

import numpy as np
import pytest

from tests.tiny import tiny_config
from tests.weights.example_weights import small_state_dict
from tood_jax.api import load_trained_model
from tood_jax.checkpoint.about_json import crc_of_json
from tood_jax.checkpoint.reader import CheckpointError
from tood_jax.checkpoint.store import CheckpointStore
from tood_jax.cli import convert, evaluate
from tood_jax.cli.common import parse_with_checkpoint
from tood_jax.config import save_config, to_dict
from tood_jax.weights.files import write_weights

CLASSES = ("disc", "box", "triangle", "star")
ANNOTATIONS = {"categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """(checkpoint of a small detector, its config, file of its weights); nothing was trained."""
    root = tmp_path_factory.mktemp("untrusted")
    config = tiny_config(root / "set", root / "run", batch_size=8, eval_batch_size=8)
    save_config(config, root / "tiny.json")
    (root / "classes.json").write_text(json.dumps(ANNOTATIONS))
    state = small_state_dict(config=config)
    write_weights(root / "tood.safetensors", state, CLASSES, {})
    words = ["--config", str(root / "tiny.json"), "--weights", str(root / "tood.safetensors")]
    convert.main([*words, "--out", str(root / "tood"), f"--data.val.annotations={root / 'classes.json'}"])
    return root / "tood", config, root / "tood.safetensors"


@pytest.fixture
def editable(converted, tmp_path):
    """(copy of the checkpoint, function that changes its about.json and updates the checksum)."""
    run = tmp_path / "untrusted"
    shutil.copytree(converted[0], run)
    file = run / "checkpoints/0/about/about.json"

    def change(edit):
        record = json.loads(file.read_bytes())
        record.pop("crc32")
        edit(record)
        file.write_text(json.dumps({**record, "crc32": crc_of_json(record)}))

    return run, change


def opened(run, *words):
    _, config, checkpoint = parse_with_checkpoint(
        evaluate.Args, ["--checkpoint", str(run), *words], prog="eval.py", description=""
    )
    return config, checkpoint


def test_the_unchanged_checkpoint_is_loaded(editable):
    config, checkpoint = opened(editable[0])
    assert load_trained_model(checkpoint, config).classes[0].name == "disc"


def test_stored_compiler_options_are_left_out_but_not_those_of_the_command_line(editable, capsys):
    run, change = editable
    options = ["xla_dump_to=/tmp/outside", "xla_cpu_enable_fast_math=false"]
    change(lambda record: record["about"]["config"]["train"].update(compiler_options=options))
    config, _ = opened(run)
    assert config.train.compiler_options == ("xla_cpu_enable_fast_math=false",)
    assert "xla_dump_to=/tmp/outside stored in" in capsys.readouterr().err
    config, _ = opened(run, "--train.compiler_options", "xla_dump_to=/tmp/mine")
    assert config.train.compiler_options == ("xla_dump_to=/tmp/mine",)


def test_compiler_options_stored_in_a_file_of_weights_are_left_out(converted, capsys, tmp_path):
    _, config, _ = converted
    tree = copy.deepcopy(to_dict(config))
    tree["train"]["compiler_options"] = ["xla_dump_to=/tmp/outside"]
    about = {"config": tree, "classes": ANNOTATIONS["categories"]}
    write_weights(tmp_path / "x.safetensors", small_state_dict(config=config), CLASSES, about)
    convert.main(["--weights", str(tmp_path / "x.safetensors"), "--out", str(tmp_path / "y")])
    assert "xla_dump_to=/tmp/outside stored in" in capsys.readouterr().err
    assert opened(tmp_path / "y")[0].train.compiler_options == ()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda config: config["detect"].update(max_detections=10**9), "max_detections = 1000000000 must be from 1 to"),
        (lambda config: config["data"].update(workers=10**5), "data.workers = 100000 must be from 0 to 512"),
        (lambda config: config["train"].update(eval_batch_size=10**400), "train.eval_batch_size = 1000"),
        (lambda config: config.clear() or config.update(x="\x1b[2J"), "There is no field 'x'"),
    ],
)
def test_a_stored_config_out_of_range_is_one_sentence(editable, capsys, edit, message):
    run, change = editable
    change(lambda record: edit(record["about"]["config"]))
    with pytest.raises(SystemExit) as caught:
        opened(run)
    message_printed = capsys.readouterr().err
    assert caught.value.code == 1
    assert message in message_printed
    assert message_printed.count("\n") == 1
    assert message_printed[:-1].isprintable()


def test_leaves_are_compared_with_the_model_before_any_is_read(editable):
    run, change = editable
    name = "params/backbone/conv1/kernel"
    change(lambda record: record["leaves"][name].update(shape=[10**9]))
    shutil.rmtree(run / "checkpoints/0/state/d")
    config, checkpoint = opened(run)
    with pytest.raises(CheckpointError, match=r"1 leaves differ:\n  different: params/backbone/conv1/kernel is"):
        load_trained_model(checkpoint, config)


@pytest.mark.parametrize("classes", [None, []])
def test_a_checkpoint_without_classes_is_one_sentence(editable, classes):
    run, change = editable
    change(lambda record: record["about"].pop("classes") if classes is None else record["about"].update(classes=[]))
    config, checkpoint = opened(run)
    with pytest.raises(CheckpointError, match="doesn't name the classes"):
        load_trained_model(checkpoint, config)


def test_weights_with_nan_are_named_and_nothing_is_written(converted, capsys, tmp_path):
    _, config, file = converted
    tensors = small_state_dict(config=config)
    tensors["backbone.conv1.weight"][0] = np.nan
    write_weights(tmp_path / "nan.safetensors", tensors, CLASSES, {})
    words = ["--config", str(file.parent / "tiny.json"), "--weights", str(tmp_path / "nan.safetensors")]
    with pytest.raises(SystemExit):
        convert.main([*words, "--out", str(tmp_path / "out.safetensors")])
    message_printed = capsys.readouterr().err
    assert "params/backbone/conv1/kernel (147 of 1,176): the run that they are from had diverged" in message_printed
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("group", ["params", "ema"])
def test_a_checkpoint_with_nan_is_not_evaluated(converted, tmp_path, group):
    config, checkpoint = opened(converted[0])
    state = checkpoint.arrays("params", "batch_stats")
    state[group] = copy.deepcopy(state["params"])
    state[group]["head"]["cls_logits"]["bias"][1] = np.inf
    with CheckpointStore(tmp_path / "checkpoints", 1) as store:
        store.save(3, state, checkpoint.about)
    _, diverged = opened(tmp_path)
    with pytest.raises(CheckpointError, match=rf"NaN or infinite in 1 of .*{group}/head/cls_logits/bias \(1 of 4\)"):
        load_trained_model(diverged, config)
