"""What do the chips of a TPU exchange when the rows of an image are spread over them?

`python -m benchmarks.sharding_tpu` compiles the step of the preset `modern` with images of
2048 x 2048 for 16 chips, v5e:4x4, by TPU's own compiler. It needs the wheel libtpu, and no TPU. It
writes `results/sharding_tpu.json`.
"""

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from benchmarks.script import RESULTS, make_parser, write_result
from unet_spec.environment import environment
from unet_train.config import MODERN, TrainConfig
from unet_train.devices.collectives import COLLECTIVES
from unet_train.devices.placement import Placement
from unet_train.step import init_state, jit_steps, shapes_of_crops

COMMAND = "python -m benchmarks.sharding_tpu"
RESULT = RESULTS / "sharding_tpu.json"
TOPOLOGY, DATA, ROWS = "v5e:4x4", 4, 4
HALO_ROWS = 1
"""A 3x3 convolution needs one row of the neighbour; nothing in the net reaches further."""

_OPERATION = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """A `Collective` is an exchange between chips in a compiled step.

    Attributes:
        kind: one of `unet_train.devices.collectives.COLLECTIVES`.
        arrays: what a chip has of it: (type, shape) of each array.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def bytes(self) -> int:
        return sum(_item_bytes(kind) * int(np.prod(shape)) for kind, shape in self.arrays)


def sharding_tpu(*, widths: Sequence[int], crop_px: int) -> dict[str, Any]:
    """Compile the step and return what it exchanges and takes."""
    config = make_config(widths, crop_px)
    began = time.monotonic()
    program = compile_for_chips(config)
    compile_s = time.monotonic() - began
    memory, found = program.memory_analysis(), list_collectives(program.as_text())
    halos = [shape for c in found if c.kind == "collective-permute" for _, shape in c.arrays]
    return {
        "command": COMMAND,
        "topology": TOPOLOGY,
        "data": DATA,
        "rows": ROWS,
        "widths": list(widths),
        "crop_px": crop_px,
        "compile_s": round(compile_s, 1),
        "memory_gb": round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9, 2),
        "collectives": {
            kind: {
                "count": sum(c.kind == kind for c in found),
                "mb": round(sum(c.bytes for c in found if c.kind == kind) / 1e6, 1),
            }
            for kind in sorted({c.kind for c in found})
        },
        "largest_halo_rows": max(shape[1] for shape in halos),
        "other_than_halos_and_sums": explain_others(config, found),
        "environment": {**environment(), "libtpu": version("libtpu")},
    }


def make_config(widths: Sequence[int], crop_px: int) -> TrainConfig:
    """Return the preset `modern` with an image for each part of `data`."""
    return replace(
        MODERN,
        net=replace(MODERN.net, widths=tuple(widths)),
        data=replace(MODERN.data, crop_px=crop_px, batch=DATA),
    )


def compile_for_chips(config: TrainConfig) -> Any:
    """Compile the step for chips that are not here."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no metadata server of a cloud is asked
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nothing here holds a chip
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    jax.config.update("jax_platforms", "cpu")  # no chip is looked for here
    chips = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    grid: np.ndarray = np.array(chips).reshape(DATA, ROWS)
    placement = Placement(Mesh(grid, ("data", "rows"), axis_types=(AxisType.Auto,) * 2))
    shapes = jax.eval_shape(lambda: init_state(config))
    state = jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        shapes,
        placement.state(shapes),
    )
    steps: Any = jit_steps(config, placement)
    return steps.step.lower(state, shapes_of_crops(config, placement)).compile()


def list_collectives(text: str) -> list[Collective]:
    """List the exchanges between chips in the text of a compiled function."""
    found = []
    for shapes, kind in _OPERATION.findall(text):
        arrays = [
            (of, tuple(int(size) for size in sizes.split(",") if size))
            for of, sizes in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", shapes))
        ]
        # one that only starts names what it reads, what it writes, and two counters
        of_chip = arrays[:1] if kind == "collective-permute" else arrays
        found.append(Collective(kind, tuple(of_chip)))
    return found


def explain_others(config: TrainConfig, collectives: Sequence[Collective]) -> list[str]:
    """Name the exchanges that are neither a halo nor a sum of something that has no rows.

    A sum over chips is of gradients, of batch norm's moments, of the loss or of scores, in whatever
    shape the compiler adds them. What has the images and the rows of a map could be a map that is
    put together.
    """
    heights = {config.data.crop_px >> level for level in range(config.net.depth + 1)}
    heights |= {height // ROWS for height in heights}
    others = []
    for collective in collectives:
        shapes = [shape for _, shape in collective.arrays]
        if collective.kind == "collective-permute":
            is_known = all(len(shape) == 4 and shape[1] <= HALO_ROWS for shape in shapes)
        else:
            has_rows = any(
                len(shape) > 2 and shape[0] in (1, DATA) and shape[1] in heights for shape in shapes
            )
            is_known = collective.kind == "all-reduce" and not has_rows
        if not is_known:
            others.append(f"{collective.kind} of {', '.join(map(str, shapes))}")
    return others


def _item_bytes(kind: str) -> int:
    """Return the bytes of a number of XLA's type, such as bf16 or pred."""
    return int(re.sub(r"\D", "", kind) or 8) // 8


if __name__ == "__main__":
    parser = make_parser(__doc__, result=RESULT)
    parser.add_argument(
        "--widths", metavar="N", type=int, nargs="+", default=MODERN.net.widths,
        help="widths of the net's levels, by default those of the preset",
    )  # fmt: skip
    parser.add_argument(
        "--crop-px", metavar="N", type=int, default=2048, help="side of the images, by default 2048"
    )
    arguments = parser.parse_args()
    result = sharding_tpu(widths=arguments.widths, crop_px=arguments.crop_px)
    print(json.dumps(result["collectives"]))
    write_result(arguments.out, result)
