"""What two processes do in test_two_processes.py, by the name of a function here; nothing is compiled."""

import contextlib
import functools
import sys
import time
from pathlib import Path

import jax
import numpy as np
import tensorstore
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tood_jax.checkpoint.store import CheckpointStore
from tood_jax.cli.common import report_errors
from tood_jax.data.loader import DataCounts
from tood_jax.distributed import host_sync
from tood_jax.distributed.data_counts import sum_over_processes
from tood_jax.distributed.host_sync import broadcast_json, gather_json, is_primary, run_on_primary
from tood_jax.distributed.process_group import join
from tood_jax.distributed.signals import StopRequest
from tood_jax.training.consistency import check_same_everywhere
from tood_jax.training.folder_lock import hold_folder


def print_keys():
    """Print how many of our keys the store has when all processes are here."""
    gather_json(None)
    print(f"keys {len(host_sync.store().key_value_dir_get('tood_jax/'))}", flush=True)
    gather_json(None)


def exchange(folder):
    """Prints the keys after 10 and after 60 exchanges of each kind."""
    for count in range(60):
        assert broadcast_json(functools.partial(int, count)) == count
        assert gather_json([count, jax.process_index()]) == [[count, 0], [count, 1]]
        run_on_primary(list)
        assert sum_over_processes(DataCounts()).summary() == ""
        with contextlib.suppress(OSError):
            broadcast_json(functools.partial(open, folder))
        check_same_everywhere({"same": count})
        if count in (10, 59):
            print_keys()


def make_state(step):
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), ("data",)), PartitionSpec("data"))
    return {"w": jax.make_array_from_callback((2,), sharding, np.full(2, step, np.float32).__getitem__)}


def save(folder):
    """Print the keys after 4 and after 24 saves, each with metrics added later."""
    with CheckpointStore(folder, 2) as store:
        for step in range(1, 25):
            assert store.save(step, make_state(step), {})
            store.wait()
            assert store.holds(step, evaluated=False)
            assert store.save(step, make_state(step), {}, {"AP": 0.5})
            assert store.latest_step() == store.best_step() == step
            if step in (4, 24):
                print_keys()


def fail_to_save(folder):
    """Print the keys after 3 and after 23 saves that fail in the second process."""
    genuine = tensorstore.open

    async def fail(*arguments, **options):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [os_error_code='28']")

    with CheckpointStore(folder, 2) as store:
        assert store.save(1, make_state(1), {})
        store.wait()
        for step in range(2, 25):
            tensorstore.open = genuine if is_primary() else fail
            store.save(step, make_state(step), {})
            store.wait()
            tensorstore.open = genuine
            assert store.steps() == [1]
            if step in (4, 24):
                print_keys()


def disagree(folder):
    check_same_everywhere({"same": 1, "data.train": f"{12 - 4 * jax.process_index()} images"})


def share(folder):
    with hold_folder(folder):
        raise AssertionError("it is held")


def hang(folder):
    """The second process never comes; the first waits for it."""
    with StopRequest(has_peers=True):
        print("waiting", flush=True)
        if is_primary():
            gather_json(None)
        time.sleep(600)


if __name__ == "__main__":
    with report_errors("two"):
        join()
        globals()[sys.argv[1]](Path(sys.argv[2]))
