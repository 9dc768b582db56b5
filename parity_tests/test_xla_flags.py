"""The flag that commands give to XLA is known to it, and a user's own choice stays."""

import os
import subprocess
import sys

import pytest

from unet_spec import xla_flags

PROGRAM = """
import os
from unet_spec.xla_flags import prefer_eigen
prefer_eigen()
import jax, jax.numpy as jnp
from jax import lax
def convolve(x):
    return lax.conv_general_dilated(x, jnp.ones((3, 3, 16, 16)), (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"))
text = jax.jit(convolve).lower(jnp.ones((1, 64, 64, 16))).compile().as_text()
print("ynn" in text, os.environ["XLA_FLAGS"])
"""


def run(flags: str) -> tuple[str, str]:
    """Return what a program with such flags prints, and its warnings."""
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    return process.stdout.strip(), process.stderr


def test_xla_knows_the_flag_and_says_nothing() -> None:
    flags = "--xla_force_host_platform_device_count=2"
    assert run(flags) == (f"False {flags} --{xla_flags.NAME}=", "")


def test_the_flag_of_a_user_stays() -> None:
    environment = {"XLA_FLAGS": f"--{xla_flags.NAME}=8"}
    xla_flags.prefer_eigen(environment)
    assert environment == {"XLA_FLAGS": f"--{xla_flags.NAME}=8"}


def test_it_is_given_once() -> None:
    environment: dict[str, str] = {}
    xla_flags.prefer_eigen(environment)
    xla_flags.prefer_eigen(environment)
    assert environment == {"XLA_FLAGS": f"--{xla_flags.NAME}="}


def test_another_jaxlib_gets_no_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_flags, "version", lambda _: "0.12.1")
    environment: dict[str, str] = {}
    xla_flags.prefer_eigen(environment)
    assert environment == {}
