"""What a person who imports the packages sees: help, a way to weight files, and refusals."""

import importlib.metadata
import inspect
import pydoc
import re
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import unet_jax
import unet_spec
import unet_torch
from unet_jax.functional import split, to_arrays
from unet_parity.oracle import random_tensors
from unet_spec import InputError, Preprocessing, UNetConfig, layout, weight_file
from unet_spec.batch import check_batch
from unet_spec.weight_file import WeightFile

BATCH = UNetConfig(in_channels=3, classes=4, widths=(6, 8), norm="batch")
PLAIN = replace(BATCH, norm="none")
PACKAGES = [unet_jax, unet_torch, unet_spec]
NAMES = [(package, name) for package in PACKAGES for name in package.__all__]
CALLED = [pair for pair in NAMES if callable(getattr(*pair)) and pair[1] != "InputError"]
# the words that make a first line a sentence: "Return ..." of a function, "... holds" of a class
FUNCTION = re.compile(r"^(Return|Read|Write|Predict) ")
CLASS = re.compile(r"^An? `\w+` (is|says|maps) ")


def name_of(value):
    return value if isinstance(value, str) else value.__name__


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_help_of_a_package_shows_what_is_public_and_an_example(package):
    text = pydoc.plain(pydoc.render_doc(package))
    assert re.match(rf"`{package.__name__}` is [^.]*\.$", package.__doc__.splitlines()[0])
    assert package.__doc__.count("\n>>> ") > 1
    for name in package.__all__:
        assert f"`{name}`" in package.__doc__.replace(f"unet_spec.{name}", name), name
        assert re.search(rf"^    (class )?{name}\b", text, re.MULTILINE), name
    for name in ("UNetConfig", "InputError", "SLIDES", "PAPER"):
        assert name in package.__doc__
    assert f"VERSION\n    {package.__version__}" in text


def test_version_is_that_of_what_is_installed():
    installed = importlib.metadata.version("unet-twins")
    assert {package.__version__ for package in PACKAGES} == {installed}


def test_a_checkout_that_is_not_installed_has_no_version_and_no_error(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    names = {"__name__": "unet_spec"}
    exec(compile(inspect.getsource(unet_spec), "unet_spec", "exec"), names)
    assert names["__version__"] == "unknown"


@pytest.mark.parametrize(("package", "name"), CALLED, ids=name_of)
def test_docstring_begins_with_a_sentence_and_says_what_goes_in(package, name):
    public = getattr(package, name)
    text = inspect.getdoc(public) or ""
    first = text.splitlines()[0]
    assert (CLASS if inspect.isclass(public) else FUNCTION).match(first), first
    assert first.endswith(".")
    if name not in ("UNetConfig", "Preprocessing"):  # their fields have docstrings of their own
        made = public.__init__ if name == "UNet" else public  # Flax hides the class's signature
        for parameter in inspect.signature(made).parameters.keys() - {"self"}:
            documented = rf"^ *{parameter}: |`\w+\(.*\b{parameter}\b.*\)`"
            assert re.search(documented, text, re.MULTILINE), parameter
    if name not in ("functional", "Numerics"):
        assert "InputError" in text


def arrays(config, *, seed=1):
    """Random (params, stats) as `functional` has them."""
    names = layout.to_jax(config, random_tensors(config, seed=seed))
    params, stats = split(config, names)
    return jax.tree.map(jnp.asarray, (params, stats))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("config", [BATCH, replace(PLAIN, up="nearest")], ids=["batch", "plain"])
def test_arrays_come_back_from_a_file_bit_for_bit_and_through_torch(config, tmp_path):
    params, stats = arrays(config)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    card = Preprocessing("range", sqrt=True), ("sky", "cell", "border", "none")
    unet_jax.write_arrays(
        first, config, params, stats, preprocessing=card[0], class_names=list(card[1])
    )
    twin = unet_torch.load(first)
    assert (twin.config, twin.preprocessing, twin.class_names) == (config, *card)
    unet_torch.save(twin, second)
    for path in (first, second):
        back = unet_jax.read_arrays(path)
        assert back[0] == config
        assert_same(back[1], params)
        assert_same(back[2], stats)
    assert first.read_bytes() == second.read_bytes()
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 12)).astype(np.float32)
    logits = unet_jax.functional(config).apply(params, jnp.asarray(x.transpose(0, 2, 3, 1)), stats)
    of_torch = twin(torch.from_numpy(x)).detach().numpy().transpose(0, 2, 3, 1)
    # another layout or order would be off by as much as the logits; rounding is 1e-6 of them
    np.testing.assert_allclose(logits, of_torch, atol=1e-4 * np.abs(of_torch).max())


def test_arrays_are_those_that_load_puts_into_the_module(tmp_path):
    path = tmp_path / "cells.safetensors"
    weight_file.write(path, WeightFile(BATCH, random_tensors(BATCH, seed=1)))
    for numerics in (unet_jax.Numerics(), unet_jax.Numerics(param_dtype=jnp.bfloat16)):
        _, params, stats = unet_jax.read_arrays(path, numerics=numerics)
        model = unet_jax.load(path, numerics=numerics)
        assert_same({**params, **stats}, to_arrays(model))


def test_arrays_that_lie_on_several_devices_are_written_whole(tmp_path):
    params, _ = arrays(PLAIN)
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, None, "data"))
    name = "neck.conv.0.weight"
    unet_jax.write_arrays(
        tmp_path / "a.safetensors", PLAIN, {**params, name: jax.device_put(params[name], spread)}
    )
    assert_same(unet_jax.read_arrays(tmp_path / "a.safetensors")[1], params)


def test_arrays_that_do_not_fit_are_all_named_and_nothing_is_written(tmp_path):
    params, stats = arrays(BATCH)
    del params["out.bias"]
    params |= {"head": jnp.ones(3), "out.weight": jnp.ones((6, 4))}
    with pytest.raises(InputError) as refusal:
        unet_jax.write_arrays(tmp_path / "a.safetensors", BATCH, params, stats)
    for words in ("missing: out.bias", "unexpected: head", "mis-shaped: out.weight (6, 4)"):
        assert words in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_class_names_of_another_number_are_refused(tmp_path):
    with pytest.raises(InputError, match="one name for each of 4 classes"):
        unet_jax.write_arrays(tmp_path / "a", PLAIN, arrays(PLAIN)[0], class_names=["cell"])


SAVES = {
    "unet_jax.save": lambda path, **kw: unet_jax.save(
        unet_jax.weights.from_weights(WeightFile(PLAIN, random_tensors(PLAIN, seed=2))), path, **kw
    ),
    "unet_jax.write_arrays": lambda path, **kw: unet_jax.write_arrays(
        path, PLAIN, arrays(PLAIN, seed=2)[0], **kw
    ),
    "unet_torch.save": lambda path, **kw: unet_torch.save(
        unet_torch.weights.from_weights(WeightFile(PLAIN, random_tensors(PLAIN, seed=2))),
        path, **kw
    ),
}  # fmt: skip


@pytest.mark.parametrize("save", SAVES)
def test_a_file_is_replaced_only_where_that_is_asked_for(save, tmp_path):
    path = tmp_path / "cells.safetensors"
    path.write_text("somebody's work")
    with pytest.raises(InputError, match=r"cells\.safetensors: the file exists.*overwrite=True"):
        SAVES[save](path)
    assert path.read_text() == "somebody's work"
    SAVES[save](path, overwrite=True)
    assert_same(dict(weight_file.read(path).tensors), random_tensors(PLAIN, seed=2))
    with pytest.raises(InputError, match="a folder, and a file is needed"):
        SAVES[save](tmp_path, overwrite=True)


def test_a_net_with_batch_norm_asks_for_its_statistics():
    apply = unet_jax.functional(BATCH).apply
    params, stats = arrays(BATCH)
    x = jnp.ones((2, 8, 12, 3))
    for train in (False, True):
        with pytest.raises(InputError, match=r"stats lacks down_1.* apply\(params, x, stats\)"):
            jax.jit(lambda params, x, train=train: apply(params, x, train=train))(params, x)
    assert apply(params, x, stats).shape == (2, 8, 12, 4)


# (shape, end of the sentence) of what each framework is given by mistake; c is 3
WRONG = {
    "b h w c": {
        (2, 3, 8, 12): "use x.transpose(0, 2, 3, 1)",
        (2, 8, 12, 5): "give 3 channels, or build the net with in_channels=5",
        (8, 12, 3): "use x[None] for a batch of one image",
        (2, 8, 12): "give all four axes, also those of size 1",
        (8, 12): "give all four axes, also those of size 1",
    },
    "b c h w": {
        (2, 8, 12, 3): "use x.permute(0, 3, 1, 2)",
        (3, 8, 12): "use x[None] for a batch of one image",
        (1, 2, 3, 8, 12): "give all four axes, also those of size 1",
    },
}
NETS: dict[str, Callable] = {
    "b h w c": unet_jax.weights.from_weights(WeightFile(PLAIN, random_tensors(PLAIN, seed=1))),
    "b c h w": unet_torch.weights.from_weights(WeightFile(PLAIN, random_tensors(PLAIN, seed=1))),
}
CASES = [(axes, shape) for axes in WRONG for shape in WRONG[axes]]


@pytest.mark.parametrize(("axes", "shape"), CASES, ids=str)
def test_a_batch_of_another_shape_is_refused_with_what_to_do(axes, shape):
    package = "unet_jax" if axes == "b h w c" else "unet_torch"
    takes = ", ".join(axes.split())
    expected = (
        f"x has the shape {shape}; {package} takes ({takes}) with c = 3: {WRONG[axes][shape]}"
    )
    with pytest.raises(InputError) as refusal:
        check_batch(PLAIN, shape, axes)
    assert str(refusal.value) == expected
    if len(shape) == 4:  # the tests' check of signatures comes before the net's own of the rank
        x = jnp.ones(shape) if package == "unet_jax" else torch.ones(shape)
        with pytest.raises(InputError, match=re.escape(expected)):
            NETS[axes](x)


@pytest.mark.parametrize("axes", WRONG)
def test_the_advice_for_a_batch_is_right(axes):
    for shape, advice in WRONG[axes].items():
        if advice.startswith("use "):
            x = jnp.ones(shape) if axes == "b h w c" else torch.ones(shape)
            code = advice.removeprefix("use ").removesuffix(" for a batch of one image")
            turned = eval(code, {"x": x})
            check_batch(PLAIN, turned.shape, axes)
            assert NETS[axes](turned).shape


def test_functional_refuses_another_layout_while_it_is_traced():
    apply = jax.jit(unet_jax.functional(PLAIN).apply)
    params, _ = arrays(PLAIN)
    with pytest.raises(InputError, match=r"use x\.transpose\(0, 2, 3, 1\)"):
        apply(params, jnp.ones((2, 3, 8, 12)))


def test_sizes_are_still_checked_on_their_own_axes():
    for axes, shape in (("b h w c", (2, 8, 13, 3)), ("b c h w", (2, 3, 8, 13))):
        with pytest.raises(InputError, match="size 13 px is not legal"):
            check_batch(PLAIN, shape, axes)
