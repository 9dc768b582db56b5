"""What a bare `state_dict` says of the net that it belongs to, and what it cannot say."""

import re
from dataclasses import fields, replace
from typing import Any

from unet_spec.config import UNetConfig
from unet_spec.errors import ConfigError, InputError
from unet_spec.parameters import Tensors, check_tensors

_FROM_SHAPES = ("in_channels", "classes", "widths", "bias", "norm", "norm_place", "up")
_WRAPPERS = ("state_dict", "model_state_dict", "ema_model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def unwrap(content: object) -> dict:
    """Take the tensors out of a checkpoint.

    The dict around them is taken off, and the prefix that DataParallel, `torch.compile` or
    Lightning put before every name.

    Raises:
        InputError: no tensors in it.
    """
    while isinstance(content, dict) and (inner := [w for w in _WRAPPERS if w in content]):
        content = content[inner[0]]
    if not isinstance(content, dict) or not content:
        raise InputError("no state_dict in it: a dict of tensors by name is needed")
    for prefix in _PREFIXES:
        if all(str(name).startswith(prefix) for name in content):
            content = {str(name)[len(prefix) :]: tensor for name, tensor in content.items()}
    return content


def infer_config(tensors: Tensors, *, given: UNetConfig, source: str) -> UNetConfig:
    """Infer the config of tensors with the slides' names.

    Shapes tell channels, widths, bias, and whether and where there are norms; the other axes
    (padding, concat, activation, fit, dropout, groups) leave no trace and are those of `given`.

    Raises:
        InputError: other names, shapes that are no U-Net's, or a `given` that says otherwise.
    """
    convs = {name: t.shape for name, t in tensors.items() if t.ndim == 4}
    downs = [f"down_{i}.conv.conv.0.weight" for i in range(1, len(convs) + 1)]
    levels = [name for name in downs if name in convs]
    if not levels or "neck.conv.0.weight" not in convs or "out.weight" not in convs:
        raise InputError(
            f"{source}: these are not the slides' names (down_1.conv.conv.0.weight ... out.bias) "
            f"but {', '.join(list(tensors)[:3])} ...; rename them first"
        )
    config = replace(
        given,
        in_channels=convs[levels[0]][1],
        classes=convs["out.weight"][0],
        widths=tuple(convs[name][0] for name in [*levels, "neck.conv.0.weight"]),
        bias="neck.conv.0.bias" in tensors,
        **_norm(tensors, given, source=source),
        up="transposed" if "up_1.up.weight" in tensors else _interpolation(given, source=source),
    )
    default = UNetConfig()
    for name in _FROM_SHAPES:
        flag, shape = getattr(given, name), getattr(config, name)
        if flag not in (shape, getattr(default, name)):
            raise ConfigError(
                given,
                f"{{source}}: its tensors have {name}={{shape}}, not {{{name}=}}; leave that out",
                source=source,
                shape=shape,
            )
    check_tensors(config, tensors, source=source)
    return config


def describe_assumptions(config: UNetConfig) -> str:
    """Describe the axes that no tensor shows, so that a person can check them."""
    hidden = [f.name for f in fields(config) if f.name not in (*_FROM_SHAPES, "negative_slope")]
    if config.norm != "group":
        hidden.remove("groups")
    return ", ".join(f"{name}={getattr(config, name)}" for name in hidden)


def _norm(tensors: Tensors, given: UNetConfig, *, source: str) -> dict[str, Any]:
    vectors = [
        int(match.group(1))
        for name, tensor in tensors.items()
        if tensor.ndim == 1 and (match := re.fullmatch(r"neck\.conv\.(\d)\.weight", name))
    ]
    if not vectors:
        return {"norm": "none", "norm_place": given.norm_place}
    place = "before" if vectors[0] == 1 else "after"
    if f"neck.conv.{vectors[0]}.running_mean" in tensors:
        return {"norm": "batch", "norm_place": place}
    if given.norm not in ("group", "instance"):
        raise ConfigError(
            given,
            "{source}: its norm keeps no statistics, so it is group or instance norm, which look "
            "the same; say which: {norm=group} (with {groups}) or {norm=instance}",
            source=source,
        )
    return {"norm": given.norm, "norm_place": place}


def _interpolation(given: UNetConfig, *, source: str) -> Any:
    if given.up == "transposed":
        raise ConfigError(
            given,
            "{source}: its up-sampling has no 2x2 kernels, so it interpolates, and how leaves no "
            "trace; say it: {up=bilinear}, {up=bilinear_aligned} or {up=nearest}",
            source=source,
        )
    return given.up
