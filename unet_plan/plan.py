"""A plan: what a step of a run needs and takes on a topology, as plain values."""

from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import Any

from unet_plan import compiler
from unet_plan.compiler import Compiled, Refusal
from unet_plan.program import Cost, Exchange, Program, read_program, sum_by_module
from unet_plan.topology import Topology
from unet_spec.flops import forward_gflop
from unet_train.config import TrainConfig

COSTLIEST = 5
SIDE_BY_SIDE = 8
"""Images that lie side by side in a TPU's registers: 127 take the memory of 128 there."""
PASSES = 3
"""A step computes about three times what a forward pass does: each convolution has a gradient of
its input and one of its kernel."""


@dataclass(frozen=True)
class Memory:
    """A `Memory` is what a step takes on each device, in bytes.

    Attributes:
        limit: what a program gets there.
        weights: the parameters and batch norm's statistics.
        average: their running average.
        optimizer: its moments.
        batch: the images and masks of a step, before they are augmented.
        temporaries: all else that the program keeps while it runs: maps between layers, gradients,
            and what the chip's layout of arrays adds.
        code: of the program.
    """

    limit: int
    weights: int
    average: int
    optimizer: int
    batch: int
    temporaries: int
    code: int

    @property
    def needed(self) -> int:
        """Return the sum."""
        return self.state + self.batch + self.temporaries + self.code

    @property
    def state(self) -> int:
        """Return what does not depend on the batch."""
        return self.weights + self.average + self.optimizer


@dataclass(frozen=True)
class Plan:
    """A `Plan` is what a step of a run needs and takes on a topology.

    Times are estimates of the chip's compiler or bounds by arithmetic: nothing ran. None means
    that the compiler does not tell, or that the program does not fit.

    Attributes:
        topology: the chips; `chip` is one of them.
        devices: of the mesh, `data` x `rows`, of all `available`.
        hosts: machines that run the command.
        batch: images in a step; a device has `images` of them at once, which with rows are parts
            of images.
        fits: whether each device can hold the program.
        is_whole: `memory` is all of it; otherwise the compiler gave up early, and there is more.
        flops: that the net's convolutions need on each device, by arithmetic.
        program_flops: that the compiler counts, everything included; None where it refused.
        bytes_moved: between a device's memory and its units, as the compiler counts them.
        exchanges: what devices send each other.
        arithmetic_ms: `flops` at the chip's peak.
        memory_ms: `bytes_moved` at the memory's rate.
        estimate_ms: the compiler's estimate of a step, without exchanges and without so many
            operations as `without_estimate` says.
        costliest: operations with their part of the estimate.
        modules: ms of the estimate by module.
        compile_s: that tracing and compiling took.
        advice: what would make it fit; None where it does.
    """

    topology: str
    chip: str
    devices: int
    available: int
    hosts: int
    data: int
    rows: int
    batch: int
    images: float
    crop_px: int
    accumulate: int
    remat: bool
    compute: str
    steps: int
    fits: bool
    is_whole: bool
    memory: Memory
    flops: float
    program_flops: float | None
    bytes_moved: float | None
    exchanges: tuple[Exchange, ...]
    arithmetic_ms: float | None
    memory_ms: float | None
    estimate_ms: float | None
    without_estimate: int
    costliest: tuple[tuple[Cost, float], ...]
    modules: dict[str, float]
    compile_s: float
    advice: str | None = None

    @property
    def images_per_s(self) -> float | None:
        """Return the images of a second, by the estimate."""
        return None if self.estimate_ms is None else 1e3 * self.batch / self.estimate_ms

    @property
    def share_of_peak(self) -> float | None:
        """Return which part of the chip's peak the convolutions use, by the estimate."""
        if self.estimate_ms is None or self.arithmetic_ms is None:
            return None
        return self.arithmetic_ms / self.estimate_ms

    @property
    def hours(self) -> float | None:
        """Return what the steps of the run take, by the estimate; input, validation and
        compiling come on top."""
        return None if self.estimate_ms is None else self.steps * self.estimate_ms / 3.6e6

    @property
    def is_refused(self) -> bool:
        """Say whether the compiler refused the program, and so counted nothing in it."""
        return self.program_flops is None

    @property
    def at_once(self) -> int:
        """Return how many images a device computes at once, whole or their part of the rows."""
        return self.batch // self.accumulate // self.data

    @property
    def bound_ms(self) -> float | None:
        """Return below what a step cannot be, by arithmetic and memory."""
        bounds = [ms for ms in (self.arithmetic_ms, self.memory_ms) if ms is not None]
        return max(bounds, default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        plain = asdict(self)
        plain["memory"]["needed"] = self.memory.needed
        plain["costliest"] = [{**asdict(cost), "ms": ms} for cost, ms in self.costliest]
        for name in ("images_per_s", "share_of_peak", "hours", "bound_ms"):
            plain[name] = getattr(self, name)
        return plain


def place(config: TrainConfig, topology: Topology) -> Any:
    """Return the placement of a run on a topology.

    Raises:
        InputError: the run does not fit the number of devices; or as `list_devices`.
    """
    from unet_train.devices.placement import make_placement

    return make_placement(config, compiler.list_devices(topology))


def make_plan(
    config: TrainConfig, topology: Topology, placement: Any, *, quick: bool = False
) -> Plan:
    """Compile the step of a run for a topology, and say what it needs and takes.

    Args:
        quick: as of `compile_step`; only the memory means anything then.
    """
    compiled = compiler.compile_step(config, placement, quick=quick)
    with compiler.quiet_stderr():
        return describe(config, topology, placement, compiled)


def describe(config: TrainConfig, topology: Topology, placement: Any, compiled: Compiled) -> Plan:
    """Return the plan of a step that was compiled, or refused."""
    chip, (data, rows) = topology.chip, placement.mesh.devices.shape
    devices, net, crop_px = data * rows, config.net, config.data.crop_px
    flops = PASSES * 1e9 * forward_gflop(net, crop_px, crop_px) * config.data.batch / devices
    memory = measure_memory(topology, placement, compiled)
    refusal = compiled.outcome if isinstance(compiled.outcome, Refusal) else None
    fits = refusal is None and memory.needed <= memory.limit
    program = Program((), (), 0)
    analysis: dict[str, float] = {}
    if refusal is None:
        program = read_program(compiled.outcome.as_text())
        analysis = compiled.outcome.cost_analysis() or {}
    ms_per_cycle = 1e3 / chip.clock_hz if chip.clock_hz else 0.0
    peak, bytes_moved = chip.peak_flops.get(config.compute), analysis.get("bytes accessed")
    plan = Plan(
        topology=topology.name,
        chip=chip.name,
        devices=devices,
        available=topology.devices,
        hosts=topology.hosts,
        data=data,
        rows=rows,
        batch=config.data.batch,
        images=config.data.batch / config.accumulate / devices,
        crop_px=crop_px,
        accumulate=config.accumulate,
        remat=config.remat,
        compute=config.compute,
        steps=config.steps,
        fits=fits,
        is_whole=refusal is None or refusal.is_whole,
        memory=memory,
        flops=flops,
        program_flops=analysis.get("flops"),
        bytes_moved=bytes_moved,
        exchanges=program.exchanges,
        arithmetic_ms=1e3 * flops / peak if peak else None,
        memory_ms=1e3 * bytes_moved / chip.bytes_per_s
        if bytes_moved and chip.bytes_per_s
        else None,
        estimate_ms=program.cycles * ms_per_cycle if program.cycles and chip.clock_hz else None,
        without_estimate=program.without_estimate if program.cycles else 0,
        costliest=tuple((c, c.cycles * ms_per_cycle) for c in program.costs[:COSTLIEST]),
        modules={m: n * ms_per_cycle for m, n in sum_by_module(program.costs).items()},
        compile_s=compiled.seconds,
    )
    return plan if fits else replace(plan, advice=advise(plan))


def measure_memory(topology: Topology, placement: Any, compiled: Compiled) -> Memory:
    """Return what a compiled step takes on each device, by shapes and by the compiler."""
    from unet_train.devices.room import count_bytes

    state, crops = compiled.arguments
    shardings = placement.state(state)
    weights = _bytes_of(state.params, shardings.params) + _bytes_of(state.stats, shardings.stats)
    parts = {
        "weights": weights,
        "average": _bytes_of(state.ema, shardings.ema),
        "optimizer": _bytes_of(state.optimizer, shardings.optimizer),
        "batch": sum(_bytes_on_each(array, placement.images) for array in crops if array),
    }
    known = sum(parts.values())
    if isinstance(compiled.outcome, Refusal):
        refusal = compiled.outcome
        return Memory(
            refusal.limit_bytes, **parts, temporaries=refusal.needed_bytes - known, code=0
        )
    analysis = compiled.outcome.memory_analysis()
    limit = topology.chip.memory_bytes
    if topology.chip.platform == "cpu":  # all of its devices share one memory
        limit //= topology.devices
    return Memory(
        limit,
        **parts,
        temporaries=count_bytes(analysis) - known,
        code=analysis.generated_code_size_in_bytes,
    )


def advise(plan: Plan) -> str:
    """Return what would make a plan fit: what is not the state grows with the images.

    Above `SIDE_BY_SIDE` images the advice is a multiple of them, because a TPU pads to the next.
    A compiler saves what memory it can before it refuses, so its figure is less than these images
    take without saving; the advice is a quarter below what the figure would allow. Where the
    compiler gave up early, how many images fit is not known.
    """
    fixed = plan.memory.state + plan.memory.code
    images = int(plan.at_once * (plan.memory.limit - fixed) / (plan.memory.needed - fixed))
    if plan.is_refused:
        images = images * 3 // 4
    if images > SIDE_BY_SIDE:
        images -= images % SIDE_BY_SIDE
    options = []
    if not plan.is_whole:
        options.append("a smaller --data.batch, of which --largest finds the largest")
    elif images >= 1:
        options.append(f"--data.batch {images * plan.data * plan.accumulate}")
        parts = _divide_batch(plan, images)
        if parts is not None:
            options.append(f"--accumulate {parts}, which keeps the batch")
    if not plan.remat:
        options.append("--remat")
    if plan.data > 1:
        options.append(f"--mesh.rows {2 * plan.rows}")
    if not options:
        return "take more or larger chips"
    return f"give {', or '.join(options)}"


def _divide_batch(plan: Plan, images: int) -> int | None:
    """Return in how many parts a batch has so few images of a device at once.

    None where no number of parts leaves at least half of them.
    """
    of_device = plan.batch // plan.data
    parts = [n for n in range(plan.accumulate + 1, of_device + 1) if of_device % n == 0]
    return next((n for n in parts if images / 2 <= of_device // n <= images), None)


def _bytes_of(arrays: Any, shardings: Any) -> int:
    import jax

    each = jax.tree.map(_bytes_on_each, arrays, shardings)
    return reduce(int.__add__, jax.tree.leaves(each), 0)


def _bytes_on_each(array: Any, sharding: Any) -> int:
    """Return the bytes of an array's part on one device."""
    size = array.dtype.itemsize
    for length in sharding.shard_shape(array.shape):
        size *= length
    return size
