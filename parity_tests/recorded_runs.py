"""Training runs of small nets in both frameworks, recorded; and how far right replays are apart.

`python -m parity_tests.recorded_runs` measures the ratios of which `FACTOR` in
`unet_parity.runs.distances` speaks. It takes some minutes.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import unet_jax.recipe
import unet_torch.recipe
from parity_tests.pairs import table
from parity_tests.pairs.catalogue import PAIRS
from parity_tests.pairs.loading import draw_inputs
from unet_jax.recipe import make_update
from unet_parity import RunRecorder, compare_runs
from unet_parity.jax_twin import jax_arrays
from unet_parity.oracle import random_tensors
from unet_parity.pair.matched_port import MatchedPort
from unet_parity.pair.port_run import name_arrays
from unet_parity.pair.reference import Reference, call_reference, to_torch
from unet_parity.runs.distances import FACTOR
from unet_parity.torch_twin import torch_model
from unet_parity.training import jax_batch, jax_gradients, random_batch, torch_loss
from unet_spec import UNetConfig
from unet_spec.recipe import Optimizer, Recipe, Schedule

NETS = {
    "plain": UNetConfig(in_channels=2, classes=3, widths=(5, 7)),
    "batch norm": UNetConfig(in_channels=2, classes=3, widths=(5, 7), norm="batch"),
    "group norm": UNetConfig(in_channels=2, classes=3, widths=(6, 8), norm="group", groups=2),
}
RECIPES = {
    "sgd": Recipe(Optimizer("sgd", lr=0.05, momentum=0.9, weight_decay=1e-3),
                  Schedule("step", step_size=6, gamma=0.5)),
    "adam": Recipe(Optimizer("adam", lr=3e-3), Schedule("cosine")),
    "adamw": Recipe(Optimizer("adamw", lr=3e-3, weight_decay=0.05),
                    Schedule("one_cycle", max_lr=0.01)),
}  # fmt: skip
STEPS = 25
FUSED = "lstm"
"""The pair whose port joins tensors of the reference, so no norm of them can be compared."""
Gradients = dict[str, Any]
Change = Callable[[int, Any, Gradients], tuple[Any, Gradients]]
"""A bug: it takes the number of a step, from 1, its loss and its gradients, and gives others."""


class UNetRuns:
    """The training of a U-Net on random images, in both frameworks from the same weights."""

    def __init__(
        self,
        config: UNetConfig,
        *,
        seed: int = 0,
        steps: int = STEPS,
        size: tuple[int, int] | None = None,
        dtype: str = "float32",
    ):
        self.config, self.steps, self.dtype = config, steps, dtype
        self.tensors = random_tensors(config, seed=seed)
        self._data = [
            random_batch(config, seed=seed, step=step, size=size) for step in range(steps)
        ]
        self._differentiate = jax_gradients(config, dtype)

    def record_torch(self, path: Path, recipe: Recipe, *, is_reversed: bool = False) -> Path:
        """Record a run in torch.

        Args:
            is_reversed: take the images of each batch in the reverse order.
        """
        model = torch_model(self.config, self.tensors, dtype=self.dtype, train=True)
        batches = [batch.reverse() if is_reversed else batch for batch in self._data]
        return record_torch(path, model, recipe, batches, torch_loss)

    def record_jax(
        self,
        path: Path,
        recipe: Recipe | optax.GradientTransformation,
        change: Change | None = None,
    ) -> Path:
        """Record the replay in JAX, with a bug."""
        with jax.enable_x64(self.dtype == "float64"):
            params, stats = jax_arrays(self.config, self.tensors, dtype=self.dtype)

            def differentiate(step: int, params: Any) -> Any:
                nonlocal stats
                batch = jax_batch(self._data[step], dtype=self.dtype)
                loss, stats, gradients = self._differentiate(params, stats, *batch)
                return loss, gradients

            return record_jax(path, params, recipe, self.steps, differentiate, change)


class PairRuns:
    """The training of one of the pairs on random inputs and targets, in both frameworks."""

    def __init__(self, name: str, *, seed: int = 0, steps: int = STEPS):
        comparers, _, outputs = table.make_comparers(name)
        comparer, self.steps = comparers[-1], steps
        assert isinstance(comparer.reference, Reference)
        assert isinstance(comparer.port, MatchedPort)
        self._reference, self._port, self._train = comparer.reference, comparer.port, comparer.train
        rng = np.random.default_rng(seed)
        self._data = [
            (draw_inputs(name, table.WIDTH, 1000 * seed + step),
             [rng.normal(size=y.shape).astype(np.float32) for y in outputs])
            for step in range(steps)
        ]  # fmt: skip
        port = self._port.port

        def loss(params: Any, leaves: Any, xs: Any, targets: Any) -> Any:
            ys, after = port.run({**leaves, **params}, tuple(xs), self._train)
            pairs = zip(name_arrays(ys).values(), targets, strict=True)
            return sum(jnp.square(y - t).mean() for y, t in pairs), after

        self._differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def record_torch(self, path: Path, recipe: Recipe, *, is_reversed: bool = False) -> Path:
        """Record a run in torch; the arguments are those of `UNetRuns.record_torch`."""
        reference = self._reference
        model = reference.load(reference.state, dtype="float32", train=self._train)
        batches = [
            [[np.ascontiguousarray(a[::-1] if is_reversed else a) for a in part] for part in batch]
            for batch in self._data
        ]
        return record_torch(path, model, recipe, batches, _square)

    def record_jax(self, path: Path, recipe: Recipe, change: Change | None = None) -> Path:
        """Record the replay in JAX, with a bug."""
        match, reference = self._port.match, self._reference
        arrays = match.to_port(reference.state)
        leaves: Any = {name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()}
        trained = [n for n in match.places if {*match.sources(n)} & {*reference.trained}]

        def differentiate(step: int, params: Any) -> Any:
            nonlocal leaves
            inputs, targets = self._data[step]
            layouts = self._port.layouts
            xs, goals = layouts.prepare(inputs), layouts.give(tuple(targets))
            (loss, leaves), gradients = self._differentiate(params, leaves, xs, goals)
            return loss, gradients

        params = {name: leaves[name] for name in trained}
        return record_jax(path, params, recipe, self.steps, differentiate, change)


def record_torch(
    path: Path, model: Any, recipe: Recipe, batches: Sequence[Any], loss_of: Any
) -> Path:
    """Train a torch module by a recipe and record it."""
    recipe = recipe.for_steps(len(batches))
    optimizer, scheduler = unet_torch.recipe.build(recipe, model.named_parameters())
    recorder = RunRecorder(path, model)
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        unet_torch.recipe.advance(recipe, optimizer, scheduler, step=step, value=loss.item())
        recorder.record(loss, model)
    return path


def record_jax(
    path: Path,
    params: Any,
    recipe: Recipe | optax.GradientTransformation,
    steps: int,
    differentiate: Callable[[int, Any], tuple[Any, Gradients]],
    change: Change | None = None,
) -> Path:
    """Train parameters in JAX by a recipe, or by an optimizer of optax as it is, and record it.

    Args:
        differentiate: takes a step, from 0, and the parameters, and gives (loss, gradients).
    """
    optimizer: Any = recipe
    if isinstance(recipe, Recipe):
        optimizer = unet_jax.recipe.build(recipe.for_steps(steps))
    state = optimizer.init(params)
    move = jax.jit(make_update(optimizer))
    recorder = RunRecorder(path, params)
    for step in range(steps):
        loss, gradients = differentiate(step, params)
        if change is not None:
            loss, gradients = change(step + 1, loss, gradients)
        params, state = move(params, state, gradients, loss)
        recorder.record(loss, params, gradients)
    return path


def record_three(runs: UNetRuns | PairRuns, folder: Path, recipe: Recipe) -> list[Path]:
    """Record a run, the run again with its sums in another order, and a right replay."""
    return [
        runs.record_torch(folder / "first.jsonl", recipe),
        runs.record_torch(folder / "again.jsonl", recipe, is_reversed=True),
        runs.record_jax(folder / "replay.jsonl", recipe),
    ]


def _square(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    inputs, targets = batch
    outputs = call_reference(model, to_torch(tuple(inputs), "float32"))
    pairs = zip(outputs, targets, strict=True)
    return torch.stack([(y - torch.tensor(t)).square().mean() for y, t in pairs]).sum()


def make_all(seeds: Iterable[int]) -> Iterator[tuple[str, int, UNetRuns | PairRuns]]:
    """Yield (name, seed, training) of every net."""
    for seed in seeds:
        for name, config in NETS.items():
            yield name, seed, UNetRuns(config, seed=seed)
        for pair in PAIRS:
            if pair.name != FUSED:
                yield pair.name, seed, PairRuns(pair.name, seed=seed)
        wide = replace(NETS["batch norm"], widths=(8, 12, 16))
        yield "wide", seed, UNetRuns(wide, seed=seed, size=(48, 64))


def main() -> None:
    """Print for each net, seed and recipe which multiple of the run's own distance the replay has,
    by what is compared."""
    worst: dict[str, float] = {}
    for name, seed, runs in make_all(range(2)):
        for recipe_name, recipe in RECIPES.items():
            with tempfile.TemporaryDirectory() as folder:
                report = compare_runs(*record_three(runs, Path(folder), recipe))
            ratios = {
                d.kind: FACTOR
                * float((d.replay / d.measured if d.kind == "gradient" else d.share).max())
                for d in report.distances
            }
            worst = {kind: max(worst.get(kind, 0), ratio) for kind, ratio in ratios.items()}
            shown = ", ".join(f"{kind} {ratio:.1f}" for kind, ratio in ratios.items())
            print(f"{name}, seed {seed}, {recipe_name}: {shown}", flush=True)
    print("largest:", ", ".join(f"{kind} {ratio:.1f}" for kind, ratio in worst.items()))


if __name__ == "__main__":
    main()
