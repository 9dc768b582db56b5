"""The 3x3 convolution and its two gradients, each in the form that its platform is quickest in.

They are three primitives, because the form is chosen when a program is compiled for a platform,
and because each of the three is the derivative of the others: y is linear in x and in the kernel,

    y[b, h, w, k] = sum over i, j, c of x[b, h + i - pad, w + j - pad, c] kernel[i, j, c, k]

so forward and reverse derivatives of any order, and `jax.vmap`, follow from three rules. The forms
of a CPU are in `unet_jax.cpu_convolution`, that of a TPU in `unet_jax.forms`; elsewhere XLA's own
convolution is lowered, as if this file were not there.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float

from unet_jax import cpu_convolution, forms

Form = Callable[..., Array]
Settings = dict[str, Any]


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "3 3 c k"],
    strides: Any,
    padding: Any,
    *,
    precision: Any,
    **options: Any,
) -> Float[Array, "b h2 w2 k"]:
    """Return the convolution; `nnx.Conv` takes it as its `conv_general_dilated`.

    Args:
        strides, padding, options: as in `jax.lax.conv_general_dilated`. With any but stride 1 and
            the same number of zeros, 0 or 1, on all sides it is `unet_jax.forms.convolve`.
        precision: as in `jax.lax.Precision`.
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    zeros = {zeros for sides in padding for zeros in sides}
    if tuple(strides) != (1, 1) or zeros not in ({0}, {1}):
        return forms.convolve(x, kernel, strides, padding, precision=precision, **options)
    settings: Settings = {"pad": zeros.pop(), "precision": lax.Precision(precision)}
    forced = forms.find_forced("convolve")
    if forced is not None:
        return {"cpu": _convolve_directly, "tpu": _convolve_on_tpu}[forced](x, kernel, **settings)
    return _convolve.bind(x, kernel, **settings)


def _convolve_directly(x: Array, kernel: Array, *, pad: int, precision: Any) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _convolve_on_tpu(x: Array, kernel: Array, *, pad: int, precision: Any) -> Array:
    return forms.convolve_folded(
        x,
        kernel,
        strides=(1, 1),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _derive_input_gradient(convolve: Form) -> Form:
    """Return the gradient by x as JAX derives it from a form of the convolution."""

    def input_gradient(g: Array, kernel: Array, *, pad: int, precision: Any) -> Array:
        b, h, w, _ = g.shape
        x = jax.ShapeDtypeStruct((b, h + 2 - 2 * pad, w + 2 - 2 * pad, kernel.shape[2]), g.dtype)
        of_x = partial(convolve, kernel=kernel, pad=pad, precision=precision)
        return jax.linear_transpose(of_x, x)(g)[0]

    return input_gradient


def _derive_kernel_gradient(convolve: Form) -> Form:
    """Return the gradient by the kernel as JAX derives it from a form of the convolution."""

    def kernel_gradient(x: Array, g: Array, *, pad: int, precision: Any) -> Array:
        kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], g.shape[3]), x.dtype)
        of_kernel = partial(convolve, x, pad=pad, precision=precision)
        return jax.linear_transpose(of_kernel, kernel)(g)[0]

    return kernel_gradient


def _define(name: str, direct: Form, *, on_cpu: Form, on_tpu: Form) -> Primitive:
    """Return a primitive that computes `direct`, and what is quicker on a CPU or a TPU."""
    primitive = Primitive(name)

    @cache
    def compile_eagerly(pad: int, precision: Any) -> Callable[..., Array]:
        return jax.jit(partial(primitive.bind, pad=pad, precision=precision))

    def lower_on_cpu(ctx: Any, *operands: Any, **settings: Any) -> Any:
        # arrays that are spread over devices are left to XLA's partitioner, which knows how to
        # exchange the rows of its own convolution
        devices = getattr(ctx.module_context.axis_context, "num_devices", None)
        form = on_cpu if devices == 1 else direct
        return mlir.lower_fun(form, multiple_results=False)(ctx, *operands, **settings)

    def infer(*operands: Any, **settings: Any) -> jax.core.ShapedArray:
        result = jax.eval_shape(partial(direct, **settings), *operands)
        return jax.core.ShapedArray(result.shape, result.dtype)

    def batch(operands: Any, axes: Any, **settings: Any) -> Any:
        return jax.vmap(partial(direct, **settings), axes)(*operands), 0

    primitive.def_impl(lambda *operands, **settings: compile_eagerly(**settings)(*operands))
    primitive.def_abstract_eval(infer)
    mlir.register_lowering(primitive, mlir.lower_fun(direct, multiple_results=False))
    mlir.register_lowering(primitive, lower_on_cpu, platform="cpu")
    mlir.register_lowering(
        primitive, mlir.lower_fun(on_tpu, multiple_results=False), platform="tpu"
    )
    batching.primitive_batchers[primitive] = batch
    return primitive


_convolve = _define(
    "convolve", _convolve_directly, on_cpu=cpu_convolution.convolve, on_tpu=_convolve_on_tpu
)
_input_gradient = _define(
    "input_gradient",
    _derive_input_gradient(_convolve_directly),
    on_cpu=cpu_convolution.input_gradient,
    on_tpu=_derive_input_gradient(_convolve_on_tpu),
)
_kernel_gradient = _define(
    "kernel_gradient",
    _derive_kernel_gradient(_convolve_directly),
    on_cpu=cpu_convolution.kernel_gradient,
    on_tpu=_derive_kernel_gradient(_convolve_on_tpu),
)
# of z = f(a, b) and a cotangent of z: the cotangents of a, and of b
ad.defbilinear(
    _convolve,
    lambda z, _, kernel, **settings: _input_gradient.bind(z, kernel, **settings),
    lambda z, x, _, **settings: _kernel_gradient.bind(x, z, **settings),
)
ad.defbilinear(
    _input_gradient,
    lambda z, _, kernel, **settings: _convolve.bind(z, kernel, **settings),
    lambda z, g, _, **settings: _kernel_gradient.bind(z, g, **settings),
)
ad.defbilinear(
    _kernel_gradient,
    lambda z, _, g, **settings: _input_gradient.bind(g, z, **settings),
    lambda z, x, _, **settings: _convolve.bind(x, z, **settings),
)
