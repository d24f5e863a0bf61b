"""A number that all processes know at the same point of the program, though only one of them may have had it.

A signal reaches one process at one moment, but all must stop after the same step. So each of them, before each step,
puts its own number into an array with one element a device and lets the devices take the maximum: a program of its own
with one all-reduce of four bytes, dispatched like the step and read together with the step's numbers. (JAX's
`reached_preemption_sync_point` knows SIGTERM only.) A run of one process asks no device.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tood_jax.training.sharding import replicated


class Agreement:
    """Over the processes whose devices make up the mesh."""

    def __init__(self, mesh: Mesh):
        self.alone = len({device.process_index for device in mesh.devices.flat}) == 1
        self._size = mesh.size
        self._spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._maximum = jax.jit(jnp.max, in_shardings=self._spread, out_shardings=replicated(mesh))

    def propose(self, number: int) -> jax.Array:
        """The largest of all processes' numbers, [] int32; every process must call it, and nothing is waited for."""
        own = np.full(1, number, np.int32)
        votes = jax.make_array_from_callback((self._size,), self._spread, lambda index: own)
        return self._maximum(votes)

    def largest(self, number: int) -> int:
        """`propose`, waited for; the number itself in a run of one process."""
        return number if self.alone else int(self.propose(number))
