"""Which options a compiler is given."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tood_jax.config import Config
from tood_jax.distributed import compiler_options

MESH = Mesh(np.asarray(jax.devices()[:1]), ("data",))


def with_options(*options):
    return dataclasses.replace(Config(), train=dataclasses.replace(Config().train, compiler_options=options))


@pytest.mark.parametrize("options", [(), ("xla_a_flag=1", "xla_another=true")])
def test_where_we_choose_nothing_the_users_stay(monkeypatch, options):
    monkeypatch.delitem(compiler_options.DEFAULT_OPTIONS, jax.default_backend(), raising=False)
    config = with_options(*options)
    assert compiler_options.compiler_options(config, MESH) == config.compiler_options


def test_ours_stand_behind_the_users_and_unknown_ones_are_left_out(monkeypatch):
    ours = {"xla_cpu_enable_fast_math": False, "xla_backend_optimization_level": "1", "xla_of_another_version": "false"}
    monkeypatch.setitem(compiler_options.DEFAULT_OPTIONS, jax.default_backend(), ours)
    found = compiler_options.compiler_options(with_options("xla_backend_optimization_level=2"), MESH)
    assert found == {"xla_cpu_enable_fast_math": False, "xla_backend_optimization_level": "2"}


def test_a_value_that_the_compiler_refuses_is_no_unknown_option(monkeypatch):
    monkeypatch.setitem(
        compiler_options.DEFAULT_OPTIONS, jax.default_backend(), {"xla_cpu_enable_fast_math": "perhaps"}
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="perhaps"):
        compiler_options.compiler_options(Config(), MESH)
