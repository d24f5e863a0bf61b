"""Device, tensors and waiting for all peers that use PyTorch. Imports torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def use_device(device: str) -> None:
    """Make tensors on `device`, "cpu" or "cuda", from now on."""
    torch.set_default_device(device)


def is_on_gpu() -> bool:
    return torch.get_default_device().type == "cuda"


def peak_device_bytes() -> int | None:
    """Return the most that PyTorch allocated on its GPU since the last call; None on a CPU."""
    if not is_on_gpu():
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def synchronized(run: Callable[[], Any]) -> Callable[[], None]:
    """Return a function that runs `run` and waits for the device."""

    def run_and_wait() -> None:
        run()
        if is_on_gpu():
            torch.cuda.synchronize()

    return run_and_wait


def to_tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor of the same layout on the default device."""
    return torch.from_numpy(np.array(array)).to(torch.get_default_device())


def to_nchw(array: Any) -> Tensor:
    """Return a map NHWC as a tensor NCHW of the same type, bfloat16 included."""
    dtype = getattr(torch, str(array.dtype))
    tensor = torch.from_numpy(np.array(array, np.float32)).to(torch.get_default_device(), dtype)
    return tensor.movedim(-1, 1).contiguous()
