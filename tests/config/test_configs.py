"""Every file in configs/: it loads, makes sense, explains itself, and holds the published numbers."""

import ast
import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

from tood_jax.cli import show_config
from tood_jax.cli.command_line import parse
from tood_jax.config import AssignerConfig, Config, HeadConfig, LossConfig, NeckConfig, OptimizerConfig, from_dict
from tood_jax.config.files import list_configs, load_config
from tood_jax.config.validation import check, warnings

FOLDER = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.py"))
ALL_FILES = sorted(FOLDER.rglob("*.py"))
COCO = [  # name, published AP, depth, groups, width a group, box coding, multi-scale and 24 epochs
    ("tood_r50_fpn_1x_coco", "42.4", 50, 1, 64, "exp_distances", False),
    ("tood_r50_fpn_anchor_based_1x_coco", "42.4", 50, 1, 64, "anchor_deltas", False),
    ("tood_r50_fpn_ms_2x_coco", "44.5", 50, 1, 64, "exp_distances", True),
    ("tood_r101_fpn_ms_2x_coco", "46.1", 101, 1, 64, "exp_distances", True),
    ("tood_x101_64x4d_fpn_ms_2x_coco", "47.6", 101, 64, 4, "exp_distances", True),
    ("tood_r101_fpn_dconv_c3_c5_ms_2x_coco", "49.3", 101, 1, 64, "exp_distances", True),
    ("tood_x101_64x4d_fpn_dconv_c4_c5_ms_2x_coco", "51.1", 101, 64, 4, "exp_distances", True),
]
DEFORMABLE = {"tood_r101_fpn_dconv_c3_c5_ms_2x_coco": (2, 3, 4), "tood_x101_64x4d_fpn_dconv_c4_c5_ms_2x_coco": (3, 4)}


def test_the_published_configs_are_there():
    assert {name for name, *_ in COCO} <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_loads_and_explains_itself(file):
    config = load_config(str(file))
    check(config)
    assert config.name == file.stem
    assert warnings(config) == []
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstring = ast.get_docstring(tree) or ""
    assert f"python train.py --config configs/{file.name}" in docstring
    assert "score" in docstring.lower()
    assert dict(list_configs())[file.stem] == docstring.partition("\n")[0] != ""
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {getattr(node, "module", None) for node in imports}
    assert modules <= {"dataclasses", "tood_jax.config", "tood_jax.config.presets"}, "depends on more than the config"


@pytest.mark.parametrize("file", ALL_FILES, ids=lambda file: file.stem)
def test_a_config_loads_from_any_working_directory_and_is_printed_whole(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    show_config.main(["--config", str(file)])
    assert from_dict(json.loads(capsys.readouterr().out)) == load_config(str(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_in_the_docstring_is_one_that_train_takes(file, monkeypatch):
    from tood_jax.cli.train import Args as TrainArgs  # slow to import, and only needed here

    monkeypatch.chdir(FOLDER.parent)
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    commands = re.findall(r"^\s*python train\.py (.*)$", docstring, re.MULTILINE)
    assert commands
    for command in commands:
        _, config = parse(TrainArgs, shlex.split(command, comments=True), prog="train.py")
        assert config.name == file.stem


@pytest.mark.parametrize(("name", "ap", "depth", "groups", "width", "coding", "multi"), COCO, ids=lambda v: str(v))
def test_published_hyper_parameters(name, ap, depth, groups, width, coding, multi):
    config = load_config(str(FOLDER / f"{name}.py"))
    assert ap in (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    backbone = config.backbone
    assert (backbone.depth, backbone.groups, backbone.width_per_group, backbone.width) == (depth, groups, width, 64)
    assert (backbone.norm, backbone.frozen_stages) == ("frozen_batch", 1)
    assert backbone.deformable_stages == DEFORMABLE.get(name, ())
    assert config.neck == NeckConfig(channels=256, norm="none", extra_levels="on_output", relu_before_p7=False)
    assert config.head == HeadConfig(
        kind="t_head",
        channels=256,
        num_convs=6,
        norm_groups=32,
        deformable_convs=2 if name in DEFORMABLE else 0,
        box_coding=coding,
        anchor_scale=8.0,
    )
    assert config.assigner == AssignerConfig(
        kind="task_aligned", warmup_epochs=4.0, atss_topk=9, topk=13, alpha=1.0, beta=6.0, rescue_iou=0.0
    )
    assert config.loss == LossConfig(box_loss_weight=2.0, focal_alpha=0.25, focal_gamma=2.0)
    assert config.optimizer == OptimizerConfig(
        learning_rate=0.01,
        learning_rate_batch=16,
        momentum=0.9,
        weight_decay=1e-4,
        warmup_steps=500,
        warmup_factor=0.001,
        schedule="step",
        step_epochs=(16, 22) if multi else (8, 11),
        step_factor=0.1,
        clip_norm=None,
        ema_decay=None,
    )
    assert (config.train.epochs, config.train.batch_size) == (24 if multi else 12, 16)
    assert (config.train.accumulate_steps, config.train.precision) == (1, "float32")
    assert config.data.train_short_side == ((480, 800) if multi else (800, 800))
    assert (config.data.eval_short_side, config.data.max_long_side) == (800, 1333)
    assert (config.data.flip_probability, config.data.vertical_flip_probability) == (0.5, 0.0)
    assert config.data.pixel_mean == (123.675, 116.28, 103.53)
    assert config.data.pixel_std == (58.395, 57.12, 57.375)
    assert dataclasses.astuple(config.detect) == (0.05, 1000, 0.6, 100, False, 0.0, False, "product")
    assert config.data.train.images == "data/coco/train2017"
    assert config.data.val.annotations == "data/coco/annotations/instances_val2017.json"


def padding(config: Config, low: int, high: int) -> float:
    """Share of padding over COCO's usual picture sizes (estimated shares) with the short side drawn from low–high."""
    shares = {
        (480, 640): 0.43, (640, 480): 0.15, (427, 640): 0.235, (640, 427): 0.075, (360, 640): 0.055, (640, 640): 0.03,
        (512, 640): 0.01, (320, 640): 0.01, (640, 320): 0.005,
    }  # fmt: skip
    buckets = list(config.data.buckets)
    buckets.append((max(h for h, _ in buckets), max(w for _, w in buckets)))
    buckets.sort(key=lambda bucket: bucket[0] * bucket[1])
    area = canvas = 0.0
    for (height, width), share in shares.items():
        for short in range(low, high + 1, 8):
            scale = min(short / min(height, width), config.data.max_long_side / max(height, width))
            h, w = round(height * scale), round(width * scale)
            bucket = next(b for b in buckets if h <= b[0] and w <= b[1])
            area += share * h * w
            canvas += share * bucket[0] * bucket[1]
    return canvas / area - 1


@pytest.mark.parametrize("name", [name for name, *_ in COCO])
def test_canvases_waste_little(name):
    config = load_config(str(FOLDER / f"{name}.py"))
    training = padding(config, *config.data.train_short_side)
    evaluation = padding(config, config.data.eval_short_side, config.data.eval_short_side)
    assert training < (0.25 if config.data.train_short_side[0] < 800 else 0.05)
    assert evaluation < 0.08
