"""Facts of a net that leave no trace in its tensors, found by what the original gave for an image.

The order of a concatenation, padding, the kind of interpolation, the slope of an activation, the
number of groups, a last sigmoid: over all of them one combination gives the recorded output, and
the others miss it by far more than rounding.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from unet_spec import InputError, UNetConfig, geometry
from unet_spec.families import OWN
from unet_spec.judgement import judge_output
from unet_spec.outputs import apply_output
from unet_spec.parameters import Tensors
from unet_spec.structure import Structure, rename, settle
from unet_torch.model import UNet, Up

SLOPES = (0.01, 0.1, 0.2, 0.05, 0.3, 0.02, 0.15, 0.25)  # of LeakyReLU: torch's, then others
EXACT = 1e-9  # of the scale, between two float64 runs of one net
FEWEST_FINALISTS = 4
ROUGH = 1e-5  # of the scale: what float32 hides in the first comparison
LOOKED_UP: dict[str, Any] = {
    name: getattr(UNetConfig(), name) for name in ("concat", "fit", "output", "negative_slope")
}
"""Fields that a net looks up when it is called, with what they are in one that nets share."""
SMALL_PIXELS = 64 * 64
SECONDS_OF_SILENCE = 10


@dataclass(frozen=True)
class Pair:
    """An input and what the original gave for it.

    Attributes:
        x: (b, in_channels, h, w), float32.
        y: (b, classes, h', w').
        source: where it is from, for sentences.
        is_exact: the original was run here, in float64.
        in_training: the original was in training mode, so batch norm took the batch's statistics.
    """

    x: np.ndarray
    y: np.ndarray
    source: str
    is_exact: bool = False
    in_training: bool = False


@dataclass(frozen=True)
class Candidate:
    """A `Candidate` is a net and how far it is from the recorded outputs.

    Attributes:
        structure: the net, with a value for every hidden fact.
        error: root mean square of the difference, over the scale of the output: the largest of
            all pairs.
        allowed: what rounding explains, likewise.
        own_error: error of the net here in float32, likewise.
    """

    structure: Structure
    error: float = math.inf
    allowed: float = 0.0
    own_error: float = 0.0

    @property
    def config(self) -> UNetConfig:
        return self.structure.config

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        best: the combination that gives the recorded outputs, or, if none does, the closest.
        count: number of combinations.
        next_error: error of the closest other one; infinite where there is none.
        varied: names of the fields that were varied.
        left_open: those that the outputs do not tell, so that a repository's convention did.
    """

    best: Candidate
    count: int
    next_error: float
    varied: tuple[str, ...]
    left_open: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return what the fields are, in words."""
        return describe_fields(self.best.config, self.varied)


def describe_fields(config: UNetConfig, fields: Sequence[str]) -> str:
    """Return fields with their values, in words."""
    words = [f"{field}={getattr(config, field)}" for field in fields]
    if "activation" in fields and config.activation == "leaky_relu":
        words.append(f"negative_slope={config.negative_slope}")
    if "norm" in fields and config.norm == "group":
        words.append(f"groups={config.groups}")
    return ", ".join(words)


def search(
    structures: Sequence[Structure],
    tensors: Tensors,
    pairs: Sequence[Pair],
    *,
    fixed: frozenset[str] = frozenset(),
    say: Callable[[str], None] = lambda text: None,
) -> Search:
    """Search all combinations of hidden facts for the one that gives the recorded outputs.

    Args:
        structures: the net as far as its tensors show it; several where they leave it open which
            block stands where. What the outputs leave open, its repository's convention settles.
        tensors: by their names.
        fixed: fields that are not varied.
        say: is called with a line now and then.

    Raises:
        InputError: outputs of a size that no combination gives, or that several combinations
            give.
    """
    first = structures[0]
    if all(_is_even(first.config, pair) for pair in pairs):
        fixed |= {"fit"}  # it says nothing of sizes that the pools halve
    varied = tuple(field for field in first.unshown if field not in fixed)
    candidates = [
        Candidate(net)
        for structure in structures
        for net in list_combinations(structure, varied)
        if all(_fits_size(net.config, pair) for pair in pairs)
    ]
    if not candidates:
        raise InputError(_explain_sizes(first.config, pairs[0]))
    say(f"comparing {len(candidates)} combinations of {', '.join(varied)} with {pairs[0].source}")
    with _few_threads(pairs[0]):
        screened = _say_progress(_screen(candidates, tensors, pairs[0]), len(candidates), say)
        measured = sorted(screened, key=lambda candidate: candidate.error)
        count = _count_finalists(measured)
        finalists = [_judge(candidate, tensors, pairs) for candidate in measured[:count]]
    finalists.sort(key=lambda candidate: candidate.error)
    holding = [candidate for candidate in finalists if candidate.holds]
    left_open: tuple[str, ...] = ()
    if len(holding) > 1:
        left_open = _list_differences(holding, varied)
        conventional = [one for one in holding if _is_conventional(one, first)]
        if not conventional:
            listed = " and ".join(describe_fields(one.config, left_open) for one in holding)
            raise InputError(
                f"{pairs[0].source}: it does not tell {listed or 'equal blocks'} apart; record a "
                "larger image, with more in it"
            )
        holding = conventional
    best = holding[0] if holding else finalists[0]
    others = [one.error for one in (*finalists, *measured[count:]) if not one.holds]
    next_error = min((error for error in others if error != best.error), default=math.inf)
    return Search(best, len(candidates), next_error, varied, left_open)


def find_nearest_by_layers(
    structure: Structure,
    tensors: Tensors,
    fields: Sequence[str],
    x: np.ndarray,
    layers: Mapping[str, np.ndarray],
) -> Structure:
    """Return the combination in which the most layers give what the original's give.

    Where none gives the original's output, the one that comes nearest to it does so by chance; this
    one has the original's facts up to the layer at which they part.

    Args:
        fields: those that are varied.
        x: the input (b, in_channels, h, w).
        layers: by our paths, the float64 outputs of the original's convolutions.
    """
    best, most = structure, -1
    for net in list_combinations(structure, [field for field in fields if field != "output"]):
        if not all(geometry.is_legal(net.config, size) for size in x.shape[2:]):
            continue
        outputs: dict[str, np.ndarray] = {}
        run(net.config, rename(net, tensors), x, "float64", watch=(tuple(layers), outputs))
        count = sum(
            outputs[path].shape == layer.shape and _relative(outputs[path], layer) < EXACT
            for path, layer in layers.items()
        )
        if count > most:
            best, most = net, count
    return best


def list_combinations(structure: Structure, fields: Sequence[str]) -> Iterator[Structure]:
    """Return the net with every combination of values of some fields, its own first."""
    options = [_list_options(structure.config, field) for field in fields]
    for values in product(*options):
        changes = {name: value for value in values for name, value in value.items()}
        try:
            yield settle(structure, **changes)
        except InputError:  # values that exclude one another
            continue


def _is_conventional(candidate: Candidate, first: Structure) -> bool:
    """Say whether a candidate is what the code of a well-known repository does."""
    if first.family is None or first.family is OWN:  # our own default is no fact about a file
        return False
    return candidate.config == first.config and candidate.structure.names == first.names


def _count_finalists(measured: Sequence[Candidate]) -> int:
    """Count the candidates that are measured in float64: a few, and all that one image in float32
    does not tell from the nearest."""
    nearest = measured[0].error
    close = sum(one.error <= 10 * nearest + ROUGH for one in measured)
    return max(close, FEWEST_FINALISTS)


def _list_differences(candidates: Sequence[Candidate], fields: Sequence[str]) -> tuple[str, ...]:
    """Name the fields in which candidates differ."""
    configs = [candidate.config for candidate in candidates]
    return tuple(name for name in fields if len({getattr(c, name) for c in configs}) > 1)


def _list_options(config: UNetConfig, field: str) -> list[dict[str, Any]]:
    own: dict[str, Any] = {field: getattr(config, field)}
    match field:
        case "activation":
            own["negative_slope"] = config.negative_slope
            relu = {"activation": "relu", "negative_slope": UNetConfig().negative_slope}
            options = [relu, *({"activation": "leaky_relu", "negative_slope": s} for s in SLOPES)]
            if config.activation == "relu":
                own = relu
        case "norm":
            own["groups"] = config.groups
            instance = {"norm": "instance", "groups": UNetConfig().groups}
            options = [instance, *({"norm": "group", "groups": n} for n in _list_groups(config))]
            if config.norm == "instance":
                own = instance
        case "groups":
            options = [{field: number} for number in _list_groups(config)]
        case "negative_slope":
            options = [{field: slope} for slope in SLOPES]
        case "output":
            options = [{field: "logits"}, {field: "sigmoid"}]
            if config.classes > 1:
                options.append({field: "softmax"})
        case _:
            values: Mapping[str, tuple[str, ...]] = {
                "concat": ("up_first", "skip_first"),
                "padding": ("same", "valid"),
                "fit": ("error", "zeros", "edge", "crop"),
                "norm_place": ("before", "after"),
                "up": ("bilinear", "bilinear_aligned", "nearest"),
            }
            options = [{field: value} for value in values[field]]
    return [own, *(option for option in options if option != own)]


def _is_even(config: UNetConfig, pair: Pair) -> bool:
    """Say whether every pool halves the pair's size, with either padding."""
    both = (replace(config, padding=padding, fit="error") for padding in ("same", "valid"))
    return any(_fits_size(one, pair) for one in both)


def _list_groups(config: UNetConfig) -> list[int]:
    """Return the numbers of groups that divide the channels of every norm."""
    common = math.gcd(*config.widths, *(width for up in config.ups for width in up[3:]))
    return [number for number in range(1, common + 1) if common % number == 0]


@contextmanager
def _few_threads(pair: Pair) -> Iterator[None]:
    """Compute small images in one thread: several wait for one another, on a busy machine a
    hundred times as long as they compute."""
    threads = torch.get_num_threads()
    if pair.x[0, 0].size <= SMALL_PIXELS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fits_size(config: UNetConfig, pair: Pair) -> bool:
    """Say whether the net takes the input's size, and gives the output's."""
    sizes = zip(pair.x.shape[2:], pair.y.shape[2:], strict=True)
    return all(
        geometry.is_legal(config, before) and geometry.output_size(config, before) == after
        for before, after in sizes
    )


def _screen(candidates: Sequence[Candidate], tensors: Tensors, pair: Pair) -> Iterator[Candidate]:
    """Measure candidates roughly: in float32, by the first image. Nets that differ only in what
    comes after the logits are run once."""
    logits: dict[Any, np.ndarray] = {}
    x, y = pair.x[:1], pair.y[:1].astype(np.float64)
    for candidate in candidates:
        net = candidate.structure
        key = replace(net.config, output="logits"), net.names
        if key not in logits:
            logits[key] = run(net.config, rename(net, tensors), x, "float32")
        output = apply_output(net.config, logits[key].astype(np.float64), axis=1)
        error = _relative(output, y)
        yield replace(candidate, error=error if math.isfinite(error) else math.inf)


def _say_progress(
    candidates: Iterator[Candidate], count: int, say: Callable[[str], None]
) -> Iterator[Candidate]:
    last = time.monotonic()
    for number, candidate in enumerate(candidates, start=1):
        if time.monotonic() - last > SECONDS_OF_SILENCE:
            say(f"{number} of {count}")
            last = time.monotonic()
        yield candidate


def _judge(candidate: Candidate, tensors: Tensors, pairs: Sequence[Pair]) -> Candidate:
    """Measure a candidate in float64, by all pairs."""
    judged = []
    for pair in pairs:
        outputs = partial(_give_output, candidate.structure, tensors, pair)
        judgement = judge_output(pair.y, outputs("float64"), partial(_run_one, outputs))
        scale = judgement.scale or 1.0
        allowed = EXACT if pair.is_exact else judgement.allowed / scale
        judged.append((judgement.error / scale, allowed, judgement.nearest / scale))
    error, allowed, own = max(judged, key=lambda one: one[0] / one[1])
    return replace(candidate, error=error, allowed=allowed, own_error=own)


def _give_output(net: Structure, tensors: Tensors, pair: Pair, dtype: str) -> np.ndarray:
    logits = run(net.config, rename(net, tensors), pair.x, dtype, in_training=pair.in_training)
    return apply_output(net.config, logits, axis=1)


def _run_one(run: Callable[[str], np.ndarray], dtype: str) -> list[np.ndarray]:
    return [run(dtype)]


@torch.no_grad()
def run(
    config: UNetConfig,
    tensors: Tensors,
    x: np.ndarray,
    dtype: str,
    *,
    in_training: bool = False,
    watch: tuple[Sequence[str], dict[str, np.ndarray]] = ((), {}),
) -> np.ndarray:
    """Return the logits (b, classes, h', w') that our net gives, without dropout.

    Args:
        watch: paths of modules, and a dict that gets their outputs.
    """
    kind = getattr(torch, dtype)
    state = {
        # a copy: in training batch norm writes into its statistics
        name: torch.tensor(np.asarray(t), dtype=kind if t.dtype.kind == "f" else None)
        for name, t in tensors.items()
    }
    model = _build_skeleton(config).train(in_training)
    handles = watch_modules(model, dict(zip(watch[0], watch[0], strict=True)), watch[1])
    try:
        y = functional_call(model, state, torch.from_numpy(x).to(kind), strict=True)
    finally:
        for handle in handles:
            handle.remove()
    return (y if dtype in ("float32", "float64") else y.double()).numpy()


def _build_skeleton(config: UNetConfig) -> UNet:
    """Return a net without values.

    To build one takes longer than to run a small one. So nets share it that differ only in what
    they look up when they are called.
    """
    model = _build_layers(replace(config, **LOOKED_UP))
    for module in model.modules():
        if isinstance(module, UNet | Up):
            module.config = config
        if isinstance(module, nn.LeakyReLU):
            module.negative_slope = config.negative_slope
    return model


@cache
def _build_layers(config: UNetConfig) -> UNet:
    with torch.device("meta"):
        return UNet(config)


def watch_modules(
    model: nn.Module, paths: Mapping[str, str], outputs: dict[str, np.ndarray]
) -> list[RemovableHandle]:
    """Let modules write their outputs into a dict when they run, until the handles are removed.

    Args:
        paths: the name in the dict by the module's path.
    """

    def write(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs[name] = output.detach().clone().numpy()

    return [
        model.get_submodule(path).register_forward_hook(partial(write, name))
        for path, name in paths.items()
    ]


def _relative(output: np.ndarray, y: np.ndarray) -> float:
    scale = float(np.sqrt(np.mean(np.square(y)))) or 1.0
    return float(np.sqrt(np.mean(np.square(output - y)))) / scale


def _explain_sizes(config: UNetConfig, pair: Pair) -> str:
    height, width = pair.x.shape[2:]
    return (
        f"{pair.source}: x is {height}x{width} pixels and y {pair.y.shape[2]}x{pair.y.shape[3]}, "
        f"which no padding of a U-Net of {config.depth} pools gives; record its own output for "
        "that input, whole"
    )
