"""One training step: a pure function of state and batch, compiled once."""

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from unet_jax import Numerics, functional
from unet_jax import recipe as optimizers
from unet_spec import geometry

from . import losses
from .config import LossConfig, TrainConfig
from .devices.placement import Placement, make_placement
from .devices.room import check_plan
from .input.augment import augment_batch
from .input.crops import Batch
from .losses import Output
from .metrics import confusion

Arrays = dict[str, Array]

# on a CPU XLA takes half a minute to compile the initial weights well, which are drawn once
_ONCE = {"xla_backend_optimization_level": 0}


class State(NamedTuple):
    """A `State` is all that a step changes.

    Attributes:
        params: trained arrays by the slides' names.
        stats: batch norm's statistics.
        optimizer: of `unet_jax.recipe`.
        ema: running average of `params` and of the statistics that belong to them; {} where the
            config has none.
        step: number of steps done.
        stopped: a loss, gradient or update was not finite: this is the state before it, and no
            step changes it any more.
    """

    params: Arrays
    stats: Arrays
    optimizer: optimizers.OptimizerState
    ema: Arrays
    step: Array
    stopped: Array


class Metrics(NamedTuple):
    """A `Metrics` is what a step measures.

    Attributes:
        loss: of the batch.
        confusion: (classes, classes) numbers of pixels, of the batch.
        lr: the learning rate that the step used.
        grad_norm: the norm of the gradients before any clipping.
    """

    loss: Array
    confusion: Array
    lr: Array
    grad_norm: Array


class Steps(NamedTuple):
    """A `Steps` is a run as two compiled functions.

    Attributes:
        init: `init() -> State` at step 0.
        step: `step(state, crops) -> (State, Metrics)`; the state given is donated, only the one
            that it returns may be used after it.
    """

    init: Callable[[], State]
    step: Callable[[State, Batch], tuple[State, Metrics]]


def jit_steps(config: TrainConfig, placement: Placement | None = None) -> Steps:
    """Return the functions of a run, which compile at their first call.

    Args:
        placement: the devices; by default those of the config.
    """
    placement = placement or make_placement(config)
    return _jit(config, placement, partial(init_state, config))


def _jit(config: TrainConfig, placement: Placement, first: Callable[[], State]) -> Steps:
    """Return the functions of a run with such a first state; JAX traces one function once."""
    shardings = placement.state(jax.eval_shape(first))
    once = _ONCE if jax.default_backend() == "cpu" else None
    return Steps(
        jax.jit(first, out_shardings=shardings, compiler_options=once),
        jax.jit(
            partial(train_step, config, placement),
            out_shardings=(shardings, placement.everywhere),
            donate_argnums=0,
        ),
    )


@contextmanager
def _pause_garbage_collection() -> Iterator[None]:
    """Collect no garbage in the block.

    Tracing makes a million objects that stay; looking among them takes a fifth of its time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_pause_garbage_collection()
def compile_steps(config: TrainConfig, placement: Placement) -> Steps:
    """Return the functions of a run, compiled once: another shape is an error, no compilation."""
    begin = partial(init_state, config)
    shapes = jax.eval_shape(begin)
    steps: Any = _jit(config, placement, begin)
    state = jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        shapes,
        placement.state(shapes),
    )
    crops = shapes_of_crops(config, placement)
    with ThreadPoolExecutor(2) as background:  # one is compiled while the next is traced
        step = background.submit(steps.step.lower(state, crops).compile)
        first = background.submit(steps.init.lower().compile)
        compiled = Steps(first.result(), step.result())
    check_plan(config, placement, compiled.step)
    return compiled


def shapes_of_crops(config: TrainConfig, placement: Placement) -> Batch:
    """Return the shapes of a batch as it is cut, and where its arrays live."""
    image = (config.data.batch, config.data.crop_px, config.data.crop_px)
    shape = partial(jax.ShapeDtypeStruct, sharding=placement.images)
    return Batch(
        shape((*image, config.net.in_channels), jnp.float32),
        shape(image, jnp.uint8),
        shape(image, jnp.float32) if config.loss.border_w0 > 0 else None,
    )


def init_state(config: TrainConfig) -> State:
    """Return the state at step 0."""
    params, stats = functional(config.net).init(jax.random.key(config.seed))
    optimizer = optimizers.build(config.recipe).init(params)
    ema = copy_for_average(params, stats) if config.ema else {}
    return State(params, stats, optimizer, ema, jnp.zeros((), jnp.int32), jnp.zeros((), bool))


def copy_for_average(params: Arrays, stats: Arrays) -> Arrays:
    """Return copies of all arrays that are averaged, which are all but counts."""
    both = {**params, **stats}
    return {n: jnp.copy(a) for n, a in both.items() if jnp.issubdtype(a.dtype, jnp.floating)}


def train_step(
    config: TrainConfig, placement: Placement, state: State, crops: Batch
) -> tuple[State, Metrics]:
    """Take a step: augment the crops, then update the state."""
    batch = prepare_batch(config, crops, state.step)
    # whole images are augmented where they are, and their rows taken then: nothing is exchanged
    for sharding in (placement.images, placement.rows):
        batch = jax.lax.with_sharding_constraint(batch, sharding)
    return update_state(config, state, batch)


def prepare_batch(config: TrainConfig, crops: Batch, now: Array) -> Batch:
    """Return what the net sees at step `now`, and the truth of the pixels that it predicts."""
    x, truth, weight = augment_batch(*crops, seed=config.seed, step=now, config=config.augment)
    out_px = geometry.output_size(config.net, config.data.crop_px)
    before = (config.data.crop_px - out_px) // 2
    inside = slice(before, before + out_px)
    return Batch(x, truth[:, inside, inside], None if weight is None else weight[:, inside, inside])


def update_state(config: TrainConfig, state: State, batch: Batch) -> tuple[State, Metrics]:
    """Return the next state; the same one, stopped, if loss, gradient or update is not finite."""
    gradients, stats, loss, matrix = accumulate_gradients(config, state, batch)
    norm = optax.tree.norm(gradients)
    updates, optimizer = optimizers.build(config.recipe).update(
        gradients, state.optimizer, state.params, value=loss
    )
    params = optax.apply_updates(state.params, updates)
    ema = _update_average(config.ema, state, {**params, **stats}) if config.ema else {}
    metrics = Metrics(loss, matrix, state.optimizer.lr, norm)
    following = State(params, stats, optimizer, ema, state.step + 1, state.stopped)
    finite = jnp.isfinite(jnp.stack([loss, norm, optax.tree.norm(updates)])).all()
    advances = finite & ~state.stopped
    result = jax.tree.map(partial(jax.lax.select, advances), following, state)
    return result._replace(stopped=~advances), metrics


def dropout_keys(seed: int, step: Array, *, parts: int) -> Array:
    """Return the keys of a step's dropout, one for each of its parts."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    if parts == 1:
        return key[None]
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(parts))


def make_numerics(compute: str, *, remat: bool) -> Numerics:
    """Return the net's arithmetic: bfloat16, or float32 without TF32 or passes of bfloat16."""
    precision = "highest" if compute == "float32" else None
    return Numerics(dtype=jnp.dtype(compute), precision=precision, remat=remat)


def accumulate_gradients(
    config: TrainConfig, state: State, batch: Batch
) -> tuple[Arrays, Arrays, Array, Array]:
    """Return (gradients, statistics, loss, confusion), computed in `config.accumulate` parts.

    Each part counts for what it is of the whole batch, so the sum is that of one large step;
    only batch norm, as everywhere, sees each part by itself.
    """
    over = losses.compute_counts(batch.truth, batch.weight, config=config.loss)
    keys = dropout_keys(config.seed, state.step, parts=config.accumulate)
    numerics = make_numerics(config.compute, remat=config.remat)
    differentiate = partial(
        _differentiate,
        functional(config.net, numerics=numerics).apply,
        config.net.output,
        config.loss,
        over,
    )
    if config.accumulate == 1:
        return differentiate(state.params, state.stats, batch, keys[0])

    def add(sums: Any, part: tuple[Array, Batch]) -> tuple[Any, None]:
        (gradients, stats, loss, matrix), (key, images) = sums, part
        new, stats, value, counted = differentiate(state.params, stats, images, key)
        return (optax.tree.add(gradients, new), stats, loss + value, matrix + counted), None

    classes = config.net.mask_classes
    nothing = (
        jax.tree.map(jnp.zeros_like, state.params),
        state.stats,
        jnp.zeros((), state.optimizer.lr.dtype),
        jnp.zeros((classes, classes), jnp.int32),
    )
    return jax.lax.scan(add, nothing, (keys, split_into_parts(batch, config.accumulate)))[0]


def _differentiate(
    apply: Callable[..., Any],
    output: Output,
    loss_config: LossConfig,
    over: losses.Counts,
    params: Arrays,
    stats: Arrays,
    batch: Batch,
    key: Array,
) -> tuple[Arrays, Arrays, Array, Array]:
    """Return (gradients, statistics, loss, confusion) of one part of a batch."""

    def objective(params: Arrays) -> tuple[Array, tuple[Array, Arrays]]:
        logits, updated = apply(params, batch.x, stats, train=True, key=key)
        value = losses.loss(
            logits, batch.truth, batch.weight, config=loss_config, output=output, over=over
        )
        return value, (losses.to_class_logits(logits), updated)

    (loss, (logits, updated)), gradients = jax.value_and_grad(objective, has_aux=True)(params)
    matrix = confusion(
        logits.argmax(-1), batch.truth,
        classes=logits.shape[-1], ignore_index=loss_config.ignore_index,
    )  # fmt: skip
    return gradients, updated, loss, matrix


def split_into_parts(batch: Batch, count: int) -> Batch:
    """Return arrays (parts, b / parts, ...), in which every part has images of every device.

    Image i goes into part i % parts.
    """
    return jax.tree.map(
        lambda array: array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1), batch
    )


def _update_average(decay: float, state: State, arrays: Arrays) -> Arrays:
    """Return the running average after this step.

    `decay` is reached slowly, so that the first weights are soon forgotten.
    """
    done = state.step.astype(float)
    rate = 1 - jnp.minimum(decay, (1 + done) / (10 + done))
    return {
        name: old + rate.astype(old.dtype) * (arrays[name] - old) for name, old in state.ema.items()
    }
