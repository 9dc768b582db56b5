"""A forward pass and a training step of one net, as something to time, in either framework."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from jax import Array

from unet_bench.timing import Run, compile_timed, planned_mb
from unet_jax.functional import functional
from unet_jax.layers import Numerics
from unet_parity.oracle import random_tensors
from unet_spec import UNetConfig, layout
from unet_torch.model import UNet as TorchUNet

PRECISION = "float32, products in float32 (JAX: precision=highest; torch: no TF32)"
VARIANTS = {"eager": torch.contiguous_format, "channels_last": torch.channels_last}
COMPILED = "compiled"
"""One more variant of torch: `torch.compile` of a model in channels_last."""
RATE = 1e-4
"""Of plain SGD: small, for the weights to stay what they are."""


@dataclass(frozen=True)
class Arithmetic:
    """In what both frameworks compute a net; its parameters and its loss stay float32.

    Attributes:
        dtype: of the activations; other than float32 it is torch's autocast.
        precision: of JAX's products, as in `jax.lax.Precision`.
        tf32: whether torch may compute float32 products in TF32.
        rounding: what both may differ by before anything is timed, of the largest value.
    """

    name: str
    dtype: str
    precision: str
    tf32: bool
    rounding: float


# float32 through 23 convolutions gives 1e-5
FLOAT32 = Arithmetic("float32", "float32", "highest", tf32=False, rounding=1e-4)
# 23 convolutions after one another, each of which rounds to 11 bits, and to 8 bits
TF32 = Arithmetic("TF32", "float32", "default", tf32=True, rounding=23 * 2.0**-11)
BFLOAT16 = Arithmetic("bfloat16", "bfloat16", "default", tf32=True, rounding=23 * 2.0**-8)


@dataclass(frozen=True)
class Problem:
    """A net, images with their labels, and where to compute; arrays in torch's layout."""

    config: UNetConfig
    size_px: int
    jax_device: jax.Device
    torch_device: torch.device | None
    batch: int = 1
    arithmetic: Arithmetic = FLOAT32

    @property
    def name(self) -> str:
        size = f"{self.size_px}x{self.size_px}, batch {self.batch}"
        return f"base {self.config.widths[0]}, {size}"

    def tensors(self) -> dict[str, np.ndarray]:
        return random_tensors(self.config, seed=0)

    def images(self) -> np.ndarray:
        shape = (self.batch, self.config.in_channels, self.size_px, self.size_px)
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    def labels(self) -> np.ndarray:
        shape = (self.batch, self.size_px, self.size_px)
        return np.random.default_rng(1).integers(0, self.config.classes, shape)


@dataclass(frozen=True)
class CompiledRun:
    """JAX's run.

    Attributes:
        compile_s: seconds to trace and compile it.
        peak_mb: its memory by XLA's plan (`unet_bench.timing.planned_mb`).
    """

    run: Run
    compile_s: float
    peak_mb: float | None


def devices() -> tuple[jax.Device, torch.device | None]:
    """Return JAX's first device, and the same one of torch: None where torch cannot use it."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return device, torch.device("cpu")
    if device.platform == "gpu" and torch.cuda.is_available():
        return device, torch.device("cuda")
    return device, None


def jax_forward(problem: Problem) -> CompiledRun:
    """Build a forward pass that gives the logits."""
    params, x = _jax_arrays(problem)
    program, seconds = compile_timed(jax.jit(_apply(problem)), params, x)
    return CompiledRun(lambda: program(params, x), seconds, planned_mb(program))


def jax_step(problem: Problem) -> CompiledRun:
    """Build a training step in donated buffers that gives the loss."""
    params, x = _jax_arrays(problem)
    labels = jax.device_put(problem.labels().astype(np.int32), problem.jax_device)
    apply = _apply(problem)

    def loss(params: Any, x: Array, labels: Array) -> Array:
        log = jax.nn.log_softmax(apply(params, x))
        return -(jax.nn.one_hot(labels, log.shape[-1]) * log).sum(-1).mean()

    def step(params: Any, x: Array, labels: Array) -> tuple[Any, Array]:
        value, gradients = jax.value_and_grad(loss)(params, x, labels)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradients), value

    program, seconds = compile_timed(jax.jit(step, donate_argnums=0), params, x, labels)

    def run() -> Array:
        nonlocal params
        params, value = program(params, x, labels)
        jax.block_until_ready(params)
        return value

    return CompiledRun(run, seconds, planned_mb(program))


def torch_forward(problem: Problem, variant: str) -> Run:
    """Build a forward pass that gives the logits."""
    model, x, _ = _torch_arrays(problem, variant)
    model.eval()

    def run() -> Any:
        with torch.inference_mode(), _autocast(problem):
            return model(x).float()

    return wait_for_device(run, problem.torch_device)


def torch_step(problem: Problem, variant: str) -> Run:
    """Build a training step that gives the loss."""
    model, x, labels = _torch_arrays(problem, variant)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def run() -> Any:
        optimizer.zero_grad()
        with _autocast(problem):
            loss = F.cross_entropy(model(x).float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return wait_for_device(run, problem.torch_device)


def explain_no_compiler(device: torch.device | None) -> str | None:
    """Return why `torch.compile` cannot be timed here, or None if it can.

    A function of one line is compiled for that: on a CPU torch then needs a C++ compiler and
    Python's headers, which not every machine has.
    """
    if device is None:
        return "torch cannot use this device"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: (x + 1).relu())(torch.zeros(8, device=device))
    except Exception as error:  # of any kind: each backend and each tool of it has its own
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        return f"it does not work here: {first[:200]}"
    return None


def wait_for_device(run: Run, device: torch.device | None) -> Run:
    """Add to a run the wait for an accelerator's result."""
    if device is None or device.type == "cpu":
        return run

    def run_and_wait() -> Any:
        result = run()
        torch.cuda.synchronize()
        return result

    return run_and_wait


@contextmanager
def torch_tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in torch's convolutions and products of float32 within the block.

    cuDNN's algorithms are chosen by their measured time meanwhile, as XLA chooses them too.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=allowed):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _apply(problem: Problem) -> Callable[..., Array]:
    arithmetic = problem.arithmetic
    numerics = Numerics(jnp.dtype(arithmetic.dtype), precision=arithmetic.precision)
    apply = functional(problem.config, numerics=numerics).apply
    return lambda params, x: apply(params, x).astype(jnp.float32)


def _autocast(problem: Problem) -> Any:
    """Return torch's context for an arithmetic other than float32; for float32 it does nothing."""
    dtype = getattr(torch, problem.arithmetic.dtype)
    assert problem.torch_device is not None
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(problem.torch_device.type, dtype=dtype)


def _jax_arrays(problem: Problem) -> tuple[dict[str, Array], Array]:
    """Return parameters and images, in buffers of their own: the parameters' are donated."""
    arrays = layout.to_jax(problem.config, problem.tensors())
    x = jnp.array(problem.images().transpose(0, 2, 3, 1), copy=True)
    owned = {name: jnp.array(array, copy=True) for name, array in arrays.items()}
    return jax.device_put(owned, problem.jax_device), jax.device_put(x, problem.jax_device)


def _torch_arrays(problem: Problem, variant: str) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Return model, images and labels."""
    kind = torch.channels_last if variant == COMPILED else VARIANTS[variant]
    model, device = TorchUNet(problem.config), problem.torch_device
    state = {name: torch.tensor(tensor) for name, tensor in problem.tensors().items()}
    model.load_state_dict(state, strict=True)
    x = torch.tensor(problem.images(), device=device).contiguous(memory_format=kind)
    labels = torch.tensor(problem.labels(), device=device)
    # mypy's stubs know no `to` of a module with memory_format alone
    model = model.to(device).to(memory_format=kind)  # type: ignore[call-overload]
    return torch.compile(model) if variant == COMPILED else model, x, labels
