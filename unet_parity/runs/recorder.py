"""What a training loop writes at each step, in torch or in JAX, so that another machine can read
how it went: one line of JSON a step."""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unet_parity.runs.leaves import (
    measure_norm,
    name_dtype,
    name_framework,
    name_leaves,
    name_parameters,
    to_numpy,
)
from unet_spec.environment import versions
from unet_spec.errors import InputError
from unet_spec.files import check_place, name_errors

FORMAT = "unet-run-1"
"""The first line of a recording says this."""


class RunRecorder:
    """A `RunRecorder` writes the course of a training run into a file, a line for each step.

    A line has the loss, the norms of every parameter's gradient, update and weights, and a sha256
    of all weights. It is in the file as soon as `record` returns, so a killed run keeps its lines.
    Norms do not depend on the layout, so nothing has to be transposed for another framework.

        recorder = RunRecorder("torch.jsonl", net.named_parameters())
        for x, truth in batches:
            optimizer.zero_grad()
            loss = criterion(net(x), truth)
            loss.backward()
            optimizer.step()
            recorder.record(loss, net.named_parameters())

    Each step copies the weights to the host, and one copy of them is kept.

    Attributes:
        path: of the recording.
        step: how many steps it has.
    """

    def __init__(self, path: str | os.PathLike[str], parameters: Any):
        """Begin a recording before the first step.

        Args:
            path: a file that does not exist yet, such as torch.jsonl.
            parameters: the initial ones: a torch module, `named_parameters()`, or dicts and lists
                of arrays such as `nnx.state(model, nnx.Param)`.

        Raises:
            InputError: the file exists, its folder does not, or the parameters are not arrays of
                floats.
        """
        self.path, self.step = Path(path), 0
        leaves = name_parameters(parameters)
        self._weights = {name: np.array(to_numpy(name, leaf)) for name, leaf in leaves.items()}
        header = {
            "format": FORMAT,
            "framework": name_framework(next(iter(leaves.values()))),
            "versions": {"python": platform.python_version(), **versions()},
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "tensors": {
                name: {
                    "size": values.size,
                    "dtype": name_dtype(leaves[name]),
                    "weights": _word(measure_norm(values)),
                }
                for name, values in self._weights.items()
            },
            "sha256": _hash(self._weights),
        }
        check_place(self.path)
        if not self.path.parent.is_dir():
            raise InputError(f"{path}: the folder {self.path.parent} does not exist; make it first")
        try:
            with name_errors(self.path), self.path.open("x") as stream:
                stream.write(_to_line(header))
        except FileExistsError as error:
            raise InputError(
                f"{path}: the file exists, and a recording replaces none; name another, or delete "
                "it"
            ) from error

    def record(self, loss: Any, parameters: Any, gradients: Any = None) -> None:
        """Write the line of a step, after the optimizer has moved the weights.

        Args:
            loss: a number or an array of one, before the step.
            parameters: those after the step, under the names of the initial ones.
            gradients: under the same names; None is a gradient of 0. Without them each parameter's
                `.grad` is read, as torch has it until `zero_grad`. Give copies from before the
                step where the optimizer changes gradients in place, as torch's SGD with Nesterov's
                momentum does on a GPU.

        Raises:
            InputError: the names are others than at the beginning, or there are no gradients.
        """
        leaves = name_parameters(parameters)
        self._check_names(leaves, "parameters")
        gradients = _take_gradients(leaves) if gradients is None else name_leaves(gradients)
        self._check_names(
            [name for name, g in gradients.items() if g is not None or name in leaves], "gradients"
        )
        weights, tensors = {}, {}
        for name, leaf in leaves.items():
            after, before = np.array(to_numpy(name, leaf)), self._weights[name]
            gradient = gradients[name]
            tensors[name] = {
                "gradient": 0.0 if gradient is None
                else _word(measure_norm(to_numpy(name, gradient))),
                "update": _word(measure_norm(_subtract(name, after, before))),
                "weights": _word(measure_norm(after)),
            }  # fmt: skip
            weights[name] = after
        line = {
            "step": self.step + 1,
            "loss": _word(_read_loss(loss)),
            "tensors": tensors,
            "sha256": _hash(weights),
        }
        with name_errors(self.path), self.path.open("a") as stream:
            stream.write(_to_line(line))
        self._weights = weights
        self.step += 1

    def _check_names(self, names: Iterable[str], what: str) -> None:
        """Refuse other names than those of the initial parameters."""
        odd = sorted(self._weights.keys() ^ {*names})
        if odd:
            raise InputError(
                f"the {what} of a step and the initial parameters do not have the same names, such "
                f"as {odd[0]}; give the same ones each time"
            )


def _take_gradients(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `.grad` of each parameter.

    Raises:
        InputError: no parameter has one.
    """
    gradients = {name: getattr(leaf, "grad", None) for name, leaf in leaves.items()}
    if all(gradient is None for gradient in gradients.values()):
        raise InputError(
            "no parameter has a gradient; call record before zero_grad in torch, and give the "
            "gradients as its third argument in JAX"
        )
    return gradients


def _subtract(name: str, after: np.ndarray, before: np.ndarray) -> np.ndarray:
    if after.shape != before.shape:
        raise InputError(
            f"{name} had the shape {before.shape} and has {after.shape} now; give the same "
            "parameters each time"
        )
    with np.errstate(invalid="ignore"):  # of weights that are infinite already
        return after.astype(np.float64) - before.astype(np.float64)


def _read_loss(loss: Any) -> float:
    try:
        return float(loss.item() if hasattr(loss, "item") else loss)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("the loss of a step is one number; give its mean or sum") from error


def _word(value: float) -> float | str:
    """Return a number as JSON can have it: NaN and infinity become words."""
    return value if math.isfinite(value) else str(value)


def _hash(weights: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 over the names and the bytes of arrays, as they lie in memory."""
    digest = hashlib.sha256()
    for name, values in weights.items():
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _to_line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, allow_nan=False) + "\n"
