"""Agreement of all processes on the reason to stop, at the same point of the program.

A signal reaches one process at one moment, but all must stop after the same step. So each process, before each step,
puts its own reason into an array with one element per device, and the devices take the maximum: a program of its own
with one all-reduce of four bytes, dispatched like the step and read together with the step's numbers. (JAX's
`reached_preemption_sync_point` knows SIGTERM only.) In a run of one process no device is used.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tood_jax.distributed.sharding import replicated


class StopVote:
    """Maximum of a number over the processes whose devices make up the mesh.

    Attributes:
        is_alone: there is one process, so its number needs no vote.
        maximum: the program, [devices] int32 to [] int32.
    """

    def __init__(self, mesh: Mesh):
        self.is_alone = len({device.process_index for device in mesh.devices.flat}) == 1
        self._size = mesh.size
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self.maximum = jax.jit(jnp.max, in_shardings=self._sharding, out_shardings=replicated(mesh))

    def propose(self, number: int) -> jax.Array:
        """Return the largest of all processes' numbers, [] int32, without waiting; every process must call it."""
        own = np.full(1, number, np.int32)
        votes = jax.make_array_from_callback((self._size,), self._sharding, lambda index: own)
        return self.maximum(votes)

    def decide(self, number: int) -> int:
        """Return the result of `propose`, waiting for it; the number itself in a run of one process."""
        return number if self.is_alone else int(self.propose(number))
