"""How far two sides may be apart: plain numbers, which need no framework."""

OUTPUT_BOUND = 1e-12
"""Outputs and statistics in float64 may differ by this, relative to the largest value."""
GRADIENT_BOUND = 1e-10
"""Gradients in float64 may differ by this, likewise."""
# healthy modules stay within 3.4 by themselves (benchmarks/results/verdicts.json), but gradients of
# few values inherit all errors behind them, which can be small by chance in one framework: one
# ratio in 208 cases was 8.4
LOCAL_FACTOR = 8.0
GRADIENT_FACTOR = 32.0
# 66 healthy runs of 50 steps were at most 8e-11 apart: biases before batch norm, whose gradients
# are nothing but rounding, which Adam scales up; without such biases at most 9e-16
TRAINING_BOUND = 1e-9
