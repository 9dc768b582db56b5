"""Whole runs side by side: both twins train from the same weights on the same batches.

In float64 the runs must stay together to rounding. In float32 every sum taken in another order
starts a difference that training then carries on, in any framework: so torch is also run against
itself and JAX against itself with the batch reversed, and those distances are the yardstick.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

import unet_jax.recipe
import unet_torch.recipe
from unet_jax.functional import functional
from unet_jax.layers import Numerics
from unet_parity import oracle
from unet_parity.bounds import TRAINING_BOUND
from unet_parity.jax_twin import compile_jax, jax_arrays
from unet_parity.torch_twin import torch_model
from unet_parity.twins import Masks, is_small, nhwc
from unet_spec import UNetConfig, layout
from unet_spec.parameters import Tensors, parameters, trained_names
from unet_spec.recipe import Recipe

BOUND = TRAINING_BOUND
# 82 healthy runs (3 tiny nets, 6 recipes, 1 to 2 seeds, 2, 10 and 50 steps) gave ratios from 0.66
# to 1.83; AdamW with a product and a sum rounded as one gave 13 to 22
FACTOR = 4.0
RESOLUTION = 2.0**-24  # of float32: two runs of one step may be equal in every bit


@dataclass(frozen=True)
class Trajectory:
    """Two runs, step by step; distances are norms of differences over the norm of torch's.

    Attributes:
        dtype: of parameters and arithmetic.
        batch: the shape of each batch's images, (b, in_channels, h, w).
        torch_losses: before each step.
        jax_losses: likewise.
        parameters: distance of JAX's trained tensors from torch's after each step.
        statistics: likewise of batch norm's statistics; empty without them.
        torch_yardstick: in float32, the distance of torch from itself with the batch reversed
            and without oneDNN; empty in float64.
        jax_yardstick: likewise of JAX, with the batch reversed.
        furthest: after each step, the trained tensor that is furthest from torch's.
    """

    dtype: str
    batch: list[int]
    torch_losses: list[float]
    jax_losses: list[float]
    parameters: list[float]
    statistics: list[float]
    torch_yardstick: list[float]
    jax_yardstick: list[float]
    furthest: list[str]


class Step(NamedTuple):
    """The loss before a step, and all tensors after it, in torch's layout."""

    loss: float
    tensors: dict[str, np.ndarray]


@dataclass(frozen=True)
class TrainingBatch:
    """A random batch in torch's layout: images, the class of each pixel, masks of the dropouts."""

    x: np.ndarray
    truth: np.ndarray
    keep: Masks

    def reverse(self) -> "TrainingBatch":
        return TrainingBatch(self.x[::-1], self.truth[::-1], [None if k is None else k[::-1]
                                                     for k in self.keep])  # fmt: skip


def train_side_by_side(
    config: UNetConfig,
    tensors: Tensors,
    recipe: Recipe,
    *,
    steps: int = 50,
    dtype: str = "float64",
    seed: int = 0,
    size: tuple[int, int] | None = None,
) -> Trajectory:
    """Train both twins for so many steps from the same weights.

    Args:
        tensors: of a `state_dict`.
        dtype: float64, or float32 with the two yardsticks.
        seed: of the batches; each is a function of (seed, step).
        size: (height, width) of the images; a small one without it.
    """
    recipe = recipe.for_steps(steps)
    data = [random_batch(config, seed=seed, step=step, size=size) for step in range(steps)]
    turned = [batch.reverse() for batch in data]
    port = JaxTrainer(config, recipe, dtype=dtype, quick=is_small(data[0].x))
    torch_runs = [train_torch(config, tensors, recipe, data, dtype=dtype)]
    jax_runs = [port.run(tensors, data)]
    if dtype == "float32":
        torch_runs.append(train_torch(config, tensors, recipe, turned, dtype=dtype, onednn=False))
        jax_runs.append(port.run(tensors, turned))
    weights = list(trained_names(config))
    statistics = [p.name for p in parameters(config) if p.kind == "statistic"]
    run = Trajectory(dtype, list(data[0].x.shape), [], [], [], [], [], [], [])
    # step by step, because the weights of all steps would not fit in memory
    for (ours, *ours_again), (theirs, *theirs_again) in _run_in_step(torch_runs, jax_runs):
        run.torch_losses.append(ours.loss)
        run.jax_losses.append(theirs.loss)
        run.parameters.append(_relative_distance(ours, theirs, weights))
        run.furthest.append(_find_furthest(ours, theirs, weights))
        if statistics:
            run.statistics.append(_relative_distance(ours, theirs, statistics))
        if dtype == "float32":
            run.torch_yardstick.append(_relative_distance(ours, ours_again[0], weights))
            run.jax_yardstick.append(_relative_distance(theirs, theirs_again[0], weights))
    return run


def _run_in_step(*groups: list[Iterator[Step]]) -> Iterator[list[list[Step]]]:
    """Run the steps of every group, a thread for each: neither framework fills the cores alone.

    Within a group one run steps after the other, because torch's oneDNN is switched for all.
    """
    with ThreadPoolExecutor(len(groups)) as pool:
        while True:
            steps = list(pool.map(_take_step, groups))
            if not all(steps):
                return
            yield steps


def _take_step(runs: list[Iterator[Step]]) -> list[Step]:
    """Take a step of every run that is not at its end."""
    steps = []
    for run in runs:
        step = next(run, None)
        if step is not None:
            steps.append(step)
    return steps


def list_problems(run: Trajectory) -> tuple[str, ...]:
    """Say what is out of bounds; empty if nothing is."""
    if run.dtype == "float64":
        kinds = {"parameters": run.parameters, "statistics": run.statistics}
        return tuple(
            f"after {len(values)} steps in float64 the {kind} are {values[-1]:.1e} from torch's, "
            f"more than {BOUND:.0e}; furthest is {run.furthest[-1]}"
            for kind, values in kinds.items()
            if values and not values[-1] <= BOUND
        )
    yardstick = float(np.max([*run.torch_yardstick, *run.jax_yardstick, RESOLUTION]))
    worst = float(np.max(run.parameters))
    if worst <= FACTOR * yardstick:
        return ()
    return (
        f"in float32 the parameters are {worst:.1e} from torch's, more than {FACTOR:g} times as "
        f"far as sums in another order move either framework ({yardstick:.1e}); furthest is "
        f"{run.furthest[int(np.argmax(run.parameters))]}",
    )


def random_batch(
    config: UNetConfig, *, seed: int, step: int, size: tuple[int, int] | None = None
) -> TrainingBatch:
    """Draw the batch of a step: normal images, and random classes of their pixels."""
    draw = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
    x, cotangent, keep = oracle.random_input(config, seed=draw, size=size)
    shape = (cotangent.shape[0], *cotangent.shape[2:])
    truth = np.random.default_rng((seed, step)).integers(0, config.mask_classes, shape)
    return TrainingBatch(x, truth, keep)


def train_torch(
    config: UNetConfig,
    tensors: Tensors,
    recipe: Recipe,
    data: list[TrainingBatch],
    *,
    dtype: str,
    onednn: bool = True,
) -> Iterator[Step]:
    """Train the reference on these batches with torch's own optimizer."""
    model = torch_model(config, tensors, dtype=dtype, train=True)
    optimizer, scheduler = unet_torch.recipe.build(recipe, model.named_parameters())
    for step, batch in enumerate(data):
        with nullcontext() if onednn else _without_onednn():
            loss = torch_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
        unet_torch.recipe.advance(recipe, optimizer, scheduler, step=step, value=loss.item())
        state = model.state_dict().items()
        yield Step(loss.item(), {n: t.detach().numpy().copy() for n, t in state})


def torch_loss(model: torch.nn.Module, batch: TrainingBatch) -> torch.Tensor:
    """Return the mean cross-entropy of a batch, in the dtype of the parameters.

    A single channel is the logit of the second class; the first one's is 0.
    """
    kind = next(model.parameters()).dtype
    masks = [None if mask is None else torch.tensor(mask.copy()) for mask in batch.keep]
    logits = model(torch.tensor(batch.x.copy(), dtype=kind), masks)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return F.cross_entropy(logits, torch.tensor(batch.truth.copy()))


class JaxTrainer:
    """The port with the recipe's optax transformation, compiled once for several runs."""

    def __init__(self, config: UNetConfig, recipe: Recipe, *, dtype: str, quick: bool = True):
        self.config, self.dtype = config, dtype
        with self._x64():
            self._optimizer = unet_jax.recipe.build(recipe)
            self._move = jax.jit(unet_jax.recipe.make_update(self._optimizer))
            self._differentiate = jax_gradients(config, dtype, quick=quick)

    def run(self, tensors: Tensors, data: list[TrainingBatch]) -> Iterator[Step]:
        """Train the port on these batches."""
        with self._x64():
            params, stats = jax_arrays(self.config, tensors, dtype=self.dtype)
            state = self._optimizer.init(params)
        for batch in data:
            with self._x64():
                loss, stats, gradients = self._differentiate(
                    params, stats, *jax_batch(batch, dtype=self.dtype)
                )
                params, state = self._move(params, state, gradients, loss)
                arrays = {name: np.asarray(a) for name, a in {**params, **stats}.items()}
            yield Step(float(loss), layout.to_torch(self.config, arrays))

    def _x64(self) -> AbstractContextManager[None]:
        return jax.enable_x64(self.dtype == "float64")


def jax_batch(batch: TrainingBatch, *, dtype: str) -> tuple[Any, Any, Any]:
    """Return (x, truth, keep) of a batch in JAX's layout."""
    masks = [None if mask is None else jnp.asarray(nhwc(mask)) for mask in batch.keep]
    return jnp.asarray(nhwc(batch.x), jnp.dtype(dtype)), jnp.asarray(batch.truth), masks


def jax_gradients(config: UNetConfig, dtype: str, *, quick: bool = True) -> Callable[..., Any]:
    """Compile (params, stats, x, truth, keep) -> (loss, new stats, gradients)."""
    kind = jnp.dtype(dtype)
    apply = functional(config, numerics=Numerics(kind, kind, "highest")).apply

    def loss(params: Any, stats: Any, x: Any, truth: Any, keep: Any) -> Any:
        logits, stats = apply(params, x, stats, train=True, keep=keep)
        if config.classes == 1:
            logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
        chosen = jax.nn.one_hot(truth, config.mask_classes, dtype=kind)
        return -(chosen * jax.nn.log_softmax(logits)).sum(-1).mean(), stats

    def run(params: Any, stats: Any, x: Any, truth: Any, keep: Any) -> Any:
        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(
            params, stats, x, truth, keep
        )
        return value, stats, gradients

    return compile_jax(run, dtype, quick=quick)


@contextmanager
def _without_onednn() -> Iterator[None]:
    # not `mkldnn.flags`, which sets a flag of Intel GPUs too and warns that there is none
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def _relative_distance(truth: Step, run: Step, names: list[str]) -> float:
    """Return the norm of all differences over the norm of all values."""
    a, b = truth.tensors, run.tensors
    return _norm([b[n].astype(np.float64) - a[n] for n in names]) / _norm([a[n] for n in names])


def _find_furthest(truth: Step, run: Step, names: list[str]) -> str:
    """Return the tensor in which two steps differ most."""
    a, b = truth.tensors, run.tensors
    return max(names, key=lambda name: _norm([b[name].astype(np.float64) - a[name]]))


def _norm(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in arrays)))
