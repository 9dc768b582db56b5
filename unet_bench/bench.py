"""What `unet bench` runs: the same computations in one run on this device, as ratios."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from unet_bench import layer_times, net_times
from unet_bench.ceilings import matmul_gflops
from unet_bench.environment import device_name, environment
from unet_bench.net_times import NetRow
from unet_bench.prediction_times import TiledImage, jax_prediction, torch_prediction
from unet_bench.preset_step import PresetStep, jax_preset_step, torch_preset_step
from unet_bench.slopes import Slope, fit_slope
from unet_bench.steps import (
    COMPILED,
    PRECISION,
    VARIANTS,
    Problem,
    devices,
    explain_no_compiler,
    torch_tf32,
)
from unet_spec import SLIDES, UNetConfig
from unet_spec.allocator import keep_freed_memory
from unet_spec.environment import versions
from unet_train.config import NUCLEI, TrainConfig

NARROW = UNetConfig(widths=(16, 32, 64, 128, 256))
DIRECTIONS = ("forward", "training step")


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long.

    Attributes:
        nets: (net, side in pixels, batch) of the rows that stand for themselves.
        sizes_px: sides of the images over which `NARROW` is timed.
        bases: base widths of the nets that are timed on images of `size_px`.
        image: (net, height, width) of the prediction in tiles.
        step: the preset whose whole training step is timed.
        layer_s, net_s, slope_s: seconds for each row of its kind; three rounds or five are made
            in any case.
        is_compiled: whether `torch.compile` is one more variant, which takes half a minute for
            each row.
    """

    nets: tuple[tuple[UNetConfig, int, int], ...]
    sizes_px: tuple[int, ...]
    bases: tuple[int, ...]
    image: tuple[UNetConfig, int, int]
    step: TrainConfig
    layer_s: float
    net_s: float
    slope_s: float
    is_compiled: bool
    size_px: int = 256


def scale(base: int) -> UNetConfig:
    """Return the slides' net with another base width.

    >>> scale(8).widths
    (8, 16, 32, 64, 128)
    """
    return UNetConfig(widths=tuple(base * 2**level for level in range(5)))


WHOLE = Plan(
    nets=((NARROW, 256, 1), (SLIDES, 256, 1), (scale(32), 128, 4)),
    sizes_px=(64, 128, 256, 512),
    bases=(8, 16, 32, 64),
    image=(NARROW, 1024, 2304),
    step=NUCLEI,
    layer_s=2,
    net_s=12,
    slope_s=3,
    is_compiled=True,
)
QUICK = Plan(
    nets=((NARROW, 256, 1),),
    sizes_px=(64, 128, 256),
    bases=(8, 16),
    image=(scale(4), 64, 2304),
    step=NUCLEI,
    layer_s=0.5,
    net_s=2,
    slope_s=0.5,
    is_compiled=False,
)


def bench(*, quick: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time the layers against plain Flax, and nets, a preset's step and predictions against torch.

    Args:
        quick: fewer and smaller cases, fewer rounds, and no `torch.compile`: under a minute on
            two idle cores, in place of a quarter of an hour.
        say: is called with a line for each row as it is measured.
    """
    plan = QUICK if quick else WHOLE
    allocator = keep_freed_memory().text
    jax_device, torch_device = devices()
    say(f"on {device_name(jax_device)}; {PRECISION}")
    say(allocator)
    notes = []
    variants = tuple(VARIANTS) if torch_device is not None else ()
    if torch_device is None:
        notes.append("torch cannot use this device: JAX alone is timed")
    elif not plan.is_compiled:
        notes.append("torch.compile is left out of a quick bench, because it takes minutes")
    elif reason := explain_no_compiler(torch_device):
        notes.append(f"torch.compile is left out: {reason}")
    else:
        variants = (*variants, COMPILED)
    for note in notes:
        say(note)
    with torch_tf32(False):
        side = 2048 if jax_device.platform == "cpu" else 8192
        peak = matmul_gflops(jax_device, torch_device, side=side, budget_s=1 if quick else 3)
        say(f"float32 matrix product: {peak:.0f} GFLOP/s")
        layers = []
        for layer in layer_times.time_layers(jax_device, budget_s=plan.layer_s, quick=quick):
            say(f"{layer.case}: {layer.ratio:.2f} x Flax")
            layers.append(layer)
        nets = []
        for net in _time_nets(plan, peak, variants):
            say(_describe(net))
            nets.append(net)
    return {
        "device": device_name(jax_device),
        "precision": PRECISION,
        "allocator": allocator,
        "matmul_gflops": peak,
        "versions": versions(),
        "environment": environment(),
        "notes": notes,
        "rows": [*map(asdict, layers), *map(asdict, nets)],
        "slopes": [asdict(slope) for slope in _fit_slopes(plan, nets)],
        "only_for_slopes": [
            f"{Problem(*net, jax_device, torch_device).name}, {what}"
            for net in _list_further(plan)
            for what in DIRECTIONS
        ],
    }


def _time_nets(plan: Plan, peak_gflops: float, variants: Sequence[str]) -> Iterator[NetRow]:
    """Yield the rows of nets, of the preset's step, of the prediction, and of the slopes."""
    jax_device, torch_device = devices()
    time_case = partial(net_times.time_case, peak_gflops=peak_gflops, budget_s=plan.net_s)
    time_nets = partial(net_times.time_nets, peak_gflops=peak_gflops)
    problem = Problem(NARROW, plan.size_px, jax_device, torch_device)
    for config, size_px, batch in plan.nets:
        case = replace(problem, config=config, size_px=size_px, batch=batch)
        yield from time_nets(case, budget_s=plan.net_s, variants=variants)
    step = PresetStep(plan.step, jax_device, torch_device)
    steps = {variant: partial(torch_preset_step, step, variant) for variant in variants}
    yield from time_case(step.case, jax_preset_step(step), steps)
    plain = [variant for variant in variants if variant in VARIANTS]
    image = TiledImage(*plan.image, torch_device)
    predictions = {variant: partial(torch_prediction, image, variant) for variant in plain}
    yield from time_case(image.case, jax_prediction(image), predictions)
    for config, size_px in _list_further(plan):
        case = replace(problem, config=config, size_px=size_px)
        yield from time_nets(case, budget_s=plan.slope_s, variants=plain)


def _list_further(plan: Plan) -> list[tuple[UNetConfig, int]]:
    """Return the nets and sides that are timed for the slopes and nothing else."""
    rows = [(config, size_px) for config, size_px, batch in plan.nets if batch == 1]
    return [net for net in dict.fromkeys((*_sizes(plan), *_widths(plan))) if net not in rows]


def _sizes(plan: Plan) -> list[tuple[UNetConfig, int]]:
    return [(NARROW, size_px) for size_px in plan.sizes_px]


def _widths(plan: Plan) -> list[tuple[UNetConfig, int]]:
    return [(scale(base), plan.size_px) for base in plan.bases]


def _fit_slopes(plan: Plan, rows: Sequence[NetRow]) -> Iterator[Slope]:
    """Yield how time grows with the pixels and with the width of a net, in both directions.

    The variants are those that every case has, without `torch.compile`.
    """
    jax_device, torch_device = devices()
    base, sizes, size = NARROW.widths[0], plan.sizes_px, plan.size_px
    series = (
        (f"base {base}, {sizes[0]} to {sizes[-1]} pixels", "megapixel", sizes, _sizes(plan)),
        (f"{size}x{size}, base {plan.bases[0]} to {plan.bases[-1]}", "GFLOP", plan.bases,
         _widths(plan)),
    )  # fmt: skip
    for name, per, axis, nets in series:
        for what in DIRECTIONS:
            chosen = []
            for config, size_px in nets:
                case = f"{Problem(config, size_px, jax_device, torch_device).name}, {what}"
                same = [r for r in rows if r.case == case and r.torch_variant != COMPILED]
                chosen.append(min(same, key=lambda row: row.torch_ms or 0))
            yield fit_slope(f"{name}, {what}", per=per, axis=axis, rows=chosen)


def _describe(row: NetRow) -> str:
    """Return the line that is said of a row."""
    text = f"{row.case}: {row.jax_ms:,.1f} ms"
    if row.ratio is None:
        return text
    return f"{text}, {row.ratio:.2f} x torch {row.torch_variant}{' (best)' if row.best else ''}"
