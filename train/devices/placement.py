"""Where the arrays of a run live: images over `data`, their rows over `rows`, weights everywhere.

Nothing here moves data: shardings say where it is, and XLA's partitioner derives from them the
exchange of the rows at the borders (halos) and the sums of the gradients.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unet_spec.environment import cpu_model, environment, usable_cores
from unet_spec.errors import ConfigError

from ..config import TrainConfig


@dataclass(frozen=True)
class Placement:
    """A `Placement` is the mesh of a run, and says which device holds what.

    Attributes:
        mesh: axes `data` and `rows`.
        shard_parameters: keep parts of weights and moments on the devices of `data`.
    """

    mesh: Mesh
    shard_parameters: bool = False

    @property
    def platform(self) -> str:
        """Return what the devices are: cpu, gpu or tpu."""
        return self.mesh.devices.flat[0].platform

    @property
    def images(self) -> NamedSharding:
        """Where whole images (b, ...) live, which augmentation turns and moves."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    @property
    def rows(self) -> NamedSharding:
        """Where the net's input (b, h, ...) lives: its rows are spread too."""
        return NamedSharding(self.mesh, PartitionSpec("data", "rows"))

    @property
    def everywhere(self) -> NamedSharding:
        """Where an array lives that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def state(self, shapes: Any) -> Any:
        """Return where each array of a state lives."""
        return jax.tree.map(lambda array: self._part(array.shape), shapes)

    def local(self, batch: int) -> slice:
        """Return which images of a batch this process has to make."""
        parts = self.images.addressable_devices_indices_map((batch,)).values()
        spans = [part[0].indices(batch) for part in parts if part is not None]
        return slice(min(start for start, *_ in spans), max(stop for _, stop, _ in spans))

    def put(self, tree: Any, *, batch: int) -> Any:
        """Return the whole batch on the devices; this process has made its own images of it."""
        return jax.tree.map(
            lambda array: jax.make_array_from_process_local_data(
                self.images, array, (batch, *array.shape[1:])
            ),
            tree,
        )

    def describe(self) -> str:
        """Return the mesh in words: all that the bits of a run depend on besides its config, so
        XLA's version and flags, and on a CPU its cores, among which it divides the sums."""
        data, rows = self.mesh.devices.shape
        first = self.mesh.devices.flat[0]
        device = first.device_kind
        if first.platform == "cpu":
            device = f"{cpu_model()}, {usable_cores()} cores"
        used, available = data * rows, jax.device_count()
        of_all = "" if used == available else f" of {available}"
        count = f"{used}{of_all} device{'s' if available > 1 else ''}"
        spread = "" if data * rows == 1 else f" (data {data} x rows {rows})"
        processes = "" if jax.process_count() == 1 else f" in {jax.process_count()} processes"
        sharded = ", parameters sharded" if self.shard_parameters else ""
        compiler = " ".join(filter(None, ["jaxlib", version("jaxlib"), os.getenv("XLA_FLAGS")]))
        return f"{count}{spread}{processes}: {device}{sharded}; {compiler}"

    def _part(self, shape: tuple[int, ...]) -> NamedSharding:
        """Where an array lives: parts of its longest axis that divides, or the whole everywhere."""
        count = self.mesh.shape["data"]
        divisible = [axis for axis, size in enumerate(shape) if size % count == 0 and size > 0]
        if not self.shard_parameters or not divisible:
            return self.everywhere
        axis = max(divisible, key=lambda axis: shape[axis])
        spec = ["data" if i == axis else None for i in range(len(shape))]
        return NamedSharding(self.mesh, PartitionSpec(*spec))


def make_placement(config: TrainConfig, devices: Sequence[Any] | None = None) -> Placement:
    """Return the mesh that a config asks for.

    Args:
        devices: all that there are, by default those of this run; or those of a topology, which
            only a compiler has.

    Raises:
        InputError: more devices than there are, or that do not divide the batch or the rows.
    """
    settings, devices = config.mesh, jax.devices() if devices is None else devices
    processes = len({device.process_index for device in devices})
    part = config.data.batch // config.accumulate
    data = settings.data or len(devices) // settings.rows
    if settings.data is None and processes == 1:  # the most that divide the batch
        data = max((n for n in range(1, data + 1) if part % n == 0), default=0)
    count = data * settings.rows
    if not 0 < count <= len(devices) or (processes > 1 and count < len(devices)):
        raise ConfigError(
            config,
            "{mesh.data=} x {mesh.rows=} does not fit the number of devices, which is {count}; "
            "change or leave out either",
            count=len(devices),
        )
    if part % data:
        raise ConfigError(
            config,
            "{devices} devices do not divide the {images} images of a step ({data.batch=} in "
            "{parts} parts); change {data.batch} or {mesh.data}",
            devices=data,
            images=part,
            parts=config.accumulate,
        )
    # every level must divide, or XLA pads the rows of some devices
    multiple = settings.rows << config.net.depth
    if settings.rows > 1 and config.data.crop_px % multiple:
        raise ConfigError(
            config,
            "{mesh.rows=} does not divide the rows of every level of {data.crop_px=}; use a "
            "multiple of {multiple}, or fewer rows",
            multiple=multiple,
        )
    if settings.rows == 2 and data > 1 and config.data.crop_px == multiple:
        raise ConfigError(
            config,
            "the lowest level of {data.crop_px=} has 2 rows, one for each part of {mesh.rows=}, "
            "and XLA computes wrong gradients there; use {least} or more, or 1 row",
            least=2 * multiple,
        )
    grid = np.array(devices[:count]).reshape(data, settings.rows)
    mesh = Mesh(grid, ("data", "rows"), axis_types=(AxisType.Auto, AxisType.Auto))
    return Placement(mesh, settings.shard_parameters)


def describe_environment() -> dict[str, str]:
    """Return the versions that a run depends on, and its kind of device."""
    return {**environment(), "device": jax.devices()[0].device_kind}
