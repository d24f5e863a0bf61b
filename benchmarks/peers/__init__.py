"""The implementations that are compared: tood_jax, plain PyTorch, mmdetection and Ultralytics, behind one protocol."""
