"""compile_for.py on the CPU devices of this machine, and the collectives of data parallelism."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import pytest

from benchmarks.cases import accelerator_compilation, training_memory
from tests.tiny import tiny_config
from tood_jax.config import BackboneConfig, ConfigError, save_config
from tood_jax.config.validation import check
from tood_jax.distributed.sharding import make_mesh
from tood_jax.models.build import build_model
from tood_jax.tools.compile_for import main as compile_for
from tood_jax.tools.compile_for.chips import CHIPS, Chip, chip_of, devices_of
from tood_jax.tools.compile_for.programs import lower_train_step, platform_of
from tood_jax.tools.compile_for.report import collectives_of
from tood_jax.training.optimizer import make_optimizer, trained_mask
from tood_jax.training.state import state_shapes


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("compile_for")
    backbone = BackboneConfig(depth=18, width=8, norm="frozen_batch", frozen_stages=1)
    config = tiny_config(root, root)
    head = dataclasses.replace(config.head, num_convs=1)  # compiles quicker
    config = dataclasses.replace(config, backbone=backbone, head=head)
    save_config(config, root / "tiny.json")
    return config, root


def test_the_only_collectives_are_the_sums_of_gradients_and_losses(config):
    """With a packed head; without, the gradient of a shared kernel is exchanged once per level."""
    config, _ = config
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, pack_levels="always"))
    mesh = make_mesh(jax.devices()[:8])
    assert platform_of(mesh) == jax.default_backend()
    found = collectives_of(lower_train_step(config, 4, 8, (64, 64), mesh).compile().as_text(), mesh)
    assert {(one.kind, one.axis) for one in found} == {("all-reduce", "data")}
    optimizer = make_optimizer(config)
    params = state_shapes(build_model(config, 4), optimizer, keep_ema=False).params
    trained = trained_mask(params, config)
    sizes = {
        jax.tree_util.keystr(path): 4 * math.prod(leaf.shape) * trains
        for (path, leaf), trains in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(trained), strict=True)
    }
    assert sum(size == 0 for size in sizes.values()) > 10  # the frozen ones have no gradient to exchange
    # A frozen norm is folded into its convolution: its scale's gradient follows from the kernel's, already summed.
    gradients = sum(size for name, size in sizes.items() if not ("backbone" in name and "scale" in name))
    losses = sum(one.bytes for one in found) - gradients
    assert 0 < losses < 0.005 * gradients


def test_the_report(config, tmp_path, capsys):
    _, root = config
    arguments = ["--config", str(root / "tiny.json"), "--num_classes=4", "--json", str(tmp_path / "found.json")]
    with pytest.raises(SystemExit) as ended:
        compile_for.main([*arguments, "--hlo", str(tmp_path / "hlo"), "--canvas", "64,64"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert "canvas 64×64, for here: 8 devices; mesh data 8 × space 1" in output
    record = json.loads((tmp_path / "found.json").read_text())
    train, evaluate = record["rows"]
    assert (train["program"], evaluate["program"]) == ("train", "evaluate")
    assert train["fits"]
    assert evaluate["fits"]
    assert train["global_batch"] == 8
    assert train["work"]["flops"] > 2 * evaluate["work"]["flops"] > 0
    assert train["work"]["hbm_bytes"] > evaluate["work"]["hbm_bytes"] > 0
    assert train["memory"]["aliased"] > 0  # the state's buffers are donated
    assert {one["kind"] for one in train["collectives"]} == {"all-reduce"}
    assert {one["axis"] for one in evaluate["collectives"]} == {"data"}  # detections go to every process
    assert {file.name for file in (tmp_path / "hlo").iterdir()} == {"train_1.txt", "evaluate_1.txt"}
    for row in (train, evaluate):
        assert f"{row['memory']['total'] / 2**30:.2f}" in output


@pytest.mark.parametrize(("topology", "complaint"), [
    ("v5e", "must be here, or a kind and a shape such as v5e:16x16"),
    ("b17:8", "the kinds are v4, v5e, v6e, v5p, tpu7x, a100, h100, h200"),
    ("h200:many", "must have the number of GPUs, h200:8, or of hosts and GPUs per host, h200:4x8"),
    ("v5e:two", "--topology=v5e:two"),
])  # fmt: skip
def test_a_slice_that_does_not_exist_is_one_sentence(config, topology, complaint, capsys):
    _, root = config
    with pytest.raises(SystemExit) as ended:
        compile_for.main(["--config", str(root / "tiny.json"), "--topology", topology])
    message = capsys.readouterr().err
    assert ended.value.code == 1
    assert complaint in message
    assert message.count("\n") == 1
    assert "Traceback" not in message


def test_chips_are_plausible():
    for chip in CHIPS.values():
        assert 16 * 2**30 <= chip.memory < 200 * 2**30
        assert 100 < chip.bfloat16 / chip.bandwidth < 700  # FLOP per byte


@pytest.mark.parametrize(("kind", "name"), [
    ("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("TPU v6 lite", "TPU v6e"), ("NVIDIA H200", "NVIDIA H200"),
    ("NVIDIA H100 80GB HBM3", "NVIDIA H100"), ("NVIDIA A100-SXM4-80GB", "NVIDIA A100"), ("cpu", None),
])  # fmt: skip
def test_a_device_is_known_by_its_kind(kind, name):
    chip = chip_of(SimpleNamespace(device_kind=kind))
    assert (chip and chip.name) == name


def test_gpus_are_described_to_the_compiler(monkeypatch):
    """The GPU compiler itself (300 MB) runs in the case accelerator_compilation with `--compile h200-1`, not here."""
    asked = {}

    def described(**given):
        asked.update(given)
        return SimpleNamespace(devices=["a device"])

    monkeypatch.setattr("tood_jax.tools.compile_for.chips.topologies.get_topology_desc", described)
    assert devices_of("h200:8") == (["a device"], CHIPS["h200"])
    assert (asked["platform"], asked["topology"]) == ("cuda", "1x1x8")
    assert f"memory_bandwidth: {CHIPS['h200'].bandwidth}" in asked["target_config"]
    devices_of("a100:4x2")
    assert asked["topology"] == "1x4x2"
    assert "{ major: 8 minor: 0 }" in asked["target_config"]


def test_gpus_without_their_compiler_are_one_sentence(monkeypatch):
    def absent(**_):
        raise NotImplementedError("topology not implemented for cuda")  # what JAX says

    monkeypatch.setattr("tood_jax.tools.compile_for.chips.topologies.get_topology_desc", absent)
    with pytest.raises(ConfigError, match=r"--topology=h100:8 can't be described .*: install the GPU compiler \(pip"):
        devices_of("h100:8")


def test_a_program_that_compiles_may_still_not_fit(config, monkeypatch, capsys):
    """libtpu has compiled a step of 33.9 GiB for chips of 32 without a word."""
    _, root = config
    small = Chip("small", "cpu", memory=1e4, bfloat16=1e12, bandwidth=1e9)
    monkeypatch.setattr(compile_for, "devices_of", lambda topology: (jax.devices(), small))
    with pytest.raises(SystemExit) as ended:
        compile_for.main(["--config", str(root / "tiny.json"), "--num_classes=4", "--program=evaluate"])
    assert ended.value.code == 1
    output = capsys.readouterr().out
    assert "doesn't fit: the compiler accepted it, but it needs more memory than the chip has" in output
    assert "GB of HBM traffic" in output  # the numbers are printed all the same


def test_the_table_of_records(config, tmp_path, capsys):
    """The case accelerator_compilation prints what compile_for.py wrote, also of what does not fit."""
    _, root = config
    folder = tmp_path / "records"
    arguments = ["--config", str(root / "tiny.json"), "--num_classes=4", "--program=evaluate"]
    with pytest.raises(SystemExit):
        compile_for.main([*arguments, "--json", str(folder / "tiny.json")])
    record = json.loads((folder / "tiny.json").read_text())
    refused = {**record["rows"][0], "fits": False, "needed": 20 * 2**30, "per_chip_batch": 9, "chip_memory": 2**34}
    (folder / "tiny.json").write_text(json.dumps({**record, "rows": [*record["rows"], refused]}))
    capsys.readouterr()
    assert len(accelerator_compilation.main(["--folder", str(folder)])) == 2
    table = capsys.readouterr().out
    assert "20.0: doesn't fit | 16" in table
    assert f"{record['rows'][0]['memory']['total'] / 2**30:.2f}" in table


@pytest.mark.slow
def test_memory_of_each_choice(config, tmp_path, capsys):
    _, root = config
    size = ["--batch=1", "--height=64", "--width=64", "--classes=4", f"--out={tmp_path / 'memory.json'}"]
    report = training_memory.main(["--config", str(root / "tiny.json"), *size, "--choices", "bfloat16", "split_state"])
    whole, split = (row["memory"] for row in report["results"])
    assert split["arguments"] < 0.5 * whole["arguments"]  # a share of the state on each of eight devices
    assert "split_state" in capsys.readouterr().out


def test_every_choice_is_a_config(config):
    config, _ = config
    for name in training_memory.CHOICES:
        check(
            training_memory.with_choice(
                dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=8)), name
            )
        )
