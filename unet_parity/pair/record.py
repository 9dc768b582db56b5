"""`record`: one side of a pair, asked on its own machine all that a comparison asks; and the
comparison of two recordings, which needs neither framework."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unet_parity.pair.integers import find_exact
from unet_parity.pair.numbers import draw_numbers, draw_size, draw_tensors
from unet_parity.pair.passes import Arrays
from unet_parity.pair.procedure import (
    RECIPE,
    SEEDS,
    STEPS,
    check_counts,
    compare_pair,
    draw_batches,
    hash_pair,
    make_comparers,
    run_given,
)
from unet_parity.pair.recorded_sides import Memory, RecordedPort, RecordedReference
from unet_parity.pair.recording_file import Recording, Terms, read_recording, write_recording
from unet_parity.pair.report import PairReport
from unet_parity.pair.sides import PortSide, ReferenceSide
from unet_spec import InputError
from unet_spec.environment import environment
from unet_spec.files import check_place
from unet_spec.recipe import Recipe

REFERENCE, PORT = "reference", "port"
NO_GUESS = (
    "In recordings a wrong value is not compared with known mistakes: that takes both frameworks "
    "in one process."
)


def record(
    path: Path | str,
    net: Any = None,
    *,
    inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray] | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    recipe: Recipe | None = None,
    like: Path | str | None = None,
    params: Any = None,
    convert: Callable[[Any], Any] | None = None,
    names: Mapping[str, str] | None = None,
    channels_last: bool | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Record one side of a pair in a file, on a machine that has its framework alone.

    The torch module is recorded first, with `inputs`. The port is then recorded with `like`, the
    recording of the module, on the same numbers. `unet verify --recorded` compares the two.

    Args:
        path: of the new file, NAME.safetensors.
        net: the torch module; or the port, as `verify_pair` takes it.
        inputs: of the module, as `verify_pair` takes them.
        seeds: of the values, 3 if nothing is said; the first is the module's own values.
        steps: of training, 3 if nothing is said.
        recipe: of these steps.
        like: the recording of the module, for a port.
        params: of the port, as `verify_pair` takes them; likewise `convert`, `names` and
            `channels_last`.
        overwrite: replace a file that is there already.
        say: is called with a line when each part begins.

    Raises:
        InputError: one of these cannot be used.
    """
    path = Path(path)
    _check_path(path, overwrite=overwrite)
    of_port = {
        "params": params, "convert": convert, "names": names, "channels_last": channels_last,
    }  # fmt: skip
    of_reference = {"inputs": inputs, "seeds": seeds, "steps": steps, "recipe": recipe}
    others = of_reference if like is not None else of_port
    wrong = next((name for name, value in others.items() if value is not None), None)
    if wrong is not None and like is not None:
        raise InputError(f"{wrong} stands in the recording that like names; leave it out")
    if wrong is not None:
        raise InputError(f"{wrong} is of a port; give like too, the recording of its reference")
    if like is not None:
        _record_port(path, Path(like), net, of_port, say=say)
        return
    if inputs is None:
        raise InputError(
            "a torch module is recorded with inputs, and a port with like; give either"
        )
    _record_reference(
        path, net, inputs,
        seeds=SEEDS if seeds is None else seeds, steps=STEPS if steps is None else steps,
        recipe=recipe or RECIPE, say=say,
    )  # fmt: skip


def _check_path(path: Path, *, overwrite: bool) -> None:
    check_place(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: the name of a recording ends in .safetensors")
    if path.exists() and not overwrite:
        raise InputError(
            f"{path}: the file exists already; name another, or replace it with overwrite=True"
        )


def _record_reference(
    path: Path,
    module: Any,
    inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray],
    *,
    seeds: int,
    steps: int,
    recipe: Recipe,
    say: Callable[[str], None],
) -> None:
    """Ask a torch module all that may be asked of it, whatever its port does."""
    from torch import nn

    from unet_parity.pair.reference import open_reference
    from unet_parity.precision import describe_torch, use_full_precision

    if not isinstance(module, nn.Module):
        raise InputError(
            f"the net is a {type(module).__name__}; give a torch.nn.Module with inputs, or a port "
            "with like"
        )
    check_counts(seeds, steps)
    use_full_precision()
    reference, arrays = open_reference(module, inputs)
    memory = Memory[ReferenceSide](path, {"inputs": arrays}, reference)
    side = RecordedReference(memory)
    outputs = tuple(run_given(side, arrays).values())
    for train in (False, True) if side.has_statistics else (False,):
        mode = "training" if train else "inference"
        say(f"{mode}: float64 and float32, forward and gradients, {seeds} times")
        for seed in range(seeds):
            numbers = draw_numbers(side.state, arrays, outputs, seed=seed)
            for dtype in ("float64", "float32"):
                side.run(numbers, dtype=dtype, train=train)
            side.log_forward(numbers, train=train)
            side.log_backward(numbers, train=train)
            side.count_near_ties(numbers, train=train)
        if steps and side.trained:
            say(f"{mode}: {steps} steps in float64")
            batches = draw_batches(arrays, outputs, steps)
            tensors = draw_tensors(side.state, seed=1)
            side.take_steps(tensors, batches, recipe.for_steps(steps), train=train)
    for name in side.state.keys() - set(side.trained):
        side.find_momentum(name)
    say("other sizes: float64 and float32, forward")
    _record_sizes(side, arrays)
    say("exact proof: integers")
    numbers, check = find_exact(side, arrays, outputs)
    if check.is_exact:
        side.run(numbers, dtype="float32", train=False)
    terms = Terms(seeds, steps, recipe, hash_pair(side, arrays))
    machine = {**environment(), **describe_torch()}
    write_recording(Recording(path, REFERENCE, terms, machine, "", memory.answers))


def _record_sizes(side: RecordedReference, inputs: Arrays) -> None:
    for shapes in side.list_sizes(draw_tensors(side.state, seed=1), inputs):
        numbers = draw_size(side.state, inputs, shapes)
        for dtype in ("float64", "float32"):
            side.run_forward(numbers, dtype=dtype, train=False)
        if side.can_log(numbers):
            side.log_forward(numbers, train=False)


def _record_port(
    path: Path, like: Path, port: Any, options: Mapping[str, Any], *, say: Callable[[str], None]
) -> None:
    """Compare a port with the recording of its reference, and keep what it answers."""
    from unet_parity.pair.matched_port import match_port
    from unet_parity.precision import describe_jax

    recording = read_recording(like)
    if recording.side != REFERENCE:
        raise InputError(f"{like}: the recording of a port; give like that of its reference")
    reference, inputs = _open_reference(recording)
    say("matching: which value of the port is which of the reference")
    outputs = run_given(reference, inputs)
    matched = match_port(reference, port, inputs, outputs, **options)
    memory = Memory[PortSide](path, {}, matched)
    _compare(recording, RecordedPort(memory), environment={}, say=say)
    machine = {**environment(), **describe_jax()}
    write_recording(
        Recording(path, PORT, recording.terms, machine, recording.sha256, memory.answers)
    )


def compare_recordings(
    first: Path | str, second: Path | str, *, say: Callable[[str], None] = lambda text: None
) -> PairReport:
    """Compare the recordings of a reference and of its port, in any order.

    The report is that of `verify_pair` on the two, without the guess at what a wrong value looks
    like.

    Raises:
        InputError: one of them is no recording, or they do not belong together.
    """
    reference, port = _sort(read_recording(Path(first)), read_recording(Path(second)))
    side = RecordedPort(Memory(port.path, port.answers, None))
    machines = _join(reference.environment, port.environment)
    report = _compare(reference, side, environment=machines, say=say)
    blames = [*(c.blame for c in report.comparisons), *(s.blame for s in report.sizes)]
    if any(blame is not None and not blame.looks_like for blame in blames):
        report = replace(report, not_compared=f"{report.not_compared} {NO_GUESS}")
    return report


def _compare(
    recording: Recording,
    port: PortSide,
    *,
    environment: Mapping[str, str],
    say: Callable[[str], None],
) -> PairReport:
    """Compare a port with the recording of its reference."""
    reference, inputs = _open_reference(recording)
    outputs = tuple(run_given(reference, inputs).values())
    terms = recording.terms
    return compare_pair(
        make_comparers(reference, port), inputs, outputs, seeds=terms.seeds, steps=terms.steps,
        recipe=terms.recipe, environment=environment, say=say,
    )  # fmt: skip


def _open_reference(recording: Recording) -> tuple[RecordedReference, Arrays]:
    """Return the reference of a recording, and its inputs."""
    memory = Memory[ReferenceSide](recording.path, recording.answers, None)
    return RecordedReference(memory), recording.answers["inputs"]


def _sort(first: Recording, second: Recording) -> tuple[Recording, Recording]:
    """Return the recording of the reference, and that of its port.

    Raises:
        InputError: they do not belong together.
    """
    if first.side == second.side:
        raise InputError(
            f"{first.path} and {second.path} are both recordings of a {first.side}; give one of "
            f"a {REFERENCE} and one of its {PORT}"
        )
    reference, port = (first, second) if first.side == REFERENCE else (second, first)
    for what, name in (("weights", "tensors"), ("inputs", "inputs")):
        ours, theirs = (one.terms.hashes[name] for one in (port, reference))
        if ours != theirs:
            raise InputError(
                f"{port.path} was recorded for other {what} than those of {reference.path} "
                f"(sha256 {ours[:12]} and {theirs[:12]}); record the port again with like="
                f'"{reference.path}"'
            )
    for what in ("seeds", "steps", "recipe"):
        ours, theirs = (getattr(one.terms, what) for one in (port, reference))
        if ours != theirs:
            raise InputError(
                f"{port.path} was recorded with {what}={ours}, and {reference.path} with {theirs}; "
                f'record the port again with like="{reference.path}"'
            )
    if port.like != reference.sha256:
        raise InputError(
            f"{port.path} was recorded like another recording of the same reference than "
            f'{reference.path}; record the port again with like="{reference.path}"'
        )
    return reference, port


def _join(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    """Return versions and devices of both machines, both values where these differ."""
    joined = {**theirs, **ours}
    for name, value in ours.items():
        other = theirs.get(name, value)
        if other != value:
            joined[name] = f"{value} ({REFERENCE}), {other} ({PORT})"
    return joined
