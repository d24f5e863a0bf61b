"""Freed memory is kept for the next step where the computing is done by CPUs, and nowhere else."""

import os
import subprocess
import sys

import pytest

from tood_jax.cli import host_memory

STEP = """
import time
import jax, jax.numpy as jnp, psutil
x = jnp.arange(2**24, dtype=jnp.float32)
step = jax.jit(lambda x: jnp.sort(jnp.sin(x)).sum()).lower(x).compile()
before = psutil.Process().memory_info().rss
for _ in range(2):
    step(x).block_until_ready()
time.sleep(1)  # temporaries are freed a little after the result is there
print(psutil.Process().memory_info().rss - before)
"""
KEEPING = "from tood_jax.cli.host_memory import keep_freed_memory\nassert keep_freed_memory()\n"


def kept_after_a_step(program):
    """MiB that a process has more after a step than before it; the step's temporaries are 64 MiB."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout) / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_leaves_its_memory_for_the_next():
    assert kept_after_a_step(STEP) < 32
    assert kept_after_a_step(KEEPING + STEP) > 60


@pytest.mark.parametrize(
    ("platforms", "installed", "kept"),
    [
        ("cpu", "jax_plugins", True),
        ("", "", True),
        ("", "jax_plugins", False),
        ("", "libtpu", False),
        ("cuda,cpu", "", False),
    ],
)
def test_only_where_there_are_but_cpus(monkeypatch, platforms, installed, kept):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", lambda name: name == installed)
    asked = []
    monkeypatch.setattr(host_memory, "_tell_malloc", lambda: asked.append(True) or True)
    assert host_memory.keep_freed_memory() is kept
    assert bool(asked) is kept


def test_not_with_another_c_library(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(host_memory.platform, "libc_ver", lambda: ("", ""))
    assert not host_memory.keep_freed_memory()
