"""Denoisers that others made: modules of PyTorch, networks of diffusers, ONNX files."""
