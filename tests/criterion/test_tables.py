"""Each choice of the config has its entry in the table that implements it, and the other way round."""

from typing import get_args, get_type_hints

import pytest

from tood_jax.config import AssignerConfig, LossConfig, OptimizerConfig
from tood_jax.criterion.assign import ASSIGNERS
from tood_jax.criterion.losses import BOX_LOSSES, CLS_LOSSES
from tood_jax.training.optimizer import OPTIMIZERS


@pytest.mark.parametrize(
    ("group", "field", "table"),
    [
        (AssignerConfig, "kind", ASSIGNERS),
        (LossConfig, "cls", CLS_LOSSES),
        (LossConfig, "box", BOX_LOSSES),
        (OptimizerConfig, "kind", OPTIMIZERS),
    ],
)
def test_the_config_and_the_table_have_the_same_names(group, field, table):
    assert set(get_args(get_type_hints(group)[field])) == set(table)
