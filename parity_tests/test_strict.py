"""What does not fit a signature raises in tests: types, and axes of two arrays that differ."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from jaxtyping import Float, TypeCheckError

import unet_jax
from parity_tests.strict import check
from unet_spec import UNetConfig, geometry

Image = Float[np.ndarray, "h w"]


@check
def add(one: Image, other: Image) -> Image:
    return one + other


@check
def turn(image: Image) -> Float[np.ndarray, "w h"]:
    return image if image[0, 0] else image.T


@check
def each_row(image: Image, count: int) -> Iterator[Float[np.ndarray, " w"]]:
    yield from image[:count]


@check
def double(count: int) -> int:
    return 2 * count if count else ""  # type: ignore[return-value]


@check
@dataclass(frozen=True)
class Pair:
    one: Image
    other: Image


def make(*shape: int) -> np.ndarray:
    return np.ones(shape)


def test_what_fits_passes():
    assert add(make(2, 3), make(2, 3)).shape == (2, 3)
    assert turn(0 * make(2, 3)).shape == (3, 2)
    assert len(list(each_row(make(2, 3), 1))) == 1
    assert double(2) == 4
    assert Pair(make(2, 3), make(2, 3)).one.shape == (2, 3)
    assert add(make(4, 5), add(make(4, 5), make(4, 5))).shape == (4, 5), "a call has its own axes"


@pytest.mark.parametrize(
    "call",
    [
        lambda: add(make(2, 3), make(2, 4)),
        lambda: add(make(2, 3), make(3)),
        lambda: add(make(2, 3).astype(int), make(2, 3)),
        lambda: turn(make(2, 3)),
        lambda: list(each_row(make(3), 1)),
        lambda: list(each_row(make(2, 3), 1.5)),
        lambda: double("x"),
        lambda: double(0),
        lambda: Pair(make(2, 3), make(2, 4)),
    ],
    ids=["axes", "rank", "dtype", "axes of a result", "rank of a generator", "count of a generator",
         "type", "type of a result", "axes of a dataclass"],
)  # fmt: skip
def test_what_does_not_fit_raises(call):
    with pytest.raises(TypeCheckError):
        call()


def test_the_product_is_checked():
    with pytest.raises(TypeCheckError):
        geometry.output_size(UNetConfig(), "8")  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError):
        unet_jax.predict(unet_jax.UNet, make(8, 8))  # type: ignore[arg-type]
