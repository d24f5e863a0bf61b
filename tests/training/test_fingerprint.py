"""A run goes on only from a checkpoint of its own classes and data, or says what is different."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sets import CLASSES, dataset, some_images
from tests.tiny import tiny_config
from tood_jax.checkpoint.reader import CheckpointError
from tood_jax.data.dataset import ClassInfo
from tood_jax.training.fingerprint import (
    ACCEPT_FLAG,
    check_same_classes,
    check_same_data,
    describe_run,
)
from tood_jax.training.plan import make_plan


def fingerprint(images=12, batch_size=4, val=3):
    config = tiny_config(Path("x"), Path("x"), batch_size=batch_size)
    splits = {"train": dataset(*some_images(images)), "val": dataset(*some_images(val))}
    return json.loads(json.dumps(describe_run(config, make_plan(config, images), splits)))


def compare(old, new, accepted=False, step=6):
    return check_same_data(old, new, step=step, accepted=accepted, where="runs/x/checkpoints/6")


# ---------------------------------------------------------------- data


def test_the_same_data_are_the_same():
    assert compare(fingerprint(), fingerprint()) == ""
    elsewhere = [dataclasses.replace(one, path=f"/other/{i}.png") for i, one in enumerate(some_images(12))]
    assert dataset(*elsewhere).fingerprint == dataset(*some_images(12)).fingerprint


def test_a_checkpoint_without_a_fingerprint_fits():
    assert compare({}, fingerprint()) == ""


CHANGES = {
    "ids": lambda images: [dataclasses.replace(images[0], id="0"), *images[1:]],
    "order": lambda images: [images[1], images[0], *images[2:]],
    "sizes": lambda images: [dataclasses.replace(images[0], width=65), *images[1:]],
    "transposed": lambda images: [dataclasses.replace(images[0], width=48, height=64), *images[1:]],
    "boxes": lambda images: [*images[:5], dataclasses.replace(images[5], boxes=images[5].boxes + 0.25), *images[6:]],
    "labels": lambda images: [*images[:5], dataclasses.replace(images[5], labels=1 - images[5].labels), *images[6:]],
    "a box moves to another image": lambda images: [
        *images[:4],
        dataclasses.replace(images[4], boxes=images[5].boxes, labels=images[5].labels),
        dataclasses.replace(images[5], boxes=images[4].boxes, labels=images[4].labels),
        *images[6:],
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_seen_though_the_numbers_are_the_same(change):
    old, new = fingerprint(), fingerprint()
    new["splits"]["train"] = dataset(*CHANGES[change](some_images(12))).fingerprint
    with pytest.raises(CheckpointError, match="12 images and 12 objects as before, but other") as refused:
        compare(old, new)
    assert ACCEPT_FLAG in str(refused.value)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.integers(1, 8))
def test_other_counts_are_named_and_accepted_by_the_flag(images, others, batch, other_batch):
    old, new = fingerprint(images=images, batch_size=batch), fingerprint(images=others, batch_size=other_batch)
    if (images, batch) == (others, other_batch):
        assert compare(old, new) == ""
        return
    with pytest.raises(CheckpointError) as refused:
        compare(old, new)
    told = compare(old, new, accepted=True)
    for text in (str(refused.value), told):
        assert (f"{others} images (was {images})" in text) == (images != others)
        assert (f"train.batch_size is {other_batch} (was {batch})" in text) == (batch != other_batch)
    assert "\n" not in str(refused.value)
    assert f"end of epoch {6 / new['epoch_steps']:.2f} now" in told


def test_the_evaluation_split_counts_too():
    with pytest.raises(CheckpointError, match=r"data\.val has 4 images \(was 3\)"):
        compare(fingerprint(), fingerprint(val=4))


# ---------------------------------------------------------------- classes


def plain(classes):
    return [{"id": one.id, "name": one.name} for one in classes]


def test_the_same_names_in_the_same_order_fit():
    check_same_classes(plain(CLASSES), CLASSES, "x")
    check_same_classes(plain(CLASSES), [ClassInfo(one.id + 10, one.name) for one in CLASSES], "x")


@pytest.mark.parametrize(
    ("new", "told"),
    [
        ([(1, "disc"), (2, "box")], "'star' is missing"),
        ([(1, "disc"), (2, "box"), (5, "star"), (6, "ring")], "'ring' is new"),
        ([(1, "disc"), (2, "crate"), (5, "star")], "'box' is 'crate' now"),
        ([(1, "box"), (2, "disc"), (5, "star")], "'disc' is number 2 (was 1), 'box' is number 1 (was 2)"),
        ([(1, "disc"), (2, "a\x1b[31mb"), (5, "star")], r"'box' is 'a\\x1b[31mb' now"),
    ],
)
def test_other_classes_are_refused_by_name(new, told):
    with pytest.raises(CheckpointError) as refused:
        check_same_classes(plain(CLASSES), [ClassInfo(*one) for one in new], "runs/x/checkpoints/6")
    assert f"runs/x/checkpoints/6 was trained on other classes: {told}. " in str(refused.value)
    assert "--init_from" in str(refused.value)


@given(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1), st.permutations("abcdef"), st.integers(1, 6))
def test_classes_fit_if_and_only_if_their_names_do(old, names, count):
    new = [ClassInfo(i, name) for i, name in enumerate(names[:count])]
    before = [{"id": i, "name": name} for i, name in enumerate(old)]
    if old == names[:count]:
        check_same_classes(before, new, "x")
    else:
        with pytest.raises(CheckpointError, match="other classes: '"):
            check_same_classes(before, new, "x")
