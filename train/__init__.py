"""Training in JAX: one jit-compiled step, on CPU, GPU and TPU. It is imported as `unet_train`."""
