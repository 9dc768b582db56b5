"""Four nets that are no U-Nets, each in PyTorch and in JAX, and bugs for the JAX side."""
