"""How quick is each form of the 3x3 convolution on a CPU, beside XLA's own and PyTorch's?

`python -m benchmarks.cpu_forms` takes two minutes and writes `results/cpu_forms.json`, on which the
bounds of `unet_jax/cpu_convolution.py` rest. A row is one operation on one size; the forms take
turns. Speeds are 10^9 operations of the direct convolution per second.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from jax import lax

from benchmarks.script import RESULTS, parse_arguments, write_result
from unet_bench.environment import environment
from unet_bench.timing import Run, alternate
from unet_jax import convolution, cpu_convolution
from unet_spec.allocator import keep_freed_memory
from unet_spec.environment import versions
from unet_spec.xla_flags import prefer_eigen

RESULT = RESULTS / "cpu_forms.json"
# b, h and w, c, k: convolutions of base 64 and 16 at 1x256x256, of base 32 at 4x128x128, and of
# the preset `nuclei`
SIZES = (
    (1, 256, 64, 64),
    (1, 256, 128, 64),
    (1, 128, 128, 128),
    (1, 64, 256, 256),
    (1, 32, 512, 512),
    (1, 16, 1024, 1024),
    (1, 256, 16, 16),
    (1, 64, 64, 64),
    (4, 128, 32, 32),
    (4, 64, 64, 64),
    (4, 128, 24, 24),
    (4, 32, 96, 96),
)
SETTINGS: dict[str, Any] = {"pad": 1, "precision": lax.Precision.HIGHEST}
BUDGET_S = 1.5
Operation = tuple[str, dict[str, Callable[..., Any]], tuple[Any, ...], tuple[bool, bool]]


def operations(size: tuple[int, int, int, int]) -> Iterator[Operation]:
    """Yield a name, the forms, their operands, and which gradients torch computes for it."""
    b, side, c, k = size
    rng = np.random.default_rng(0)
    shapes = ((b, side, side, c), (3, 3, c, k), (b, side, side, k))
    x, kernel, g = (jax.numpy.asarray(rng.standard_normal(s, np.float32)) for s in shapes)
    direct = convolution._convolve_directly
    highest = lax.Precision.HIGHEST

    def winograd(x: Any, kernel: Any, *, pad: int, precision: Any) -> Any:
        kernels = cpu_convolution._transform_kernel(kernel)
        return cpu_convolution._winograd(x, kernels, pad, precision, contract=0)

    def winograd_turned(g: Any, kernel: Any, *, pad: int, precision: Any) -> Any:
        kernels = cpu_convolution._transform_kernel(kernel[::-1, ::-1])
        return cpu_convolution._winograd(g, kernels, 2 - pad, precision, contract=1)

    def one_product(g: Any, kernel: Any, *, pad: int, precision: Any) -> Any:
        return cpu_convolution._one_product_of_kernel(g, kernel[::-1, ::-1], 2 - pad, precision)

    def of_kernel(form: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, g, **_: form(x, g, 1, highest)

    yield "output", {
        "XLA": direct, "Winograd": winograd, "ours": cpu_convolution.convolve,
    }, (x, kernel), (False, False)  # fmt: skip
    yield "input gradient", {
        "XLA": convolution._derive_input_gradient(direct), "Winograd": winograd_turned,
        "one product": one_product, "ours": cpu_convolution.input_gradient,
    }, (g, kernel), (True, False)  # fmt: skip
    yield "kernel gradient", {
        "XLA": convolution._derive_kernel_gradient(direct),
        "Winograd": of_kernel(cpu_convolution._kernel_gradient_by_winograd),
        "columns": of_kernel(cpu_convolution._kernel_gradient_by_columns),
        "ours": cpu_convolution.kernel_gradient,
    }, (x, g), (False, True)  # fmt: skip


def run_torch(size: tuple[int, int, int, int], gradients: tuple[bool, bool], kind: Any) -> Run:
    """Return torch's run of an operation, with tensors in a memory format."""
    b, side, c, k = size
    tensors = (
        torch.randn(b, c, side, side),
        torch.randn(k, c, 3, 3),
        torch.randn(b, k, side, side),
    )
    x, kernel, g = (tensor.contiguous(memory_format=kind) for tensor in tensors)
    if gradients == (False, False):
        return lambda: torch.nn.functional.conv2d(x, kernel, padding=1)
    backward: Any = torch.ops.aten.convolution_backward
    return lambda: backward(
        g, x, kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*gradients, False]
    )


def time_forms() -> Iterator[dict[str, Any]]:
    """Yield a row for each operation and size, with the speed of every form."""
    for size in SIZES:
        b, side, c, k = size
        gflop = 2 * 9 * b * side**2 * c * k / 1e9
        for name, forms, operands, gradients in operations(size):
            runs: dict[str, Run] = {
                "torch": run_torch(size, gradients, torch.contiguous_format),
                "torch channels_last": run_torch(size, gradients, torch.channels_last),
            }
            for form, function in forms.items():
                program = jax.jit(partial(function, **SETTINGS)).lower(*operands).compile()
                runs[form] = partial(program, *operands)
            times = alternate(runs, budget_s=BUDGET_S)
            yield {
                "operation": name,
                "size": {"b": b, "side": side, "c": c, "k": k},
                "gflops": {form: round(gflop / times.ms(form) * 1e3) for form in runs},
                "others_cores": times.others_cores,
            }


def main() -> None:
    out = parse_arguments(__doc__, result=RESULT).out
    allocator = keep_freed_memory()
    rows = []
    for row in time_forms():
        rows.append(row)
        print(row["operation"], *row["size"].values(), row["gflops"], flush=True)
    write_result(
        out,
        {
            "command": "python -m benchmarks.cpu_forms",
            "unit": "10^9 operations of the direct convolution per second, of the median time",
            "allocator": allocator.text,
            "versions": versions(),
            "environment": environment(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    prefer_eigen()
    main()
