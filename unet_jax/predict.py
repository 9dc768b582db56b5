import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import jax
import numpy as np

from unet_jax.functional import Arrays, functional, to_arrays
from unet_jax.layers import Numerics
from unet_jax.model import UNet
from unet_spec import UNetConfig, prediction
from unet_spec.environment import usable_cores
from unet_spec.garbage import pause_garbage_collection

Shape = tuple[int, ...]
_tracing = threading.Lock()
_making = threading.Lock()


def predict(model: UNet, image: np.ndarray, *, threshold: float | None = None) -> np.ndarray:
    """Predict the class of every pixel of one image of any size: (h, w) integers.

    The image is mirrored at its borders to a size that the net takes, and the mask has its own.
    `unet_spec.prediction` says how large images are cut.

    Args:
        model: its `preprocessing` turns the image into the input.
        image: (h, w) or (h, w, c), any integer or float type; sizes in pixels.
        threshold: a net of two classes gives class 1 where its probability is at least this,
            between 0 and 1; by default where it is the larger one.

    Raises:
        InputError: the image has other axes or channels, or holds NaN or infinite values; or the
            threshold is no probability, or the net has more than two classes.
    """
    return prediction.predict(
        _make_forward(model), image, config=model.config, preprocessing=model.preprocessing,
        threshold=threshold,
    )  # fmt: skip


def predict_probabilities(model: UNet, image: np.ndarray) -> np.ndarray:
    """Predict the probability of every class in every pixel: (h, w, classes) float32.

    Those of a pixel add up to 1, but for a net with `output=sigmoid`, in which each class has its
    own, and a net of one channel, which gives that of class 1. `predict` chooses by them.

    Args:
        model, image: as for `predict(model, image)`.

    Raises:
        InputError: the image has other axes or channels, or holds NaN or infinite values.
    """
    return predict_both(model, image)[1]


def predict_both(
    model: UNet, image: np.ndarray, *, threshold: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predict classes and probabilities at once, as `predict` and `predict_probabilities` do."""
    return prediction.predict_both(
        _make_forward(model), image, config=model.config, preprocessing=model.preprocessing,
        threshold=threshold,
    )  # fmt: skip


@contextmanager
def compile_ahead(model: UNet, shapes: Iterable[Shape]) -> Iterator[None]:
    """Compile in the background, in the block, the net for inputs of these shapes, in their order.

    `predict` takes these programs: JAX compiles nothing twice. What fails here fails there too,
    where it is needed.

    An input is as small as the net takes it, so almost every size of image has its own program. It
    cannot be mirrored further, up to one of a few sizes: with padding=same every layer sees zeros
    beyond the border, and values near it would be others.

    Args:
        shapes: (b, h, w, in_channels), as `unet_spec.prediction.input_shape` returns them.
    """
    config, arrays = model.config, to_arrays(model)
    workers = ThreadPoolExecutor(max_workers=usable_cores())
    try:
        for shape in dict.fromkeys(shapes):
            workers.submit(_compile_for, config, arrays, shape)
        yield
    finally:
        workers.shutdown(cancel_futures=True)


def _compile_for(config: UNetConfig, arrays: Arrays, shape: Shape) -> None:
    """Compile a net for a shape of its input, and leave the program where JAX looks for it."""
    # Python traces one at a time in any case, and so the first is done first
    with _tracing, pause_garbage_collection():
        lowered = _jit(config).lower(arrays, jax.ShapeDtypeStruct(shape, np.float32))
    lowered.compile()


def _make_forward(model: UNet) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from a batch (b, h, w, c) to its logits (b, h', w', classes)."""
    arrays = to_arrays(model)

    def forward(x: np.ndarray) -> np.ndarray:
        return np.asarray(_jit(model.config)(arrays, x), np.float32)

    return forward


def _jit(config: UNetConfig):
    """Return the function of a net, one for all threads: two would compile every program twice."""
    with _making:  # of two threads that ask at once, `lru_cache` alone makes a function for each
        return _make_function(config)


@lru_cache(maxsize=8)
def _make_function(config: UNetConfig):
    apply = functional(config, numerics=Numerics(precision="highest")).apply  # without TF32
    return jax.jit(lambda arrays, x: apply(arrays, x))
