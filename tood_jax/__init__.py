"""TOOD, task-aligned one-stage object detection, in JAX and Flax."""
