"""`verify_pair`: are a torch module and its port to JAX the same, and if not, where?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from unet_parity import precision
from unet_parity.pair.comparison import PairComparer
from unet_parity.pair.matched_port import match_port
from unet_parity.pair.passes import Arrays
from unet_parity.pair.procedure import (
    RECIPE,
    SEEDS,
    STEPS,
    check_counts,
    compare_pair,
    make_comparers,
    run_given,
)
from unet_parity.pair.reference import open_reference
from unet_parity.pair.report import PairReport
from unet_spec.environment import environment
from unet_spec.recipe import Recipe


def verify_pair(
    reference: nn.Module,
    port: Any = None,
    *,
    inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray],
    params: Any = None,
    convert: Callable[[Any], Any] | None = None,
    names: Mapping[str, str] | None = None,
    channels_last: bool | None = None,
    seeds: int = SEEDS,
    steps: int = STEPS,
    recipe: Recipe = RECIPE,
    say: Callable[[str], None] = lambda text: None,
) -> PairReport:
    """Say whether a torch module and its port to JAX compute the same, and if not, where.

    Both are given the same values: those of the reference, and for each further seed values drawn
    around them, so that no bias of 0 and no weight of 1 hides a mistake.

    Args:
        reference: any torch module whose outputs are tensors, or lists or dicts of them.
        port: a function of (params, *inputs), an `nnx.Module`, or a linen module; left out where
            `convert` gives an `nnx.Module`.
        inputs: in the reference's layout, in the order of its arguments.
        params: of the port, converted from the reference's.
        convert: returns the port's params (or its `nnx.Module`) for the reference's `state_dict`.
            With it nothing is guessed of layouts and names.
        names: of tensors or modules in the reference, and the paths in the port, where there is no
            `convert` and they are not alike.
        channels_last: the port takes images as (b, h, w, c); None finds out by the shapes.
        seeds: of the values; the first is the reference's own values.
        steps: of training, side by side.
        recipe: of these steps.
        say: is called with a line when each part begins.

    Raises:
        InputError: one of them does not run, or they cannot be matched.
    """
    check_counts(seeds, steps)
    precision.use_full_precision()
    say("matching: which value of the port is which of the reference")
    comparers, arrays, outputs = prepare_pair(
        reference, port, inputs=inputs, params=params, convert=convert, names=names,
        channels_last=channels_last,
    )  # fmt: skip
    return compare_pair(
        comparers, arrays, outputs, seeds=seeds, steps=steps, recipe=recipe, say=say,
        environment={**environment(), **precision.describe_precision()},
    )  # fmt: skip


def prepare_pair(
    reference: nn.Module,
    port: Any,
    *,
    inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray],
    params: Any = None,
    convert: Callable[[Any], Any] | None = None,
    names: Mapping[str, str] | None = None,
    channels_last: bool | None = None,
) -> tuple[list[PairComparer], Arrays, Arrays]:
    """Return the comparers of a pair, one for each mode, its inputs, and the reference's outputs.

    The arguments are those of `verify_pair`.

    Raises:
        InputError: one side does not run, or they cannot be matched.
    """
    origin, arrays = open_reference(reference, inputs)
    outputs = run_given(origin, arrays)
    matched = match_port(
        origin, port, arrays, outputs, params=params, convert=convert, names=names,
        channels_last=channels_last,
    )  # fmt: skip
    return make_comparers(origin, matched), arrays, tuple(outputs.values())
