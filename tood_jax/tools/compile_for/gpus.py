"""Descriptions of NVIDIA GPUs for XLA's compiler, to compile for GPUs that this machine does not have.

The numbers are from NVIDIA's data sheets and the table of compute capabilities in the CUDA programming guide.
"""

from typing import NamedTuple


class Gpu(NamedTuple):
    """Properties that the compiler uses."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: float  # GHz
    memory: int  # bytes
    bandwidth: int  # bytes/s
    l2_cache: int  # bytes
    shared_memory: int  # bytes per multiprocessor


GPUS = {
    "a100": Gpu("NVIDIA A100", (8, 0), 108, 1.41, 80 * 10**9, 2039 * 10**9, 40 * 2**20, 164 * 2**10),
    "h100": Gpu("NVIDIA H100", (9, 0), 132, 1.98, 80 * 10**9, 3350 * 10**9, 50 * 2**20, 228 * 2**10),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 1.98, 141 * 10**9, 4800 * 10**9, 50 * 2**20, 228 * 2**10),
}


def target_config(gpu: Gpu) -> str:
    """Return the text of XLA's message `GpuTargetConfigProto`, with a version of cuDNN that JAX's wheels accept."""
    major, minor = gpu.capability
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024
          threads_per_warp: 32
          shared_memory_per_block: {48 * 2**10}
          shared_memory_per_block_optin: {gpu.shared_memory - 2**10}
          shared_memory_per_core: {gpu.shared_memory}
          threads_per_core_limit: 2048
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          core_count: {gpu.multiprocessors}
          fpus_per_core: {128 if major >= 9 else 64}
          block_dim_limit_x: {2**31 - 1}
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          memory_bandwidth: {gpu.bandwidth}
          l2_cache_size: {gpu.l2_cache}
          clock_rate_ghz: {gpu.clock}
          device_memory_size: {gpu.memory}
          cuda_compute_capability {{ major: {major} minor: {minor} }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
        device_description_str: "{gpu.name}"
    """
