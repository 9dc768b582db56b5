"""Timings and rounding, measured; `results/` keeps the figures with their hardware."""
