"""The 3x3 convolution in each of its forms is the convolution, in integers to the last bit."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

from unet_jax import convolution, cpu_convolution

HIGHEST = lax.Precision.HIGHEST
# b, h, w, c, k: bands that do and do not divide the height, odd sides, a single pixel
SIZES = {
    "one band": (2, 7, 5, 3, 4),
    "bands divide the height": (1, 64, 160, 6, 5),
    "a last band of one row": (1, 65, 160, 5, 6),
    "a last band of fewer rows": (2, 90, 37, 4, 3),
    "one pixel": (1, 1, 1, 2, 3),
}
Form = Callable[..., Any]


def winograd(x: Any, kernel: Any, *, pad: int, precision: Any) -> Any:
    kernels = cpu_convolution._transform_kernel(kernel)
    return cpu_convolution._winograd(x, kernels, pad, precision, contract=0)


def output_by_one_product(x: Any, kernel: Any, *, pad: int, precision: Any) -> Any:
    return cpu_convolution._one_product_of_copies(x, kernel, pad, precision)


def input_gradient_by_winograd(g: Any, kernel: Any, *, pad: int, precision: Any) -> Any:
    kernels = cpu_convolution._transform_kernel(kernel[::-1, ::-1])
    return cpu_convolution._winograd(g, kernels, 2 - pad, precision, contract=1)


def input_gradient_by_one_product(g: Any, kernel: Any, *, pad: int, precision: Any) -> Any:
    turned = kernel[::-1, ::-1]
    return cpu_convolution._one_product_of_kernel(g, turned, 2 - pad, precision)


def kernel_gradient_by_winograd(x: Any, g: Any, *, pad: int, precision: Any) -> Any:
    return cpu_convolution._kernel_gradient_by_winograd(x, g, pad, precision)


def kernel_gradient_by_columns(x: Any, g: Any, *, pad: int, precision: Any) -> Any:
    return cpu_convolution._kernel_gradient_by_columns(x, g, pad, precision)


FORMS: dict[str, tuple[Form, str]] = {
    "one product of copies": (output_by_one_product, "output"),
    "winograd": (winograd, "output"),
    "input gradient by winograd": (input_gradient_by_winograd, "input gradient"),
    "input gradient by one product": (input_gradient_by_one_product, "input gradient"),
    "kernel gradient by winograd": (kernel_gradient_by_winograd, "kernel gradient"),
    "kernel gradient by columns": (kernel_gradient_by_columns, "kernel gradient"),
    "chosen output": (cpu_convolution.convolve, "output"),
    "chosen input gradient": (cpu_convolution.input_gradient, "input gradient"),
    "chosen kernel gradient": (cpu_convolution.kernel_gradient, "kernel gradient"),
}


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small maps be cut into bands, as large ones are."""
    monkeypatch.setattr(cpu_convolution, "LARGEST_BAND_PX", 64)
    monkeypatch.setattr(cpu_convolution, "SMALLEST_BAND_PX", 16)
    monkeypatch.setattr(
        cpu_convolution,
        "_count_rows",
        lambda size, _: 8 if size[0] * size[1] * size[2] > 64 else size[1] + size[1] % 2,
    )


def draw(size: tuple[int, ...], pad: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draw small integers: x (b, h, w, c), a kernel, and a gradient of the output."""
    b, h, w, c, k = size
    rng = np.random.default_rng(0)
    shapes = ((b, h, w, c), (3, 3, c, k), (b, h + 2 * pad - 2, w + 2 * pad - 2, k))
    x, kernel, g = (jnp.asarray(rng.integers(-3, 4, shape), jnp.float32) for shape in shapes)
    return x, kernel, g


def torch_answers(x: jax.Array, kernel: jax.Array, g: jax.Array, pad: int) -> dict[str, Any]:
    """Return output and gradients by torch, in float64."""

    def to_torch(array: jax.Array, *axes: int) -> torch.Tensor:
        return torch.tensor(np.asarray(array.transpose(*axes)), dtype=torch.float64)

    tx = to_torch(x, 0, 3, 1, 2).requires_grad_()
    tk = to_torch(kernel, 3, 2, 0, 1).requires_grad_()
    y = torch.nn.functional.conv2d(tx, tk, padding=pad)
    y.backward(to_torch(g, 0, 3, 1, 2))
    assert tx.grad is not None
    assert tk.grad is not None
    return {
        "output": y.detach().numpy().transpose(0, 2, 3, 1),
        "input gradient": tx.grad.numpy().transpose(0, 2, 3, 1),
        "kernel gradient": tk.grad.numpy().transpose(2, 3, 1, 0),
    }


@pytest.mark.parametrize("pad", [1, 0], ids=["same", "valid"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_integers_of_torch(form: str, size: str, pad: int) -> None:
    if size == "one pixel" and pad == 0:
        pytest.skip("a map of one pixel has no valid convolution")
    x, kernel, g = draw(SIZES[size], pad)
    function, what = FORMS[form]
    operands = {"output": (x, kernel), "input gradient": (g, kernel), "kernel gradient": (x, g)}
    result = jax.jit(partial(function, pad=pad, precision=HIGHEST))(*operands[what])
    np.testing.assert_array_equal(np.asarray(result), torch_answers(x, kernel, g, pad)[what])


# each is a slip of the pen in one place: what is written, what stands there instead
SLIPS = {
    "a tap off by one": (
        "kernel gradient by columns",
        "moved[:, :, 2 - j : width + 4 - j]",
        "moved[:, :, max(1, 2 - j) : width + 2 + max(1, 2 - j)]",
    ),
    "a band's edge row lost": (
        "kernel gradient by columns",
        "above, below = max(0, -first), max(0, first + height - x.shape[1])",
        "above, below = 2 * max(0, -first), max(0, first + height - x.shape[1])",
    ),
    "the last band left out": (
        "kernel gradient by columns",
        "for first in firsts:\n        if first not in inside:",
        "for first in firsts[:-1] or firsts:\n        if first not in inside:",
    ),
    "the first row of a winograd band lost": (
        "winograd",
        "_read_window(x, first - pad, 2 * rows + 2, pad, 2 * columns + 2)",
        "_read_window(x, first - pad + 1, 2 * rows + 2, pad, 2 * columns + 2)",
    ),
    "a copy in another's place": (
        "one product of copies",
        "for i in range(3) for j in range(3)]",
        "for j in range(3) for i in range(3)]",
    ),
    "a sign in the tiles": (
        "kernel gradient by winograd",
        "return a, a + b, a - b, -b",
        "return a, a + b, a - b, b",
    ),
    "a kernel that is not turned": (
        "chosen input gradient",
        "turned = kernel[::-1, ::-1]",
        "turned = kernel[::-1]",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_in_a_form_is_seen(slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form, before, after = SLIPS[slip]
    source = Path(cpu_convolution.__file__).read_text()
    assert before in source
    broken: dict[str, Any] = {"__name__": "broken"}
    exec(compile(source.replace(before, after), "broken", "exec"), broken)
    broken["_count_rows"] = cpu_convolution._count_rows
    for name in ("_winograd", "_transform_kernel", "_kernel_gradient_by_winograd",
                 "_kernel_gradient_by_columns", "_one_product_of_copies"):  # fmt: skip
        monkeypatch.setattr(cpu_convolution, name, broken[name])
    function, what = FORMS[form]
    if form.startswith("chosen"):
        function = broken[what.replace(" ", "_")]
    x, kernel, g = draw(SIZES["a last band of fewer rows"], 1)
    operands = {"output": (x, kernel), "input gradient": (g, kernel), "kernel gradient": (x, g)}
    result = np.asarray(function(*operands[what], pad=1, precision=HIGHEST))
    assert (result != torch_answers(x, kernel, g, 1)[what]).any()


LARGE = {
    "winograd": (1, 128, 128, 64, 64),
    "columns": (4, 64, 64, 24, 24),
    "one product": (1, 16, 16, 256, 256),
}


@pytest.mark.parametrize("size", LARGE)
def test_the_rule_takes_another_form_for_large_maps(size: str) -> None:
    x, kernel, g = draw(LARGE[size], 1)
    settings: Any = {"pad": 1, "precision": HIGHEST}
    differs = []
    for ours, direct, operands in (
        (cpu_convolution.convolve, convolution._convolve_directly, (x, kernel)),
        (
            cpu_convolution.input_gradient,
            convolution._derive_input_gradient(convolution._convolve_directly),
            (g, kernel),
        ),
        (
            cpu_convolution.kernel_gradient,
            convolution._derive_kernel_gradient(convolution._convolve_directly),
            (x, g),
        ),
    ):
        lowered = jax.jit(partial(ours, **settings)).lower(*operands).as_text()
        differs.append("convolution" not in lowered)
        np.testing.assert_array_equal(
            np.asarray(ours(*operands, **settings)), np.asarray(direct(*operands, **settings))
        )
    assert (
        differs
        == {
            "winograd": [True, True, True],
            "columns": [False, False, True],
            "one product": [False, True, True],
        }[size]
    )


def test_in_float64_no_convolution_is_left_to_xlas_loops() -> None:
    settings: Any = {"pad": 1, "precision": HIGHEST}
    with jax.enable_x64(True):
        x, kernel, g = (array.astype(jnp.float64) for array in draw((2, 32, 48, 16, 64), 1))
        answers = torch_answers(x, kernel, g, 1)
        for form, operands, what in (
            (cpu_convolution.convolve, (x, kernel), "output"),
            (cpu_convolution.input_gradient, (g, kernel), "input gradient"),
            (cpu_convolution.kernel_gradient, (x, g), "kernel gradient"),
        ):
            compute = jax.jit(partial(form, **settings))
            assert "convolution" not in compute.lower(*operands).as_text()
            np.testing.assert_array_equal(np.asarray(compute(*operands)), answers[what])


@pytest.mark.parametrize("of", ["x", "kernel"])
def test_derivatives_of_derivatives_are_those_of_xla(of: str) -> None:
    x, kernel, _ = draw((1, 6, 5, 2, 3), 1)

    def total(convolve: Any, value: Any) -> Any:
        pair = (value, kernel) if of == "x" else (x, value)
        return jnp.sum(convolve(*pair, (1, 1), ((1, 1), (1, 1)), precision="highest") ** 3)

    def plain(x: Any, kernel: Any, strides: Any, padding: Any, *, precision: Any) -> Any:
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision,
        )  # fmt: skip

    value = x if of == "x" else kernel
    ours, xla = partial(total, convolution.convolve), partial(total, plain)
    with jax.enable_x64(True):
        value, x, kernel = (array.astype(jnp.float64) for array in (value, x, kernel))
        for derive in (jax.grad, jax.jacfwd, lambda f: jax.jacfwd(jax.grad(f))):
            np.testing.assert_array_equal(np.asarray(derive(ours)(value)), derive(xla)(value))


def test_a_map_over_kernels_is_one_convolution_after_the_other() -> None:
    x, kernel, _ = draw((2, 6, 5, 2, 3), 1)
    kernels = jnp.stack([kernel, 2 * kernel])
    convolve = partial(
        convolution.convolve, strides=(1, 1), padding=((1, 1), (1, 1)), precision="highest"
    )
    together = jax.vmap(convolve, (None, 0))(x, kernels)
    for one, each in zip(together, kernels, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(convolve(x, each)))


def test_a_mesh_of_devices_gets_the_convolution_of_xla() -> None:
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "rows"))
    x, kernel, _ = draw(LARGE["winograd"], 1)
    convolve = jax.jit(
        partial(convolution.convolve, strides=(1, 1), padding=((1, 1), (1, 1)), precision="highest")
    )
    spread = convolve.lower(jax.device_put(x, rows), kernel)
    assert "stablehlo.convolution" in spread.as_text()
    assert "stablehlo.convolution" not in convolve.lower(x, kernel).as_text()
    compiled = str(spread.compile().as_text())
    assert "collective-permute" in compiled
    assert "all-gather" not in compiled
