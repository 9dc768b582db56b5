"""A map of somebody else's names to ours, written by hand in TOML."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_spec import InputError
from unet_spec.config import MOST_LEVELS
from unet_spec.files import refuse_no_file
from unet_spec.parameters import Tensors
from unet_spec.wording import list_names

MOST_BYTES = 2**20
_LONGEST_LINE = 4000  # characters; one has two names
_LAYER = r"(down_\d+\.conv|up_\d+\.conv|neck)\.conv\.\d+|up_\d+\.up(\.1)?|out"


def read(path: Path, tensors: Tensors) -> dict[str, str]:
    """Return (their name -> our name) for the tensors that a TOML file maps.

    An entry is a tensor's name, or that of a module for all tensors in it.

    Raises:
        InputError: not TOML, a name that the file of weights does not have, or a right side that
            does not name a whole net.
    """
    entries = read_lines(path)
    names: dict[str, str] = {}
    for theirs, ours in entries.items():
        inside = [n for n in tensors if n == theirs or n.startswith(f"{theirs}.")]
        if not inside:
            raise InputError(
                f"{path}: no tensor is named {theirs} or begins so; the file has "
                f"{list_names(list(tensors), 3)}"
            )
        names |= {name: ours + name.removeprefix(theirs) for name in inside}
    mapped = {name: names[name] for name in tensors if name in names}
    _check(mapped, path)
    return mapped


def read_lines(path: Path) -> dict[str, str]:
    """Return the lines of a TOML file that maps names, as they stand.

    Raises:
        InputError: not TOML, or not a map of names.
    """
    refuse_no_file(path)
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path}: a map of names has at most {MOST_BYTES:,} bytes; shorten it")
    try:
        text = path.read_text(encoding="utf-8")
        if max(map(len, text.splitlines()), default=0) > _LONGEST_LINE:
            raise ValueError(f"a line of more than {_LONGEST_LINE:,} characters")
        return _flatten(tomllib.loads(text))
    except RecursionError as error:
        raise InputError(
            f'{path}: it is nested too deeply; write lines such as "their.name" = "out"'
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f'{path}: not a map of names ({error}); write lines such as "their.name" = "out"'
        ) from error


def _check(names: Mapping[str, str], path: Path) -> None:
    """Refuse a map whose right side does not name a whole net.

    Raises:
        InputError: a name that no net here has, one that stands twice, or a layer without a line.
    """
    modules: dict[str, str] = {}
    for theirs, ours in names.items():
        module = ours.rpartition(".")[0]
        if not re.fullmatch(_LAYER, module):
            raise InputError(
                f"{path}: {ours} is no name of a layer here; they are down_1.conv.conv.0, "
                "neck.conv.0, up_1.up, up_1.conv.conv.0, out, with other numbers"
            )
        other = modules.setdefault(ours, theirs)
        if other != theirs:
            raise InputError(f"{path}: two lines give {ours}, {other} and {theirs}; take one away")
    layers = {ours.rpartition(".")[0].split(".conv.")[0] for ours in names.values()}
    levels = {name.partition(".")[0] for name in layers}
    depth = max((int(n.partition("_")[2]) for n in levels if "_" in n), default=0)
    if depth > MOST_LEVELS:
        raise InputError(f"{path}: level {depth} is named, and a net has at most {MOST_LEVELS}")
    needed = [f"{side}_{n}" for side in ("down", "up") for n in range(1, depth + 1)]
    missing = [name for name in (*needed, "neck", "out") if name not in levels]
    ups = [f"up_{n}.up" for n in range(1, depth + 1)]
    has_ups = [any(layer.startswith(up) for layer in layers) for up in ups]
    if any(has_ups):
        missing += [up for up, there in zip(ups, has_ups, strict=True) if not there]
    if missing:
        raise InputError(
            f"{path}: no line gives {list_names(missing, 3)}; add one for each layer of the net"
        )


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a table with dotted names; TOML reads a.b = "c" as a table in a table."""
    entries: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            entries |= _flatten(value, f"{prefix}{key}.")
        else:
            entries[f"{prefix}{key}"] = str(value)
    return entries
