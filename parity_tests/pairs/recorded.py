"""Pairs that are recorded by two processes, each with one framework, and compared in a third.

Each function is the work of one process, and imports no more than that process has.
"""

import json
import math
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from parity_tests.pairs.bugs import BUGS
from parity_tests.pairs.loading import draw_inputs, load_port
from unet_parity.pair import sizes

WIDTH = 4
OPTIONS: dict[str, Any] = {"seeds": 2, "steps": 2}
FOUND = {bug.name: bug for bug in BUGS}
ADDED = 'y = y + params["bias"]'


@dataclass(frozen=True)
class Case:
    """A port with a mistake, or without one.

    Attributes:
        name: of the mistake, or of the pair if there is none.
        pair: whose port it is.
        old: the right code, which stands once in the port's source.
        new: the wrong code.
    """

    name: str
    pair: str
    old: str = ""
    new: str = ""

    @property
    def file(self) -> str:
        """Return the name of its files, without a suffix."""
        return self.name.replace(" ", "_")


PAIRS = ("transformer", "residual", "pool")
CASES = (
    *(Case(pair, pair) for pair in PAIRS),
    *(
        Case(name, FOUND[name].pair, FOUND[name].old, FOUND[name].new)
        for name in (
            "layer norm with the eps of Flax", "last linear layer frozen",
            "biased running variance",
        )
    ),
    Case("bias frozen", "pool", ADDED, 'y = y + jax.lax.stop_gradient(params["bias"])'),
    Case("odd widths", "pool", ADDED, f"{ADDED} + 1e-9 * (x.shape[2] % 2)"),
    Case("refused height", "pool", ADDED, f"{ADDED}\n    assert x.shape[1] < 9"),
    Case(
        "one bit", "pool", ADDED,
        f"{ADDED}\n    y = y.at[0, 0].multiply(1 + 2.0**-23) if y.dtype == jnp.float32 else y",
    ),
    Case(
        "second step", "pool", ADDED,
        'moved = jnp.abs(params["bias"] - FIRST[0]).max()\n'
        '    y = y + params["bias"] * jnp.where((moved > 0) & (moved < 0.01), 1.001, 1)',
    ),
)  # fmt: skip


def record_references(folder: Path) -> None:
    """Record the reference of every pair, where only PyTorch is."""
    import unet_parity

    _try_same_sizes()
    for pair in PAIRS:
        unet_parity.record(
            folder / f"{pair}_reference.safetensors", _make_reference(pair),
            inputs=draw_inputs(pair, WIDTH, 0), **OPTIONS,
        )  # fmt: skip


def record_ports(folder: Path) -> None:
    """Record the port of every case, where only JAX is."""
    import unet_parity

    for case in CASES:
        port, convert = _load(case)
        unet_parity.record(
            folder / f"{case.file}.safetensors", port, convert=convert,
            like=folder / f"{case.pair}_reference.safetensors",
        )  # fmt: skip


def verify_pairs(folder: Path) -> None:
    """Compare every case in one process, and write the reports."""
    import unet_parity

    _try_same_sizes()
    for case in CASES:
        port, convert = _load(case)
        report = unet_parity.verify_pair(
            _make_reference(case.pair), port, inputs=draw_inputs(case.pair, WIDTH, 0),
            convert=convert, **OPTIONS,
        )  # fmt: skip
        (folder / f"{case.file}.json").write_text(json.dumps(report.to_json()))


def compare_recordings(folder: Path) -> None:
    """Compare the recordings of every case, where neither framework is, and write the reports."""
    from unet_parity.pair import record

    for case in CASES:
        report = record.compare_recordings(
            folder / f"{case.file}.safetensors", folder / f"{case.pair}_reference.safetensors"
        )
        (folder / f"{case.file}_recorded.json").write_text(json.dumps(report.to_json()))


def _try_same_sizes() -> None:
    """Have the sizes that are tried not depend on how quick the machine is."""
    sizes.LARGEST_S, sizes.MOST_VALUES = math.inf, 2**12


def _make_reference(pair: str) -> Any:
    import torch

    torch.manual_seed(0)
    return import_module(f"parity_tests.pairs.{pair}_torch").Theirs(WIDTH)


def _load(case: Case) -> tuple[Any, Any]:
    """Return the port and its converter."""
    module = load_port(case.pair, old=case.old, new=case.new)
    make_port = getattr(module, "make_port", None)
    port = getattr(module, "port", None) if make_port is None else make_port(WIDTH)
    return port, module.convert
