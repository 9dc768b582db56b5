"""Any two implementations of one net: a torch module, and its port to JAX."""
