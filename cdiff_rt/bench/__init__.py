"""How fast are the backends? Measured interleaved, each in its own process, told with machine and versions."""
