"""The flag of XLA with which a net is quicker on a CPU."""

import os
from collections.abc import MutableMapping
from importlib.metadata import PackageNotFoundError, version

NAME = "xla_cpu_experimental_ynn_fusion_type"
KNOWN = ("0.10.",)
"""Versions of jaxlib that were tried: XLA ends a process that gives it a flag it does not know."""


def prefer_eigen(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have XLA compute convolutions and products on a CPU by Eigen, and not by YNN.

    It is called before JAX is first used. YNN runs a convolution of few channels on one core.
    Nothing is changed where the user has given this flag, or where jaxlib is another than those
    that were tried.

    >>> environment = {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=8"}
    >>> prefer_eigen(environment)
    >>> environment
    {'XLA_FLAGS': '--xla_cpu_experimental_ynn_fusion_type=8'}
    """
    flags = environment.get("XLA_FLAGS", "")
    try:
        is_known = version("jaxlib").startswith(KNOWN)
    except PackageNotFoundError:
        return
    if is_known and NAME not in flags:
        environment["XLA_FLAGS"] = f"{flags} --{NAME}=".strip()
