"""TOOD in plain PyTorch, with mmdetection's parameter names: the peer of `compare_torch.py`.

It is written for reading, not for speed: loops over images and objects, no JAX, only `torch` (2.6 or newer).
"""
