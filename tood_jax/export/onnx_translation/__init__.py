"""Translate a program of JAX into an ONNX graph of standard operators."""
