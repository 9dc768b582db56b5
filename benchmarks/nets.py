"""The same net with the same weights in both frameworks on one device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from jax import Array

from benchmarks.flops import forward_gflop
from benchmarks.timing import Run, Timings, alternate, compiled, planned_mb
from unet_jax.functional import functional
from unet_jax.layers import Numerics
from unet_parity.oracle import random_tensors
from unet_spec import UNetConfig, layout
from unet_torch.model import UNet as TorchUNet

PRECISION = "float32, products in float32 (JAX: precision=highest; torch: no TF32)"
VARIANTS = {"eager": torch.contiguous_format, "channels_last": torch.channels_last}
RATE = 1e-4
"""Of plain SGD: small, for the weights to stay what they are."""
LOSS_BOUND = 1e-4
"""Relative difference of both frameworks' first loss at most, before anything is timed."""


@dataclass(frozen=True)
class NetRow:
    """One net, JAX against one variant of torch; median times, JAX's over torch's.

    Attributes:
        gflops: 10^9 direct convolution operations per second of JAX's median time; a training
            step counts as three forward passes.
        share_of_peak: of the quickest float32 matrix product of the same run.
        compile_s: of JAX's program, without a cache.
        peak_mb: of JAX's program by XLA's plan (`benchmarks.timing.planned_mb`).
    """

    case: str
    torch_variant: str
    jax_ms: float
    torch_ms: float | None
    ratio: float | None
    gflops: float
    share_of_peak: float
    compile_s: float
    peak_mb: float | None


@dataclass(frozen=True)
class Problem:
    """A net, one image and its labels, in torch's layout, and where to compute."""

    config: UNetConfig
    size_px: int
    jax_device: jax.Device
    torch_device: torch.device | None

    @property
    def name(self) -> str:
        return f"base {self.config.widths[0]}, {self.size_px}x{self.size_px}, batch 1"

    def tensors(self) -> dict[str, np.ndarray]:
        return random_tensors(self.config, seed=0)

    def image(self) -> np.ndarray:
        shape = (1, self.config.in_channels, self.size_px, self.size_px)
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    def labels(self) -> np.ndarray:
        shape = (1, self.size_px, self.size_px)
        return np.random.default_rng(1).integers(0, self.config.classes, shape)


def devices() -> tuple[jax.Device, torch.device | None]:
    """JAX's first device, and the same one of torch: None where torch cannot use it."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return device, torch.device("cpu")
    if device.platform == "gpu" and torch.cuda.is_available():
        return device, torch.device("cuda")
    return device, None


def measured(problem: Problem, *, peak_gflops: float, budget_s: float) -> Iterator[NetRow]:
    """Rows of the forward pass and of the training step, one for each variant of torch.

    Args:
        peak_gflops: of `matmul_gflops`.
        budget_s: for each of the two.
    """
    gflop = forward_gflop(problem.config, problem.size_px, problem.size_px)
    for what, make_jax, make_torch, factor in (
        ("forward", jax_forward, torch_forward, 1),
        ("training step", jax_step, torch_step, 3),
    ):
        run, compile_s, peak_mb = make_jax(problem)
        runs = {"jax": run}
        if problem.torch_device is not None:
            runs |= {variant: make_torch(problem, variant) for variant in VARIANTS}
        _check_equal(runs)
        times = alternate(runs, budget_s=budget_s)
        gflops = factor * gflop / (times.ms("jax") / 1e3)
        for variant in list(runs)[1:] or ["none"]:
            yield NetRow(
                f"{problem.name}, {what}", variant, times.ms("jax"), *_torch_times(times, variant),
                gflops, gflops / peak_gflops, compile_s, peak_mb,
            )  # fmt: skip


def jax_forward(problem: Problem) -> tuple[Run, float, float | None]:
    """A forward pass, the seconds of its compilation, and its memory in MB."""
    params, x = _jax_arrays(problem)
    program, seconds = compiled(jax.jit(_apply(problem.config)), params, x)
    return lambda: program(params, x), seconds, planned_mb(program)


def jax_step(problem: Problem) -> tuple[Run, float, float | None]:
    """A training step that gives the loss, in donated buffers, and the same of it."""
    params, x = _jax_arrays(problem)
    labels = jax.device_put(problem.labels(), problem.jax_device)
    apply = _apply(problem.config)

    def loss(params: Any, x: Array, labels: Array) -> Array:
        log = jax.nn.log_softmax(apply(params, x))
        return -(jax.nn.one_hot(labels, log.shape[-1]) * log).sum(-1).mean()

    def step(params: Any, x: Array, labels: Array) -> tuple[Any, Array]:
        value, gradients = jax.value_and_grad(loss)(params, x, labels)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradients), value

    program, seconds = compiled(jax.jit(step, donate_argnums=0), params, x, labels)

    def run() -> Array:
        nonlocal params
        params, value = program(params, x, labels)
        jax.block_until_ready(params)
        return value

    return run, seconds, planned_mb(program)


def torch_forward(problem: Problem, variant: str) -> Run:
    """A forward pass."""
    model, x, _ = _torch_arrays(problem, variant)
    model.eval()

    def run() -> Any:
        with torch.inference_mode():
            return model(x)

    return _synchronised(run, problem.torch_device)


def torch_step(problem: Problem, variant: str) -> Run:
    """A training step that gives the loss."""
    model, x, labels = _torch_arrays(problem, variant)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def run() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return _synchronised(run, problem.torch_device)


def matmul_gflops(
    jax_device: jax.Device, torch_device: torch.device | None, *, budget_s: float
) -> float:
    """10^9 operations per second of the quickest float32 matrix product, in either framework."""
    side = 2048 if jax_device.platform == "cpu" else 8192
    square = np.random.default_rng(0).standard_normal((side, side), np.float32)
    a = jax.device_put(square, jax_device)
    product = jax.jit(lambda a: jnp.dot(a, a, precision="highest"))
    runs: dict[str, Run] = {"jax": lambda: product(a)}
    if torch_device is not None:
        b = torch.tensor(square, device=torch_device)
        runs["torch"] = _synchronised(lambda: b @ b, torch_device)
    times = alternate(runs, budget_s=budget_s)
    return 2 * side**3 / 1e6 / min(times.best_ms(name) for name in runs)


@contextmanager
def no_tf32() -> Iterator[None]:
    """torch's convolutions and products in float32, as long as this lasts."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _apply(config: UNetConfig) -> Callable[..., Array]:
    return functional(config, numerics=Numerics(precision="highest")).apply


def _jax_arrays(problem: Problem) -> tuple[dict[str, Array], Array]:
    """Parameters and image, in buffers of their own: the parameters' are donated."""
    arrays = layout.to_jax(problem.config, problem.tensors())
    x = problem.image().transpose(0, 2, 3, 1)
    owned = {name: jnp.array(array, copy=True) for name, array in arrays.items()}
    return jax.device_put((owned, jnp.array(x, copy=True)), problem.jax_device)


def _torch_arrays(problem: Problem, variant: str) -> tuple[TorchUNet, torch.Tensor, torch.Tensor]:
    """Model, image and labels."""
    kind = {"memory_format": VARIANTS[variant]}
    model = TorchUNet(problem.config)
    state = {name: torch.tensor(tensor) for name, tensor in problem.tensors().items()}
    model.load_state_dict(state, strict=True)
    x, labels = torch.tensor(problem.image()), torch.tensor(problem.labels())
    device = problem.torch_device
    return model.to(device).to(**kind), x.to(device).to(**kind), labels.to(device)


def _synchronised(run: Run, device: torch.device | None) -> Run:
    """The run, and the wait for an accelerator's result."""
    if device is None or device.type == "cpu":
        return run

    def waited() -> Any:
        result = run()
        torch.cuda.synchronize()
        return result

    return waited


def _check_equal(runs: dict[str, Run]) -> None:
    """Refuse to time two different computations: `AssertionError`."""
    values = {name: float(np.linalg.norm(_numpy(run()))) for name, run in runs.items()}
    for name, value in values.items():
        difference = abs(value / values["jax"] - 1)
        assert difference <= LOSS_BOUND, f"{name} and jax differ by {difference:.1e}"


def _torch_times(times: Timings, variant: str) -> tuple[float | None, float | None]:
    """The variant's time, and JAX's over it."""
    if variant not in times.rounds_ms:
        return None, None
    return times.ms(variant), times.ratio("jax", over=variant)


def _numpy(value: Any) -> np.ndarray:
    return np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
