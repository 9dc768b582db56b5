"""Training in JAX: one jit-compiled step, on CPU, GPU and TPU. It runs from a checkout."""
