"""TPU's own compiler, which needs no TPU, exchanges rows between neighbours and nothing larger."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from benchmarks.sharding_tpu import Collective, explain_others, list_collectives, make_config

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the wheel libtpu, which is TPU's compiler, is not installed",
)

SMALL = ["--widths", "8", "16", "--crop-px", "64"]
# Flax's own up-convolution, which convolves a dilated input
TRANSPOSED = """
import runpy
from flax import nnx
import unet_jax.layers

def transposed(in_channels, out_channels, numerics, rngs):
    return nnx.ConvTranspose(
        in_channels, out_channels, (2, 2), strides=(2, 2), padding="VALID", dtype=numerics.dtype,
        rngs=rngs,
    )

unet_jax.layers.UpConv = transposed
runpy.run_module("benchmarks.sharding_tpu", run_name="__main__")
"""


def compiled(out, *command):
    """What the script writes of a small net, in a process of its own, whose JAX has no devices."""
    without = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    ended = subprocess.run(
        [sys.executable, *command, *SMALL, "--out", str(out)],
        env={name: value for name, value in os.environ.items() if name not in without},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(out.read_text())


@needs_compiler
def test_rows_over_chips_exchange_halos_and_sums_alone(tmp_path):
    result = compiled(tmp_path / "small.json", "-m", "benchmarks.sharding_tpu")
    assert result["other_than_halos_and_sums"] == []
    assert set(result["collectives"]) == {"all-reduce", "collective-permute"}
    assert result["largest_halo_rows"] == 1


@needs_compiler
def test_an_up_convolution_that_moves_whole_parts_of_maps_is_seen(tmp_path):
    result = compiled(tmp_path / "transposed.json", "-c", TRANSPOSED)
    # all the rows that a chip has of a map as large as the image
    assert result["largest_halo_rows"] == 64 // 4
    assert "collective-permute of (1, 16, 64, 8)" in result["other_than_halos_and_sums"]


HALO = "(bf16[1,1,64,8]{3,2,1,0:T(8,128)}, bf16[1,1,64,8]{3,2,1,0}, u32[]{:S(2)}, u32[]) "


@pytest.mark.parametrize(
    ("operation", "others"),
    [
        (f"{HALO} collective-permute-start(%x)", []),
        ("(f32[8]{0:T(128)}, bf16[3,3,8,16]{3,2,1,0}, f32[], s32[2,2]) all-reduce(%x, %y)", []),
        ("f32[8]{0} multiply(%x, %x)", []),
        ("bf16[1,2,64,8]{3,2,1,0} collective-permute(%x)", ["collective-permute of (1, 2, 64, 8)"]),
        ("f32[8,16]{1,0} all-reduce(%x)", []),
        ("bf16[3,24,8,8,16]{4,3,2,1,0} all-reduce(%x)", []),
        ("bf16[1,64,64,8]{3,2,1,0} all-reduce(%x)", ["all-reduce of (1, 64, 64, 8)"]),
        ("bf16[4,16,4,128]{3,2,1,0} all-reduce(%x)", ["all-reduce of (4, 16, 4, 128)"]),
        ("bf16[1,32,32,8]{3,2,1,0} all-gather(%x)", ["all-gather of (1, 32, 32, 8)"]),
        ("f32[8]{0} all-gather(%x)", ["all-gather of (8,)"]),
    ],
    ids=lambda value: value.split("(%")[0].split()[-1] if isinstance(value, str) else "",
)
def test_what_is_neither_a_halo_nor_a_sum_is_named(operation, others):
    collectives = list_collectives(f"  %name.1 = {operation}, channel_id=1")
    assert len(collectives) == ("multiply" not in operation)
    assert explain_others(make_config((8, 16), 64), collectives) == others


def test_bytes_are_those_that_a_chip_sends():
    (halo,) = list_collectives(f"%name.1 = {HALO} collective-permute-start(%x)")
    assert halo == Collective("collective-permute", (("bf16", (1, 1, 64, 8)),))
    assert halo.bytes == 2 * 64 * 8
    (sums,) = list_collectives("%name.1 = (f32[8]{0}, bf16[3,3,8,16], s32[]) all-reduce(%x)")
    assert sums.bytes == 4 * 8 + 2 * 9 * 8 * 16 + 4
