"""The config: exact JSON round trips, one sentence for every mistake, warnings for what is probably not meant."""

import ast
import dataclasses
import inspect
import itertools
import json
import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax import config as config_module
from tood_jax.config import (
    BackboneConfig,
    Config,
    ConfigError,
    DataConfig,
    HeadConfig,
    from_dict,
    load_config_json,
    save_config,
    to_dict,
)
from tood_jax.config_rules import check, warnings
from tood_jax.typed import expected, leaf_hints


def changed(**values) -> Config:
    """The default config with `group__field=value` replaced."""
    config = Config()
    for name, value in values.items():
        group, _, leaf = name.partition("__")
        part = dataclasses.replace(getattr(config, group), **{leaf: value}) if leaf else value
        config = dataclasses.replace(config, **{group: part})
    return config


def problems(config: Config) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(config)
    return str(caught.value).split("\n")


def test_the_default_config_passes_without_warnings():
    check(Config())
    assert warnings(Config()) == []


def test_every_field_is_documented():
    undocumented = []
    for cls in ast.parse(inspect.getsource(config_module)).body:
        if isinstance(cls, ast.ClassDef):
            for field, after in itertools.pairwise([*cls.body, ast.Pass()]):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and not documented:
                    undocumented.append(ast.unparse(field.target))
    groups = {field.name for field in dataclasses.fields(Config)} | {"train", "val"}  # these have class docstrings
    assert set(undocumented) - groups == set()


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    buckets=st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99))).map(tuple),
    steps=st.lists(st.integers()).map(tuple),
    clip=st.none() | finite,
    rate=finite,
    name=st.text(),
    flag=st.booleans(),
)
def test_json_round_trip_is_exact(buckets, steps, clip, rate, name, flag):
    config = changed(
        name=name,
        data__buckets=buckets,
        optimizer__step_epochs=steps,
        optimizer__clip_norm=clip,
        optimizer__learning_rate=rate,
        detect__clip_boxes=flag,
    )
    back = from_dict(json.loads(json.dumps(to_dict(config))))
    assert back == config
    assert isinstance(back.data.buckets, tuple)
    assert all(isinstance(bucket, tuple) for bucket in back.data.buckets)
    assert hash(back) == hash(config)


def test_save_and_load(tmp_path):
    config = changed(name="Zellen-α", optimizer__ema_decay=0.999, data__train_short_side=(480, 800))
    path = tmp_path / "new" / "config.json"
    save_config(config, path)
    assert load_config_json(path) == config
    assert [file.name for file in path.parent.iterdir()] == ["config.json"]


def test_load_names_the_file_and_the_fault(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match=r"config\.json can't be read"):
        load_config_json(path)
    path.write_text("{torn", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json can't be read"):
        load_config_json(path)
    path.write_text('{"train": {"epochs": "12"}}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json: train\.epochs = '12' must be an integer\."):
        load_config_json(path)


def test_missing_fields_keep_their_defaults_and_integers_serve_as_floats():
    config = from_dict({"head": {"anchor_scale": 4}, "data": {"train_short_side": [1, 2]}})
    assert config == changed(head__anchor_scale=4.0, data__train_short_side=(1, 2))
    assert isinstance(config.head.anchor_scale, float)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"train": {"batchsize": 4}}, "There is no field 'batchsize' (= 4) in train. Did you mean batch_size?"),
        ({"trian": {}}, "There is no field 'trian' (= {}) in the config. Did you mean train?"),
        ({"xyz": 1}, "There is no field 'xyz' (= 1) in the config."),
        ({"train": {"epochs": True}}, "train.epochs = True must be an integer."),
        ({"train": {"epochs": 12.0}}, "train.epochs = 12.0 must be an integer."),
        ({"detect": {"clip_boxes": 1}}, "detect.clip_boxes = 1 must be True or False."),
        ({"data": {"buckets": [[1, 2, 3]]}}, "data.buckets[0] = [1, 2, 3] must be 2 integers."),
        ({"data": {"buckets": 3}}, "data.buckets = 3 must be a list of groups of 2 integers."),
        ({"data": {"pixel_mean": [1.0, 2.0]}}, "data.pixel_mean = [1.0, 2.0] must be 3 numbers."),
        ({"optimizer": {"step_epochs": [1, "a"]}}, "optimizer.step_epochs[1] = 'a' must be an integer."),
        ({"optimizer": {"clip_norm": "x"}}, "optimizer.clip_norm = 'x' must be a number or None."),
        ({"backbone": {"depth": 35}}, "backbone.depth = 35 must be one of 18, 34, 50, 101."),
        (
            {"backbone": {"norm": "grop"}},
            "backbone.norm = 'grop' must be one of frozen_batch, batch, group. Did you mean group?",
        ),
        ({"neck": 3}, "neck = 3 must be a group of fields (channels, norm, extra_levels, relu_before_p7)."),
    ],
)
def test_unknown_and_ill_typed_fields_are_named(values, sentence):
    with pytest.raises(ConfigError) as caught:
        from_dict(values)
    assert str(caught.value) == sentence


def test_every_type_of_the_schema_has_words():
    assert {name for name, hint in leaf_hints(Config).items() if "typing" in expected(hint)} == set()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"train__epochs": "12"}, "train.epochs = '12' must be an integer."),
        ({"train__epochs": 0}, "train.epochs = 0 must be at least 1."),
        ({"data__workers": -1}, "data.workers = -1 must be at least 0."),
        ({"optimizer__learning_rate": 0.0}, "optimizer.learning_rate = 0.0 must be above 0."),
        ({"optimizer__learning_rate": math.nan}, "optimizer.learning_rate = nan must be above 0."),
        ({"optimizer__weight_decay": math.inf}, "optimizer.weight_decay = inf must be at least 0."),
        ({"optimizer__clip_norm": -1.0}, "optimizer.clip_norm = -1.0 must be above 0."),
        ({"optimizer__ema_decay": 1.0}, "optimizer.ema_decay = 1.0 must be above 0 and below 1."),
        ({"data__flip_probability": 1.5}, "data.flip_probability = 1.5 must be from 0 to 1."),
        ({"data__pixel_std": (1.0, 0.0, 1.0)}, "data.pixel_std = (1.0, 0.0, 1.0) must be above 0."),
        (
            {"data__buckets": ((800, 1333),)},
            "data.buckets = ((800, 1333),) must be a multiple of 32 and at least 32.",
        ),
        ({"data__buckets": ()}, "data.buckets = () must name at least one canvas (height, width)."),
        (
            {"data__buckets": ((512, 1344),)},
            "data.buckets: the largest height and width, (512, 1344), must reach the largest short side, 800.",
        ),
        ({"data__train_short_side": (800, 480)}, "data.train_short_side = (800, 480) must be (smallest, largest)."),
        ({"data__max_long_side": 600}, "data.max_long_side = 600 must be at least the largest short side, 800."),
        (
            {"train__accumulate_steps": 3},
            "train.batch_size = 16 must be a multiple of train.accumulate_steps = 3.",
        ),
        ({"head__norm_groups": 48}, "head.channels = 256 must be a multiple of head.norm_groups = 48."),
        ({"backbone__frozen_stages": 5}, "backbone.frozen_stages = 5 must be from -1 to 4."),
        ({"name": "a/b"}, "name = 'a/b' must be a plain word, for it names the run's folder."),
        (
            {"backbone": BackboneConfig(width=16, norm="group", frozen_stages=-1)},
            "backbone.width = 16 must be a multiple of head.norm_groups = 32.",
        ),
        ({"backbone__deformable_stages": (1, 2)}, "backbone.deformable_stages = (1, 2) must be from 2 to 4."),
        (
            {"backbone": BackboneConfig(depth=18, deformable_stages=(3, 4))},
            "backbone.deformable_stages = (3, 4) needs bottlenecks: depth 50 or 101.",
        ),
        (
            {"head__norm": "none"},
            "head.kind = t_head has GroupNorm and no bias in its tower: set norm = group and tower_bias = False.",
        ),
        (
            {"head": HeadConfig(kind="parallel", deformable_convs=1)},
            "head.deformable_convs = 1 is for head.kind = t_head; a parallel head takes 0.",
        ),
        ({"head__deformable_convs": 7}, "head.deformable_convs = 7 exceeds head.num_convs = 6."),
        (
            {"learning__assigner": "atss", "loss__box_weight": "centerness"},
            "loss.cls_target = alignment needs learning.assigner = task_aligned, not atss.",
        ),
        (
            {"loss__box": "l1"},
            "loss.box = l1 learns the raw numbers of a cell's own box: it needs head.alignment = False and another "
            "head.box_coding than binned_distances; or set loss.box = giou.",
        ),
        (
            {"learning__negative_iou": 0.6},
            "learning.negative_iou = 0.6 must not exceed learning.positive_iou = 0.5.",
        ),
    ],
)
def test_check_says_what_is_wrong(values, sentence):
    assert problems(changed(**values)) == [sentence]


def test_several_anchors_a_cell_need_a_parallel_head_and_max_iou():
    found = problems(changed(head__anchor_octaves=3))
    assert [sentence.startswith("3 anchors a cell") for sentence in found] == [True, True]
    assert ["head.kind = parallel" in found[0], "learning.assigner = max_iou" in found[1]] == [True, True]


def test_check_on_blocks_and_groups():
    assert "basic blocks" in problems(changed(backbone=BackboneConfig(depth=18, groups=2)))[0]
    assert (
        "must divide the 48 channels"
        in problems(changed(backbone=BackboneConfig(groups=32, width=96, width_per_group=1)))[0]
    )
    check(changed(backbone=BackboneConfig(depth=101, groups=64, width_per_group=4)))


@pytest.mark.parametrize("steps", [(8, 12), (8, 8), (11, 8), (0, 8)])
def test_step_epochs_rise_within_the_run(steps):
    assert problems(changed(optimizer__step_epochs=steps))[0].startswith(f"optimizer.step_epochs = {steps} must rise")
    check(changed(optimizer__step_epochs=steps, optimizer__schedule="cosine"))


def test_no_step_at_all_is_fine():
    check(changed(optimizer__step_epochs=(), train__epochs=1))


def test_check_lists_all_problems_at_once():
    assert len(problems(changed(train__epochs=0, data__threads=0))) == 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train__batch_size": 256}, "scaled to 256 images is 0.16"),
        ({"learning__warmup_epochs": 12.0}, "the task-aligned phase never starts"),
        ({"backbone__norm": "batch", "train__accumulate_steps": 8}, "from 2 images at a time"),
        ({"backbone__norm": "group"}, "backbone.frozen_stages = 1 freezes layers with GroupNorm"),
        ({"detect__score_threshold": 0.3}, "lowers AP"),
        ({"detect__max_detections": 50}, "lowers AP and AR100"),
        ({"data__threads": 8}, "data.threads = 8 exceeds data.prefetch_batches = 4"),
    ],
)
def test_warnings_name_what_is_probably_not_meant(values, words):
    config = changed(**values)
    check(config)
    assert [words in warning for warning in warnings(config)] == [True]


def test_lists_in_a_handwritten_config_become_tuples():
    config = dataclasses.replace(Config(), data=DataConfig(train_short_side=[480, 800]))  # type: ignore[arg-type]
    assert from_dict(to_dict(config)).data.train_short_side == (480, 800)


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"train": {"compiler_options": ("xla_tpu_run_space_to_batch",)}}, "must be name=value"),
    ({"train": {"pack_levels": "always"}, "parallel": {"space": 2}}, r"needs parallel\.space = 1"),
    ({"train": {"pack_levels": "always"}, "head": {"kind": "parallel"}}, r"is for head\.kind = t_head"),
])  # fmt: skip
def test_how_a_program_is_computed(changes, complaint):
    config = Config()
    config = dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **fields) for group, fields in changes.items()}
    )
    with pytest.raises(ConfigError, match=complaint):
        check(config)


def test_compiler_options_by_name():
    train = dataclasses.replace(Config().train, compiler_options=("xla_cpu_enable_fast_math=false", "another=x=y"))
    config = dataclasses.replace(Config(), train=train)
    check(config)
    assert config.compiler_options == {"xla_cpu_enable_fast_math": False, "another": "x=y"}
    flag = {"xla_cpu_enable_fast_math": config.compiler_options["xla_cpu_enable_fast_math"]}
    jax.jit(jnp.sin, compiler_options=flag).lower(1.0).compile()  # XLA takes no "false"
