"""Check of the shared memory through which worker processes pass batches: containers often have only 64 MB."""

import shutil
from pathlib import Path

from tood_jax.data.errors import DataError

_FOLDER = Path("/dev/shm")


def check_shared_memory(batch_bytes: int, workers: int, batches_per_worker: int) -> None:
    """Raise an error if the batches of the workers do not fit; a worker would be killed without a message (SIGBUS).

    Args:
        batch_bytes: size of this process's rows of the largest batch.
        workers: number of processes, each of which prefetches `batches_per_worker` batches.

    Raises:
        DataError: names the remedies.
    """
    try:
        free = shutil.disk_usage(_FOLDER).free
    except OSError:  # not Linux
        return
    needed = batch_bytes * workers * batches_per_worker
    if needed > free:
        raise DataError(
            f"{_FOLDER} has {free / 1e6:.0f} MB free, but {workers} data workers need {needed / 1e6:.0f} MB of shared "
            "memory for their batches: give the container more (docker run --shm-size=8g), lower data.workers or "
            "data.prefetch_batches, or decode in threads with data.workers=0."
        )
