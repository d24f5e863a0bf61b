"""The config: exact JSON round trips, one sentence for each problem, warnings for unlikely settings."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import math
import operator
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from tood_jax.config import schema as config_module
from tood_jax.config.conversion import describe_type, leaf_hints
from tood_jax.config.files import load_config
from tood_jax.config.validation import check, stored_config, warnings
from tood_jax.distributed.compiler_options import DEFAULT_OPTIONS


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


def test_errors_of_loading_name_the_file_and_the_problem(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match=r"config\.json can't be read"):
        load_config_json(path)
    path.write_text("{torn", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json can't be read"):
        load_config_json(path)
    path.write_text('{"train": {"epochs": "12"}}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json: train\.epochs = '12' must be an integer\."):
        load_config_json(path)


def test_missing_fields_keep_their_defaults_and_integers_become_floats():
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


def test_every_type_of_the_schema_has_a_description():
    assert {name for name, hint in leaf_hints(Config).items() if "typing" in describe_type(hint)} == set()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"train__epochs": "12"}, "train.epochs = '12' must be an integer."),
        ({"train__epochs": 0}, "train.epochs = 0 must be from 1 to 1,000,000."),
        ({"data__workers": -1}, "data.workers = -1 must be from 0 to 512."),
        ({"optimizer__learning_rate": 0.0}, "optimizer.learning_rate = 0.0 must be above 0 and at most 1,000,000."),
        (
            {"optimizer__learning_rate": math.nan},
            "optimizer.learning_rate = nan must be above 0 and at most 1,000,000.",
        ),
        ({"optimizer__weight_decay": math.inf}, "optimizer.weight_decay = inf must be from 0 to 1,000,000."),
        ({"optimizer__clip_norm": -1.0}, "optimizer.clip_norm = -1.0 must be above 0 and at most 1,000,000,000."),
        ({"optimizer__ema_decay": 1.0}, "optimizer.ema_decay = 1.0 must be above 0 and below 1."),
        ({"data__flip_probability": 1.5}, "data.flip_probability = 1.5 must be from 0 to 1."),
        (
            {"data__pixel_std": (1.0, 0.0, 1.0)},
            "data.pixel_std = (1.0, 0.0, 1.0) must be above 0 and at most 1,000,000.",
        ),
        (
            {"data__buckets": ((800, 1333),)},
            "data.buckets = ((800, 1333),) must be a multiple of 32 from 32 to 16,384.",
        ),
        ({"data__buckets": ()}, "data.buckets = () must have at least one canvas (height, width)."),
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
        ({"name": "a/b"}, "name = 'a/b' must be a file name without slashes: the run's folder has this name."),
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
            "head.deformable_convs = 1 is for head.kind = t_head; set 0 for a parallel head.",
        ),
        ({"head__deformable_convs": 7}, "head.deformable_convs = 7 exceeds head.num_convs = 6."),
        (
            {"assigner__kind": "atss", "loss__box_weight": "centerness"},
            "loss.cls_target = alignment needs assigner.kind = task_aligned, not atss.",
        ),
        (
            {"loss__box": "l1"},
            "loss.box = l1 is a loss of box logits: it needs head.alignment = False and a head.box_coding other than "
            "binned_distances; or set loss.box = giou.",
        ),
        (
            {"assigner__negative_iou": 0.6},
            "assigner.negative_iou = 0.6 must not exceed assigner.positive_iou = 0.5.",
        ),
    ],
)
def test_check_names_the_problem(values, sentence):
    assert problems(changed(**values)) == [sentence]


NUMBERS = {name: hint for name, hint in leaf_hints(Config).items() if "int" in str(hint) or "float" in str(hint)}


def filled(hint, number):
    """A value of a field's type, made of one number."""
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is tuple:
        return [filled(part, number) for part in parts if part is not Ellipsis]
    return number if not parts else filled(parts[0], number)


def with_field(name, value):
    tree = to_dict(Config())
    *groups, leaf = name.split(".")
    functools.reduce(operator.getitem, groups, tree)[leaf] = value
    return tree


@pytest.mark.parametrize("digits", [300, 4000])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_every_number_has_a_bound(name, sign, digits):
    """A config may come from an untrusted checkpoint."""
    with pytest.raises(ConfigError) as caught:
        check(from_dict(with_field(name, filled(NUMBERS[name], sign * 10**digits))))
    message = str(caught.value)
    assert name in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("detect.max_detections", 10**9, "detect.max_detections = 1000000000 must be from 1 to 100,000."),
        ("data.workers", 10**5, "data.workers = 100000 must be from 0 to 512."),
        ("data.buckets", [[832, 1344]] * 101, "data.buckets has 101 values; more than 100 are not possible."),
        ("data.val.images", "x" * 5000, "data.val.images has a text of more than 4096 characters."),
    ],
)
def test_sizes_that_no_run_needs_are_refused(name, value, message):
    assert problems(from_dict(with_field(name, value))) == [message]


def test_all_configs_pass_the_check():
    for file in Path("configs").rglob("*.py"):
        check(load_config(str(file)))


@pytest.mark.parametrize(
    "option",
    [
        "xla_dump_to=/tmp/x",
        "xla_gpu_cuda_data_dir=/tmp/x",
        "xla_backend_optimization_level=/tmp/x",
        "xla_cpu_enable_fast_math=true\n",
        "xla_backend_optimization_level=9999999999",
        "\x1b]0;x=1",
        "xla_backend_optimization_level",
    ],
)
def test_only_listed_compiler_options_of_a_checkpoint_are_used(option):
    """XLA options name files to write and programs to start."""
    allowed = "xla_tpu_run_space_to_batch=False"
    config, notes = stored_config(with_field("train.compiler_options", [option, allowed]), "runs/x/3")
    assert config.train.compiler_options == (allowed,)
    assert len(notes) == 1
    assert "stored in runs/x/3 is not used" in notes[0]
    assert notes[0].isprintable()


def test_default_compiler_options_may_be_stored():
    options = [f"{name}={value}" for one in DEFAULT_OPTIONS.values() for name, value in one.items()]
    config, notes = stored_config(with_field("train.compiler_options", options), "x")
    assert (list(config.train.compiler_options), notes) == (options, [])


def test_the_hook_of_a_checkpoint_is_not_run():
    config, notes = stored_config(with_field("data.augment_hook", "os:abort"), "runs/x/3")
    assert config == Config()
    assert len(notes) == 1
    assert "data.augment_hook = os:abort stored in runs/x/3 is not used" in notes[0]


def test_the_error_for_a_stored_config_names_the_checkpoint():
    for values in (None, [], {"train": {"epochs": "x"}}, with_field("detect.max_detections", 10**9)):
        with pytest.raises(ConfigError, match=r"The config stored in runs/x/3 can't be used: "):
            stored_config(values, "runs/x/3")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text() | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
replaced = st.tuples(st.sampled_from([*leaf_hints(Config), "data.val", "head"]), json_values)


@settings(max_examples=300)
@given(json_values | replaced.map(lambda one: with_field(*one)))
def test_any_json_is_a_config_or_a_config_error(tmp_path_factory, tree):
    file = tmp_path_factory.getbasetemp() / "any_config.json"
    file.write_text(json.dumps(tree))
    with contextlib.suppress(ConfigError):
        check(load_config_json(file))
    with contextlib.suppress(ConfigError):
        check(stored_config(tree, "x")[0])


@given(st.binary() | st.text().map(str.encode) | st.sampled_from([b"[" * 10**5, b'{"a":' * 10**5, b"9" * 5000, b"NaN"]))
def test_any_bytes_are_a_config_or_a_config_error(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any_config.json"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=r"any_config\.json") as caught:
        load_config_json(file)
    assert str(caught.value).isprintable()


def test_several_anchors_per_location_need_a_parallel_head_and_max_iou():
    found = problems(changed(head__anchor_octaves=3))
    assert [sentence.startswith("3 anchors per location") for sentence in found] == [True, True]
    assert ["head.kind = parallel" in found[0], "assigner.kind = max_iou" in found[1]] == [True, True]


def test_groups_and_depth_must_fit():
    assert "basic blocks" in problems(changed(backbone=BackboneConfig(depth=18, groups=2)))[0]
    assert (
        "must divide the 48 channels"
        in problems(changed(backbone=BackboneConfig(groups=32, width=96, width_per_group=1)))[0]
    )
    check(changed(backbone=BackboneConfig(depth=101, groups=64, width_per_group=4)))


@pytest.mark.parametrize("steps", [(8, 12), (8, 8), (11, 8), (0, 8)])
def test_step_epochs_increase_within_the_run(steps):
    assert problems(changed(optimizer__step_epochs=steps))[0].startswith(
        f"optimizer.step_epochs = {steps} must increase"
    )
    check(changed(optimizer__step_epochs=steps, optimizer__schedule="cosine"))


def test_an_empty_step_schedule_is_valid():
    check(changed(optimizer__step_epochs=(), train__epochs=1))


def test_check_lists_all_problems_at_once():
    assert len(problems(changed(train__epochs=0, data__threads=0))) == 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train__batch_size": 256}, "scaled to 256 images is 0.16"),
        ({"optimizer__learning_rate": 0.1}, "more than eight times the published 0.01 for 16"),
        ({"assigner__warmup_epochs": 12.0}, "the task-aligned phase never starts"),
        ({"backbone__norm": "batch", "train__accumulate_steps": 8}, "from 2 images at a time"),
        ({"backbone__norm": "group"}, "backbone.frozen_stages = 1 freezes layers with GroupNorm"),
        ({"detect__score_threshold": 0.3}, "lowers AP"),
        ({"detect__max_detections": 50}, "lowers AP and AR100"),
        ({"data__augmentation": "strong", "data__closing_epochs": 12}, "no image becomes part of a mosaic"),
        ({"data__threads": 8}, "data.threads = 8 exceeds data.prefetch_batches = 4"),
    ],
)
def test_warnings_name_what_is_probably_not_intended(values, words):
    config = changed(**values)
    check(config)
    assert [words in warning for warning in warnings(config)] == [True]


def test_lists_in_a_handwritten_config_become_tuples():
    config = dataclasses.replace(Config(), data=DataConfig(train_short_side=[480, 800]))  # type: ignore[arg-type]
    assert from_dict(to_dict(config)).data.train_short_side == (480, 800)


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"train": {"compiler_options": ("xla_tpu_run_space_to_batch",)}}, "must be name=value"),
    ({"data": {"augment_hook": "mine.py"}}, r"data\.augment_hook = mine\.py must be module:function"),
    ({"data": {"augment_hook": "../mine:augment"}}, "must be module:function"),
    ({"train": {"pack_levels": "always"}, "parallel": {"space": 2}}, r"needs parallel\.space = 1"),
    ({"train": {"pack_levels": "always"}, "head": {"kind": "parallel"}}, r"is for head\.kind = t_head"),
])  # fmt: skip
def test_options_of_the_computation_must_fit(changes, complaint):
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


def test_splits_of_one_folder_have_one_seed():
    def config(train, val):
        splits = {"train": {"folder": "x", "folder_seed": train}, "val": {"folder": "x", "folder_seed": val}}
        return from_dict({"data": splits})

    check(config(3, 3))
    message = "data.train.folder_seed and data.val.folder_seed must be equal, or images of val are trained on."
    assert problems(config(0, 3)) == [message]
