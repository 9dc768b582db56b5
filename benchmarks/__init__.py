"""Scripts that make the figures of README and docs; `results/` keeps them with their hardware."""
