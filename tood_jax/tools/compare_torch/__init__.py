"""Compare this package's network with a PyTorch peer on the same weights and batches.

implementation         the interface of both: maps, losses, gradients, detections, trajectories
jax_implementation     this package       torch_implementation, mmdetection   the PyTorch peers
torch_reference        TOOD in plain PyTorch
inputs                 weights and batches       differences, tables   measuring and printing
"""
