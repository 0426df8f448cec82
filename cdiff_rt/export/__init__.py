"""From PyTorch weights to a bundle: pad, store, trace, write the manifest, compare. Never imported by the runtime."""
