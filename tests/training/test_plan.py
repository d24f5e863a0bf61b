"""When a run saves and evaluates."""

import dataclasses

import pytest

from tests.tiny import tiny_config
from tood_jax.training.plan import Plan, make_plan


@pytest.mark.parametrize(
    ("plan", "saves"),
    [
        (Plan(epoch_steps=3, total_steps=9, eval_every=6, save_every=2), [2, 4, 6, 8, 9]),
        (Plan(epoch_steps=3, total_steps=12, eval_every=4, save_every=5), [4, 5, 8, 10, 12]),
        (Plan(epoch_steps=3, total_steps=6, eval_every=0, save_every=100), [6]),
    ],
)
def test_it_saves_every_so_often_and_before_each_evaluation(plan, saves):
    step, found = 0, []
    while step < plan.total_steps:
        step = plan.next_save(step)
        found.append(step)
    assert found == saves
    assert {step for step in range(1, plan.total_steps + 1) if plan.evaluates_at(step)} <= set(found)
    assert [plan.next_save(step) for step in range(plan.total_steps)] == [
        min(save for save in saves if save > step) for step in range(plan.total_steps)
    ]


def test_evaluations():
    plan = Plan(epoch_steps=3, total_steps=9, eval_every=6, save_every=2)
    assert [step for step in range(10) if plan.evaluates_at(step)] == [6, 9]


def test_a_plan_from_a_config(tmp_path):
    config = tiny_config(tmp_path, tmp_path)
    assert make_plan(config, 12) == Plan(epoch_steps=3, total_steps=9, eval_every=6, save_every=2)
    at_the_end = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_every_epochs=0))
    assert make_plan(at_the_end, 12).eval_every == 0
