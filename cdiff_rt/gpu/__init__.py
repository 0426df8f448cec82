"""The loop on a device: torch tensors in static buffers, one fused kernel, one CUDA graph. Imports torch."""
