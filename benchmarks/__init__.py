"""Scripts that make the figures of README and docs; `results/` keeps them with their hardware."""

from unet_spec.environment import leave_out_accelerators

# before JAX is imported, as the command `unet` does it
leave_out_accelerators()
