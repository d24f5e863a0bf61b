"""Our network and a PyTorch peer on the same weights and batches, and every number that differs.

sides        what a side of the comparison answers: maps, losses, gradients, detections, trajectories
ours         that side in JAX          plain_torch, mmdetection   that side in PyTorch
inputs       weights and batches       differences, tables        measuring and printing
double       this package in float64
"""
