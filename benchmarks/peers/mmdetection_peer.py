"""mmdetection's TOOD as a peer. Imports torch; mmdetection is imported when it is used."""

from collections.abc import Callable

from benchmarks.peers.inputs import PeerInputs
from benchmarks.peers.protocol import INFERENCE, TRAINING, Run, Workload
from benchmarks.peers.torch_network import inference_run, load_network, training_run
from benchmarks.peers.torch_runtime import peak_device_bytes, synchronized
from tood_jax.tools.compare_torch.mmdetection import MMDetection
from tood_jax.tools.compare_torch.torch_implementation import TorchImplementation


class MMDetectionPeer:
    """A `Peer` that implements whole steps."""

    name = "mmdetection"

    def workloads(self, inputs: PeerInputs) -> dict[str, Callable[[], Workload]]:
        def prepare(make_run: Callable[[TorchImplementation, PeerInputs], Run]) -> Workload:
            network = MMDetection(inputs.config, inputs.classes)
            return Workload(synchronized(make_run(load_network(self.name, network, inputs), inputs)))

        return {TRAINING: lambda: prepare(training_run), INFERENCE: lambda: prepare(inference_run)}

    def peak_device_bytes(self, workload: Workload) -> int | None:
        return peak_device_bytes()
