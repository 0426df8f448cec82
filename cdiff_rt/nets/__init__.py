"""The networks in PyTorch, for training, export and the eager backend: tensors in, tensors out, no files."""
