"""Whether a run fits into the memory of this machine, where it computes on the CPU: an accelerator
refuses by itself what it cannot hold, and a CPU's memory is swapped, or the process is killed."""

from typing import Any

import jax

from unet_spec import memory
from unet_spec.errors import ConfigError

from ..config import TrainConfig
from .placement import Placement


def check_room(config: TrainConfig, placement: Placement) -> None:
    """Refuse, before anything is drawn or compiled, a run that cannot fit by arithmetic.

    Raises:
        ConfigError: with both figures, and what makes it smaller.
    """
    images = placement.local(config.data.batch)
    devices = 1 if placement.shard_parameters else _count_devices(placement)
    moments_and_average = len(config.recipe.slots) + (config.ema > 0)
    need = memory.bytes_of_step(
        config.net,
        size_px=config.data.crop_px,
        batch=images.stop - images.start,
        parts=config.accumulate,
        copies=devices * (2 + moments_and_average),
        bytes_of_map=2 if config.compute == "bfloat16" else 4,
    )
    _refuse(config, need)


def check_program(config: TrainConfig, placement: Placement, program: Any) -> None:
    """Refuse, before anything is allocated, a compiled step that does not fit by XLA's own account.

    Raises:
        ConfigError: as `check_room`.
    """
    analysis = program.memory_analysis()
    if analysis is not None:
        _refuse(config, _count_devices(placement) * count_bytes(analysis))


def count_bytes(analysis: Any) -> int:
    """Return what a program takes on each device, by its `memory_analysis()`: arguments, results
    that do not take the place of arguments, and temporaries."""
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes


def _count_devices(placement: Placement) -> int:
    """Return how many devices of the mesh are of this process, and so of this memory."""
    return len(placement.mesh.local_devices)


def _refuse(config: TrainConfig, need: int) -> None:
    free = memory.free_bytes()
    if jax.default_backend() != "cpu" or free is None or need <= free:
        return
    raise ConfigError(
        config,
        "this run needs at least {need} of memory, and {free} are free; lower {net.widths}, "
        "{data.batch} or {data.crop_px}, or give a larger {accumulate}",
        need=memory.show_gigabytes(need),
        free=memory.show_gigabytes(free),
    )
