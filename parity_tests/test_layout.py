import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_spec import UNetConfig, layout
from unet_spec.parameters import Parameter, parameters

NORMED = UNetConfig(in_channels=3, classes=4, widths=(6, 7, 9), norm="batch")
RANKS = {"conv": 4, "up_conv": 4, "vector": 1, "statistic": 1, "count": 0}


def bits(array):
    return array.dtype, array.shape, array.tobytes()


@st.composite
def tensors(draw, kind):
    """A tensor of a kind, of any bits: NaN, infinities, denormals and negative zeros too."""
    rank = RANKS[kind]
    shape = draw(hnp.array_shapes(min_dims=rank, max_dims=rank, max_side=5)) if rank else ()
    numbers = np.int64 if kind == "count" else draw(st.sampled_from([np.float32, np.float64]))
    elements = st.integers(0, 2**31 - 1) if kind == "count" else None
    return draw(hnp.arrays(numbers, shape, elements=elements))


@pytest.mark.parametrize("kind", RANKS)
@given(data=st.data())
def test_round_trip_over_jax_keeps_every_bit(kind, data):
    tensor = data.draw(tensors(kind))
    parameter = Parameter("some", tensor.shape, kind)
    there = layout._to_jax(parameter, tensor)
    assert bits(layout._to_torch(parameter, there)) == bits(tensor)


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [("conv", (2, 3, 5, 7), (5, 7, 3, 2)), ("up_conv", (2, 3, 5, 7), (5, 7, 2, 3)),
     ("vector", (4,), (4,)), ("statistic", (4,), (4,))],
)  # fmt: skip
def test_axes_move_where_they_belong(kind, shape, expected):
    """Every value is looked up by its own four indices: h and w can not be exchanged unseen."""
    tensor = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    array = layout._to_jax(Parameter("some", shape, kind), tensor)
    assert array.shape == expected
    for index, value in np.ndenumerate(tensor):
        match kind, index:
            case "conv", (out, in_, h, w):
                assert array[h, w, in_, out] == value
            case "up_conv", (in_, out, h, w):
                assert array[h, w, in_, out] == value
            case _:
                assert array[index] == value


def test_count_is_int32_in_jax_and_int64_in_torch():
    parameter = Parameter("some", (), "count")
    there = layout._to_jax(parameter, np.array(7, np.int64))
    assert there.dtype == np.int32
    assert there == 7
    assert layout._to_torch(parameter, there).dtype == np.int64


@pytest.mark.parametrize("way", [layout.to_jax, layout.to_torch], ids=["to_jax", "to_torch"])
def test_results_are_contiguous_and_owned(way):
    table = parameters(NORMED)
    source = {p.name: np.ones(p.shape, np.float32) for p in table}
    if way is layout.to_torch:
        source = layout.to_jax(NORMED, source)
    for name, result in way(NORMED, source).items():
        assert result.flags.c_contiguous, name
        assert result.flags.owndata, name
        assert not np.shares_memory(result, source[name]), name
        assert not result.size or result.flags.writeable, name


def test_whole_nets_keep_names_order_and_bits():
    rng = np.random.default_rng(0)
    source = {
        p.name: np.asarray(rng.random(p.shape), np.float32)
        if p.kind != "count"
        else np.array(5, np.int64)
        for p in parameters(NORMED)
    }
    back = layout.to_torch(NORMED, layout.to_jax(NORMED, source))
    assert list(back) == list(source)
    for name, tensor in source.items():
        assert bits(back[name]) == bits(tensor), name
