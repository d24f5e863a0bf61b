"""TOOD in plain PyTorch, with mmdetection's parameter names: the peer that `compare_torch.py` compares ours with.

Written for reading, not for speed: loops over images and objects, no JAX, nothing but `torch` (2.6 or newer).
"""
