"""What does XLA's compiler for NVIDIA GPUs make of the net's convolutions? No GPU is needed.

`python -m benchmarks.gpu_program` compiles the programs of `benchmarks.tpu_forms` for an H100 and
counts convolutions by cuDNN's function and the layout of their maps, those that are no call of
cuDNN, and the operations that put a whole feature map into another layout. The pixel shuffles of
the up-convolutions are counted apart: in them channels stay together. It takes a minute, with the
wheels of pip install 'unet-twins[plan-gpu]'.
"""

import math
import os
import re
from collections import Counter
from functools import partial
from importlib.metadata import version
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from benchmarks.script import RESULTS, parse_arguments, write_result
from benchmarks.tpu_forms import IMAGES, PROGRAMS, SIZE_PX, list_arguments
from unet_plan import compiler
from unet_plan.topology import parse_topology
from unet_spec import InputError, UNetConfig

RESULT = RESULTS / "gpu_program.json"
CHIP = "h100"
CHANNELS_LAST = "b01f"
"""XLA's name for a map with axes batch, height, width, channels, in this order in memory."""


def compile_program(name: str) -> str:
    """Return the text of a compiled program of `PROGRAMS`."""
    run, config = PROGRAMS[name]
    (device,) = compiler.list_devices(parse_topology(f"{CHIP}:1"))
    lowered = jax.jit(partial(run, config)).lower(*list_arguments(config, device))
    with compiler.quiet_stderr():
        text = lowered.compile(compiler_options=compiler.OPTIONS["gpu"]).as_text()
    assert text is not None
    return text


def read_convolutions(text: str, config: UNetConfig) -> dict[str, Any]:
    """Return what the program does with feature maps."""
    calls: Counter[str] = Counter()
    others: list[str] = []
    moved: list[str] = []
    shuffles = 0
    for line in text.splitlines():
        match = re.match(r"\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][a-z-]+)\(", line)
        if match is None:
            continue
        name, shape, kind = match.groups()
        if target := re.search(r'custom_call_target="(__cudnn\$conv\w+)"', line):
            labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line)
            assert labels is not None
            is_last = labels[1] == labels[3] == CHANNELS_LAST
            layout = "channels last" if is_last else "another layout"
            calls[f"{target[1].removeprefix('__cudnn$')}, {layout}"] += 1
        elif kind == "convolution":
            others.append(name)
        elif kind in ("transpose", "copy") and _is_map(shape, config):
            order = re.search(r"dimensions={([\d,]+)}", line)
            axes = [int(axis) for axis in order[1].split(",")] if order else []
            if axes and axes[-1] == len(axes) - 1:
                shuffles += 1
            else:
                moved.append(f"{kind} {shape}")
    return {
        "cudnn": dict(sorted(calls.items())),
        "no_cudnn": others,
        "moved_maps": moved,
        "pixel_shuffles": shuffles,
    }


def _is_map(shape: str, config: UNetConfig) -> bool:
    """Tell whether an array has as many values as a feature map, and the images as an axis."""
    found = re.search(r"\[([\d,]+)\]", shape)
    lengths = [int(length) for length in found[1].split(",")] if found else []
    deepest = SIZE_PX >> (len(config.widths) - 1)
    return IMAGES in lengths and math.prod(lengths) >= IMAGES * deepest**2 * config.widths[-1]


def main() -> None:
    out = parse_arguments(__doc__, result=RESULT).out
    compiler.prepare_jax()
    programs = {}
    for name, (_, config) in PROGRAMS.items():
        try:
            text = compile_program(name)
        except InputError as error:  # the wheels are not installed
            raise SystemExit(str(error)) from None
        programs[name] = read_convolutions(text, config)
        print(name, programs[name], flush=True)
    result = {
        "command": "python -m benchmarks.gpu_program",
        "what": f"compiled for {CHIP} without a GPU; algorithms are chosen on the device",
        "problem": f"{IMAGES} images of {SIZE_PX}x{SIZE_PX}, base 64, bfloat16",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "jax-cuda12-plugin")},
        "programs": programs,
    }
    write_result(out, result)


if __name__ == "__main__":
    main()
