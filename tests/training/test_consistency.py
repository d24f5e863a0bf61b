"""Processes that were given different things say so, before anything is compiled."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sets import CLASSES, dataset, some_images
from tests.tiny import tiny_config
from tood_jax.training.consistency import describe_differences, describe_process

CONFIG = tiny_config(Path("data"), Path("run"))
SET = dataset(*some_images(12))


def told(config=CONFIG, train_set=SET, val_set=SET):
    return json.loads(json.dumps(describe_process(config, train_set, val_set)))


def test_equal_processes_agree():
    assert describe_differences([told()] * 3) == []


def test_hosts_may_keep_their_data_elsewhere():
    data = dataclasses.replace(
        CONFIG.data, workers=3, threads=5, train=dataclasses.replace(CONFIG.data.train, images="/local/train")
    )
    assert describe_differences([told(), told(dataclasses.replace(CONFIG, data=data))]) == []


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"config": dataclasses.replace(CONFIG, name="x")}, ["--name: processes 0, 2 have tiny, process 1 has x"]),
        (
            {"config": dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, batch_size=8))},
            ["--train.batch_size: processes 0, 2 have 4, process 1 has 8"],
        ),
        (
            {"train_set": dataset(*some_images(12), classes=CLASSES[::-1])},
            [
                'classes: processes 0, 2 have ["disc", "box", "star"], process 1 has ["star", "box", "disc"]',
            ],
        ),
    ],
)
def test_who_has_what(other, expected):
    assert describe_differences([told(), told(**other), told()]) == expected


def test_other_data_are_seen_by_number_and_content():
    fewer, moved = dataset(*some_images(8)), dataset(*some_images(12)[::-1])
    [said] = describe_differences([told(), told(train_set=fewer)])
    assert said.startswith("data.train: process 0 has 12 images and 12 objects (checksum ")
    assert ", process 1 has 8 images and 7 objects (checksum " in said
    [said] = describe_differences([told(), told(val_set=moved)])
    assert said.startswith("data.val: process 0 has 12 images and 12 objects (checksum ")


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)), min_size=1, max_size=6))
def test_every_difference_is_named_once_and_nothing_else(facts):
    names = {name for one in facts for name in one}
    differ = [name for name in names if len({one.get(name) for one in facts}) > 1]
    said = describe_differences(facts)
    assert sorted(text.partition(":")[0] for text in said) == sorted(differ)
