"""Every benchmark runs at a tiny size and writes the JSON it promises."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    assigners,
    convolutions,
    deformable,
    floors,
    inference,
    nms,
    rest,
    table1,
    train_step,
    versus_torch,
)
from benchmarks.common import (
    R50,
    interleaved,
    print_table,
    random_batch,
    read_options,
    read_options_and_config,
    spread,
    with_config,
)
from benchmarks.products import products
from benchmarks.task import make_task
from tests.benchmarks.timings import check_timing
from tests.tiny import IMAGE_SIDE, tiny_config
from tood_jax.cli.options import load_config
from tood_jax.config import save_config

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["train_step", "inference", "assigners", "nms", "input_pipeline", "decoding", "deformable", "table1", "floors"]
NAMES += ["alternatives", "convolutions", "counts", "tower"]
PROGRAM = {"trace_seconds", "compile_seconds", "flops", "bytes_accessed", "memory"}
SIZE = (f"--height={IMAGE_SIDE}", f"--width={IMAGE_SIDE}", "--classes=4")


@pytest.fixture
def config_file(tmp_path):
    """The tiny run with less to compile: a frozen backbone, a short head, no moving average."""
    config = tiny_config(tmp_path, tmp_path)
    config = replace(
        config,
        backbone=replace(config.backbone, norm="frozen_batch", frozen_stages=4),
        neck=replace(config.neck, norm="none"),
        head=replace(config.head, num_convs=1),
        optimizer=replace(config.optimizer, schedule="cosine", ema_decay=None),
    )
    file = tmp_path / "tiny.json"
    save_config(config, file)
    return file


@pytest.mark.slow
def test_train_step(measured, config_file, capsys):
    report = measured(train_step, "--config", str(config_file), "--batch=2", "--objects=3", *SIZE)
    assert [row["phase"] for row in report["results"]] == ["warmup_atss", "task_aligned"]
    assert [row["task_aligned"] for row in report["results"]] == [0, 1]
    for row in report["results"]:
        check_timing(row)
        assert row["finite"] == 1
        assert row["first_seconds"] > 0
        assert row["images_per_second"] == pytest.approx(2 / row["median_seconds"])
    assert set(report["program"]) == PROGRAM
    assert report["program"]["flops"] > 0
    assert report["config"]["train"]["batch_size"] == 2
    assert "| task_aligned |" in capsys.readouterr().out


@pytest.mark.slow
def test_inference(measured, config_file):
    report = measured(inference, "--config", str(config_file), "--batch=2", *SIZE)
    assert [row["images"] for row in report["results"]] == [2, 1, 2]
    for row in report["results"]:
        check_timing(row)
        assert set(row["program"]) == PROGRAM


def test_assigners(measured):
    report = measured(assigners, "--objects", "2", "70", "--no_peer", *SIZE)
    check_assigners(report)


@pytest.mark.torch
def test_assigners_beside_torch(measured, capsys):
    report = measured(assigners, "--objects", "2", "70", *SIZE)
    check_assigners(report)
    for row in report["results"]:
        check_timing(row["torch"])
        assert row["torch_memory"] >= 0
    assert "torch, ms" in capsys.readouterr().out


def check_assigners(report):
    assert [(row["assigner"], row["objects"]) for row in report["results"]] == [
        ("task-aligned assigner", 2),
        ("task-aligned assigner", 70),
        ("ATSS", 2),
        ("ATSS", 70),
    ]
    for row in report["results"]:
        check_timing(row)
        assert row["positives"] > 0
        assert row["program"]["memory"]["temporaries"] > 0
        assert row["memory_in_one_piece"]["temporaries"] > 0


def test_nms(measured):
    report = measured(nms, "--candidates", "50", "300", "--detections=20")
    for row, count in zip(report["results"], (50, 300), strict=True):
        assert row["candidates"] == count
        assert row["same_boxes"]
        assert 0 < row["kept"] <= 20
        check_timing(row["ours"])
        check_timing(row["numpy"])


def test_input_pipeline(measured, tmp_path):
    input_pipeline = importlib.import_module("benchmarks.input_pipeline")
    report = measured(
        input_pipeline,
        *("--images=4", "--batch=2", "--threads", "1", "2", "--workers", "0", "--size", "96", "80"),
        *("--short_side=64", "--canvas", "64", "96", f"--folder={tmp_path}/images"),
    )
    assert [(row["threads"], row["workers"]) for row in report["results"]] == [(1, 0), (2, 0)]
    for row in report["results"]:
        check_timing(row["seconds_an_image"])
        assert row["canvas"] == [64, 96]
        assert row["images_per_second"] > 0
        assert row["images_per_core_second"] > 0


def test_decoding(measured, capsys):
    decoding = importlib.import_module("benchmarks.decoding")
    report = measured(decoding, "--images=4", "--short_side=64", "--canvas", "64", "96", "--threads", "1", "--workers")
    rows = {(row["source"], row["decoder"]): row for row in report["results"]}
    for row in rows.values():
        check_timing(row["decoding"])
        check_timing(row["whole"])
        assert row["mean_difference"] < 8
    for source in {source for source, _ in rows}:
        assert rows[source, "cv2 (used here)"]["mean_difference"] == 0
        assert rows[source, "cv2, scaled (data.scaled_decoding)"]["mean_difference"] > 0
    weights = {source: row["mean_file_bytes"] for (source, _), row in rows.items()}
    assert weights["640 × 480, as heavy as COCO's"] == pytest.approx(decoding.COCO_BYTES, rel=0.1)
    assert [row["place"] for row in report["places"]][:2] == ["file", "ArrayRecord"]
    (pipeline,) = report["pipelines"]
    chip = next(row for row in report["cores"] if row["chip"] == "TPU v5e")
    assert chip["images_per_second"] == pytest.approx(0.37 * 197 / 1.2)
    assert chip["cores_by_threads"] == pytest.approx(chip["images_per_second"] / pipeline["images_per_core_second"])
    assert chip["cores_by_workers"] is None
    assert "Cores that feed a chip at 37% of its peak" in capsys.readouterr().out


@pytest.mark.slow
def test_deformable(measured, capsys):
    report = measured(deformable, "--height=5", "--width=6", "--channels=8", "--deformable_groups=2", "--groups=4")
    rows = {(row["formulation"], row["pass"]): row for row in report["results"]}
    names = ("plain convolution", "gather", "products", "columns")
    assert [*rows] == [(name, way) for name in names for way in ("forward", "gradient")]
    for (name, way), row in rows.items():
        check_timing(row)
        assert row["program"]["memory"]["temporaries"] >= 0
        rounds = {"gather": 9, "products": 5}.get(name, 1)  # of loops over taps, over the rows of one image
        assert row["xla_flops"] == row["program"]["flops"] * rounds
        assert row["gigaflops_per_second"] == pytest.approx(2e-9 * row["multiply_adds"] / row["median_seconds"])
        cells, kernel = 5 * 6, 9 * 2 * 8
        looked = 0 if name == "plain convolution" else cells * 2 * 9
        assert row["least_bytes"] == 4 * (
            2 * 8 * cells + kernel + 3 * looked if way == "forward" else 3 * 8 * cells + 2 * kernel + 6 * looked
        )
        product, corners = 9 * cells * 2 * 8, (4 * 9 * cells * 8 if looked else 0)
        assert row["multiply_adds"] == product + corners if way == "forward" else 2 * product + 3 * corners
    assert "| gather " in capsys.readouterr().out


def test_deformable_for_a_tpu_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    with pytest.raises(SystemExit, match="--topology=nonsense:1x1"):
        deformable.main(["--topology=nonsense:1x1"])


def test_table1_equals_the_papers(measured, monkeypatch, capsys):
    committed = json.loads((ROOT / "benchmarks" / "results" / "table1.json").read_text(encoding="utf-8"))["results"]
    assert [(row["detector"], row["head"]) for row in committed] == [row[:2] for row in table1.ROWS]
    for row in committed:
        assert abs(row["difference"]["trained"]) < 0.002
        assert row["papers_way"]["multiply_adds"] == pytest.approx(1e9 * row["multiply_adds"], rel=3e-4)
        assert row["papers_way"]["trained"] == pytest.approx(1e6 * row["trained"], rel=3e-4)
        assert (abs(row["difference"]["multiply_adds"]) > 0.005) == bool(row["note"]) == (row["detector"] == "FCOS")

    monkeypatch.setattr(table1, "ROWS", table1.ROWS[3:7:3])  # counted again: all of them take too long
    t_head, parallel = measured(table1)["results"]
    assert [t_head, parallel] == committed[3:7:3]
    assert (t_head["head"], parallel["head"]) == ("T-head", "parallel")
    cells = 16000 + 4000 + 1000 + 260 + 70
    assert parallel["counts"]["head_parameters"] == 8 * (9 * 256**2 + 512) + 9 * 256 * 85 + 85 + 5
    assert parallel["counts"]["head_multiply_adds"] == cells * (8 * 9 * 256**2 + 9 * 256 * 85)
    for row in (t_head, parallel):  # the rest of the network is the same
        assert row["counts"]["multiply_adds"] - row["counts"]["head_multiply_adds"] == 99_661_905_920
    assert "caffe's ResNet-50" in capsys.readouterr().out


def test_table1_of_all_configs(measured, monkeypatch, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small.py").write_text((ROOT / "configs" / "demo.py").read_text())
    monkeypatch.setattr(table1, "ROOT", tmp_path)
    (row,) = measured(table1, "--all", "--classes=4", "--height=64", "--width=64")["results"]
    assert row["config"] == "small"
    assert row["counts"]["trained"] == row["counts"]["parameters"] > row["counts"]["head_parameters"] > 0
    assert row["counts"]["multiply_adds"] > row["counts"]["head_multiply_adds"] > 0


def test_convolutions(measured, monkeypatch):
    monkeypatch.setattr(convolutions, "SHAPES", {"small": (8, 3, 2, 8, 16), "point": (4, 1, 1, 4, 8)})
    rows = measured(convolutions, "--height=64", "--width=64", "--no_peer")["results"]
    assert [(row["convolution"], row["what"]) for row in rows[2:4]] == [
        ("small", "to the kernel"),
        ("point", "forward"),
    ]
    for row in rows:
        check_timing(row["tood_jax"])
        check_timing(row["XLA"])


@pytest.mark.torch
def test_convolutions_beside_torch(measured, monkeypatch):
    monkeypatch.setattr(convolutions, "SHAPES", {"small": (8, 3, 2, 8, 16)})
    for row in measured(convolutions, "--height=64", "--width=64")["results"]:
        check_timing(row["torch"])


@pytest.mark.torch
def test_versus_torch(measured, capsys):
    network = ("--backbone.width=8", "--backbone.width_per_group=8", "--neck.channels=16", "--head.channels=16")
    network += ("--head.num_convs=1", "--head.norm_groups=4")
    work = (*SIZE, "--objects=3", "--candidates=100", "--peers", "torch eager")
    *rows, ours, peer = measured(versus_torch, *network, *work)["results"]
    rest = rows[-2 * len(versus_torch.rest.ROWS) :]
    for together, pieces in ((ours, rest[::2]), (peer, rest[1::2])):
        assert together["row"] == versus_torch.TOGETHER
        assert together["median_seconds"] == pytest.approx(sum(one["median_seconds"] for one in pieces))
    assert peer["over_ours"] == pytest.approx(peer["median_seconds"] / ours["median_seconds"])
    assert [row["side"] for row in rows] == 11 * ["tood_jax", "torch eager"]
    for ours, peer in zip(rows[::2], rows[1::2], strict=True):
        assert ours["row"] == peer["row"]
        for row in (ours, peer):
            check_timing(row)
            assert row["first_run_seconds"] > 0
            assert row["grown_bytes"] >= 0
            assert row["over_ours"] == pytest.approx(row["median_seconds"] / ours["median_seconds"])
        assert ours["program"].keys() == PROGRAM
    assert "torch eager" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="caffe must be among torch eager"):
        versus_torch.main(["--peers=caffe"])


def test_the_rest_knows_every_norm_of_the_network():
    argv = [*SIZE, "--backbone.width=8", "--neck.channels=16", "--head.channels=16", "--head.norm_groups=4"]
    argv = with_config([*argv, "--head.num_convs=2", "--train.precision=bfloat16"])
    args, config = read_options_and_config(versus_torch.Args, argv, "", "")
    maps = rest.norm_maps(make_task(args, config))
    of_head = [one for one in maps if one.kind == "group"]
    assert len(of_head) == 4 * 5  # two of the tower, one a decomposition, in five levels
    assert len(maps) - len(of_head) == 53
    assert sum(not one.trained for one in maps) == 11  # the stem's and those of C2
    assert all(one.values.dtype == one.cotangent.dtype == jnp.bfloat16 for one in maps)


def test_floors(measured, capsys):
    rows = measured(floors, "--height=64", "--width=96", "--classes=4", "--batch=2")["results"]
    found = {(row["program"], row["stage"]): row for row in rows}
    counts = table1.count(load_config(str(ROOT / R50)), 4, 64, 96)
    assert found["inference", "all"]["multiply_adds"] == counts.multiply_adds
    cells = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1
    maps, kernels = 6 * 256 * cells, 6 * (9 * 256 * 256 + 2 * 256)  # 256 channels; a norm's scale and bias
    forward, both = (found[program, "interactive convolutions"] for program in ("inference", "training"))
    assert forward["multiply_adds"] == cells * 6 * 9 * 256 * 256
    assert forward["bytes"] == 2 * (2 * maps + kernels / 2)  # two images share a read of the kernels
    assert both["multiply_adds"] == 3 * forward["multiply_adds"]
    assert both["bytes"] == 2 * (5 * maps + 2 * kernels / 2)  # and back: input, gradients of output and input
    assert [found["training", stage]["multiply_adds"] for stage in ("stem", "c2")] == [
        found["inference", stage]["multiply_adds"] for stage in ("stem", "c2")
    ]  # frozen
    seconds = found["training", "optimizer"]["seconds"]["TPU v5e"]
    assert seconds == pytest.approx(5 * 4 * counts.trained / 2 / 819e9)
    assert "images/s" in capsys.readouterr().out


def test_traffic_by_stage():
    origins = [
        "jit(step)/jvp(Detector)/head/inter_0/conv",
        "jit(step)/transpose(jvp(Detector))/head/mul",
        "jit(step)/add",
    ]
    lines = [f'  %x{i} = f32[8,2]{{1,0}} negate(%a), metadata={{op_name="{name}"}}' for i, name in enumerate(origins)]
    text = "\n".join([
        "HloModule jit_step", "", "ENTRY %main (a: f32[8,2]) -> f32[8,2] {", "  %a = f32[8,2]{1,0} parameter(0)",
        *lines, "  %c = f32[8,2]{1,0} copy(%a)", "}",
    ])  # fmt: skip
    moved = {stage: size for stage, size in floors.moved_by_stage(text, images=2).items() if size}
    assert moved == {
        "interactive convolutions": 64,
        "head, all else: norms, sampling": 64,
        "optimizer, all else": 64,
        "copies of no said origin": 64,
    }


def test_multiply_adds_by_hand():
    def network(x, kernel, matrix):
        x = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, matrix), None), x, length=3)[0]

    shapes = ((1, 8, 10, 6), (3, 3, 3, 4), (4, 4))
    traced = jax.make_jaxpr(network)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    assert [one.multiply_adds for one in products(traced.jaxpr)] == [4 * 5 * 4 * (9 * 3), *3 * [4 * 5 * 4 * 4]]
    assert {(one.input, one.output) for one in products(traced.jaxpr)} == {(8 * 10 * 6, 80), (80, 80)}
    endless = jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda x: x > 0, lambda x: x - 1, x))(1)
    with pytest.raises(ValueError, match="while"):
        list(products(endless.jaxpr))


def test_greedy_nms_by_hand():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    scores, labels = np.array([0.5, 0.9, 0.8, 0.1], np.float32), np.array([0, 0, 1, 0], np.int32)
    # Box 0 overlaps box 1 (IoU 9/11) and is of its class; box 2 is of another; nothing is left for the last place.
    np.testing.assert_array_equal(nms.greedy_nms(boxes, scores, labels, 0.6, 4), [1, 2, 3, -1])


def test_different_boxes_end_with_an_error(monkeypatch, measured):
    monkeypatch.setattr(nms, "greedy_nms", lambda boxes, *_: np.full(5, -1, np.int32))
    with pytest.raises(SystemExit, match="different boxes"):
        measured(nms, "--candidates", "50", "--detections=5")


def test_rounds_are_interleaved_and_the_first_told_apart(monkeypatch):
    monkeypatch.setattr("benchmarks.common.SHORT", 0.0)  # what takes longer runs as often as it is timed
    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert len(found["a"]["all_seconds"]) == 2
    assert found["a"]["first_seconds"] > 0


def test_short_work_is_warm_when_it_is_timed(monkeypatch):
    monkeypatch.setattr("benchmarks.common.PAUSE", 0.01)
    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert len(found["a"]["all_seconds"]) == 2
    turns = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert turns == ["a", "b"] * 3
    assert len(calls) > 100


def test_spread():
    found = spread([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (found["min_seconds"], found["median_seconds"], found["max_seconds"]) == (1, 3, 5)
    assert found["quartile_seconds"] == [2, 4]
    assert found["all_seconds"] == [3, 1, 2, 5, 4]


def test_a_table(capsys):
    print_table("Title", ["name", "ms"], [["a", 1.2345], ["bcdef", None], ["c", 1234.5]])
    assert capsys.readouterr().out == (
        "\nTitle\n\n| name  | ms   |\n|-------|------|\n| a     | 1.23 |\n| bcdef | –    |\n| c     | 1234 |\n"
    )


def test_random_batch_holds_its_objects():
    batch = random_batch(2, 64, 96, objects=3, max_objects=5, classes=4, seed=0)
    assert batch.images.shape == (2, 64, 96, 3)
    assert batch.gt_mask.sum(axis=1).tolist() == [3, 3]
    boxes = batch.gt_boxes[batch.gt_mask]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= 0).all()
    assert (boxes <= [96, 64, 96, 64]).all()
    assert (batch.gt_boxes[~batch.gt_mask] == 0).all()


def test_repeats_must_be_positive():
    with pytest.raises(SystemExit, match="repeats"):
        read_options(nms.Args, ["--repeats=0"], "nms", "")


@pytest.mark.parametrize("name", NAMES)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert f"python -m benchmarks.{name}" in output
    assert "--repeats" in output


def test_runs_as_a_command(tmp_path):
    out = tmp_path / "nms.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.nms",
        "--candidates=50",
        "--detections=5",
        "--repeats=1",
        f"--out={out}",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text(encoding="utf-8"))["results"][0]["candidates"] == 50
