"""Load the peers that use PyTorch, which is imported only here and in their own modules."""

import importlib.util
from types import ModuleType

import jax

from benchmarks.peers.protocol import Peer

INSTALL_TORCH = "pip install torch==2.13.0"


def load_plain_torch(advice: str = INSTALL_TORCH) -> ModuleType:
    """Return the module `plain_torch_peer`, set to the device that JAX uses.

    Args:
        advice: what to do where PyTorch is not installed.

    Raises:
        SystemExit: PyTorch is not installed.
    """
    try:
        from benchmarks.peers import plain_torch_peer, torch_runtime
    except ImportError as error:
        raise SystemExit(f"The peer needs PyTorch: {advice} ({error}).") from None
    torch_runtime.use_device("cuda" if jax.default_backend() == "gpu" else "cpu")
    return plain_torch_peer


def load_torch_peers() -> dict[str, Peer]:
    """Return the installed peers that use PyTorch, by name.

    Raises:
        SystemExit: PyTorch is not installed.
    """
    plain_torch = load_plain_torch()
    peers: list[Peer] = [plain_torch.PlainTorchPeer(is_compiled=False), plain_torch.PlainTorchPeer(is_compiled=True)]
    if importlib.util.find_spec("mmdet"):
        from benchmarks.peers.mmdetection_peer import MMDetectionPeer

        peers.append(MMDetectionPeer())
    if importlib.util.find_spec("ultralytics"):
        from benchmarks.peers.ultralytics_peer import UltralyticsPeer

        peers.append(UltralyticsPeer())
    return {peer.name: peer for peer in peers}
