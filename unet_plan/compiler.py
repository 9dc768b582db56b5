"""The compiler of a chip that is not here: its devices, and the step compiled for them."""

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from unet_plan.chips import GIB, describe_gpu
from unet_plan.topology import Topology
from unet_spec import InputError
from unet_train.config import TrainConfig

WHEELS = {"tpu": ("libtpu", "plan"), "gpu": ("jax_plugins.xla_cuda12", "plan-gpu")}
"""The module that each platform's compiler is in, and the extra that installs it."""
HOST_DEVICES = "XLA_FLAGS=--xla_force_host_platform_device_count={}"
"""The setting with which a processor counts as so many devices."""
_LIBTPU = {
    # no metadata server is asked what this machine is: it is none of theirs
    "TPU_SKIP_MDS_QUERY": "1",
    # two plans may be made at once: nobody holds a chip
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
OPTIONS: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_autotune_level": 0}}
"""XLA's options by platform. For a GPU it would try algorithms on the device, which is not here."""
QUICK = "O0"
"""The level of optimisation at which a TPU's compiler places a program in memory, and takes a sixth
of the time: for `modern` the sum is 5 % less, because the code is shorter."""
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", re.IGNORECASE)
_TEMPORARIES = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")


@dataclass(frozen=True)
class Refusal:
    """A `Refusal` is what a compiler says of a program that its chip cannot hold.

    Attributes:
        needed_bytes: of each device.
        limit_bytes: what a program gets there.
        is_whole: it is all that the program needs; otherwise only what was found too large at
            once, and there is more.
    """

    needed_bytes: int
    limit_bytes: int
    is_whole: bool


@dataclass(frozen=True)
class Compiled:
    """A `Compiled` is a step for a topology.

    Attributes:
        arguments: shapes of the state and of the batch.
        outcome: JAX's compiled function, or why there is none.
        seconds: that tracing and compiling took.
    """

    arguments: tuple[Any, Any]
    outcome: Any
    seconds: float


def prepare_jax(processors: int = 1) -> None:
    """Start JAX with no devices but the processor, before anything else of it is called.

    Args:
        processors: the processor counts as so many devices.
    """
    os.environ |= {name: value for name, value in _LIBTPU.items() if name not in os.environ}
    with quiet_stderr():  # from the first import on
        import jax

        jax.config.update("jax_platforms", "cpu")
        with contextlib.suppress(RuntimeError):  # JAX runs already, and has as many as it has
            jax.config.update("jax_num_cpu_devices", processors)
        jax.devices()


def list_devices(topology: Topology) -> list[Any]:
    """Return the devices of a topology, which only a compiler has.

    Raises:
        InputError: the compiler is not installed, or knows no such topology.
    """
    import jax

    chip = topology.chip
    if chip.platform == "cpu":
        return _list_processors(topology.devices)
    _check_wheel(topology)
    from jax.experimental import topologies

    try:
        with quiet_stderr():
            if chip.platform == "gpu":
                per_host = topology.chips // topology.hosts
                description = topologies.get_topology_desc(
                    "",
                    platform="cuda",
                    target_config=describe_gpu(chip),
                    topology=f"1x{topology.hosts}x{per_host}",
                )
            else:
                bounds = (*topology.host_sides, 1)[:3]
                description = topologies.get_topology_desc(
                    topology.name,
                    platform="tpu",
                    chip_config_name=chip.config_name,
                    chips_per_host_bounds=list(bounds),
                )
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--topology {topology.name}: the compiler refuses it ({reason}); name another"
        ) from error
    return list(description.devices)


def compile_step(config: TrainConfig, placement: Any, *, quick: bool = False) -> Compiled:
    """Compile the step that `unet train` runs, for the devices of a placement.

    Args:
        quick: for a TPU, do not make it fast: its memory is known sooner, within a few percent.
    """
    import jax

    from unet_train.step import lower_step

    start = time.monotonic()
    with quiet_stderr():
        lowered = lower_step(config, placement)
    arguments, _ = lowered.args_info
    outcome: Any
    try:
        level = _optimise(QUICK) if quick and placement.platform == "tpu" else nullcontext()
        with quiet_stderr(), level:
            outcome = lowered.compile(compiler_options=OPTIONS.get(placement.platform))
    except jax.errors.JaxRuntimeError as error:
        outcome = parse_refusal(str(error))
        if outcome is None:
            raise
    return Compiled(arguments, outcome, time.monotonic() - start)


@contextmanager
def _optimise(level: str) -> Iterator[None]:
    """Compile at a level of optimisation in the block."""
    import jax

    before = jax.config.values["jax_optimization_level"]
    jax.config.update("jax_optimization_level", level)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def parse_refusal(text: str) -> Refusal | None:
    """Return what a compiler's error says of memory, or None where it says something else.

    >>> parse_refusal("Ran out of memory ... Used 24.00G of 16.00G hbm.").needed_bytes // GIB
    24
    """
    whole = _USED.search(text)
    match = whole or _TEMPORARIES.search(text)
    if match is None:
        return None
    needed, unit, limit, limit_unit = match.groups()
    return Refusal(
        int(float(needed) * _UNITS[unit.upper()]),
        int(float(limit) * _UNITS[limit_unit.upper()]),
        is_whole=whole is not None,
    )


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep what libraries in C++ write to stderr in the block, and show it only if that fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            yield
        except Exception as error:
            if parse_refusal(str(error)) is None:
                noise.seek(0)
                os.write(kept, noise.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _check_wheel(topology: Topology) -> None:
    module, extra = WHEELS[topology.chip.platform]
    if not _is_installed(module):
        raise InputError(
            f"--topology {topology.name}: the compiler of {topology.chip.name} is not installed; "
            f"install it: pip install 'unet-twins[{extra}]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def _list_processors(count: int) -> list[Any]:
    """Return so many devices of this machine's processor."""
    import jax

    devices = jax.devices("cpu")
    if len(devices) < count:
        raise InputError(
            f"--topology cpu:{count}: this process has {len(devices)} devices; ask for no more, or "
            f"start it with {HOST_DEVICES.format(count)}"
        )
    return devices[:count]
