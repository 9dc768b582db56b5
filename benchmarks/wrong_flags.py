"""Commands with the real flags of all verbs and good and bad values, carried up to where real work
would begin."""

import contextlib
import dataclasses
import io
import os
import shutil
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np

from benchmarks.watched import Case, FaultError, Outcome, Work, WorkBegins
from unet_spec import InputError

GOOD: dict[Any, tuple[str, ...]] = {
    int: ("1", "2", "3", "4", "8", "16"),
    float: ("0", "0.1", "0.5", "1", "2"),
    str: ("a", "b", "background"),
    Path: ("images", "masks", "images/0.png", "weights.safetensors", "weights.pt", "new"),
}
BAD: dict[Any, tuple[str, ...]] = {
    int: ("0", "-1", "1.5", "x", "", "nan", "9" * 30, "1e3", "9" * 5000, "-" + "9" * 20, "0x10",
          "1_0", "\uff13", "\u0663", " 1", "+1", "--1", "2147483648", "9223372036854775808"),
    float: ("-1", "nan", "inf", "-inf", "1e308", "1e-400", "x", "", "1e999", "-0.0", "1,5", "0x1p3",
            "\u0663.5", "9" * 400, "1e", "\u221e"),
    str: ("", "é", "a b", "-", "0" * 3000, "a\nb", "x" * 100_000, "\x1b[31m", "\u202e", "\udcff",
          "[bold]x[/bold]", "{widths}", "%s %d", "$(touch run)", "`touch run`", "a;touch run", "@a",
          "file.py:Net", "weights.pt:Net", "nothing.py:", ":", "~", "None", "=", "\U0001f600"),
    Path: ("", ".", "..", "/", "nothing/new", "nothing.json", "x" * 300, "images/none", "~",
           "~root/x", "/dev/null", "/dev/full", "/dev/zero", "/proc/self/mem", "http://localhost/x",
           "images/", "file:///etc/passwd", "a\nb.json", "\x1b[2J", "\udcff", "weights.pt/x",
           "x/" * 3000, "-", "images/0.png/x", "pipe", "circle", "\u202e.png", "con", "*.png",
           "images/*"),
}  # fmt: skip
WORDS = (
    "--zzz", "-x", "--", "zzz", "--out", "--config.", "--net.widths", "---", "--=", "-", "", "-h=1",
    "--help=3", "--out=", "--json=", "\x1b[31m", "x" * 100_000, "\u202e", "--\udcff", "--no-", "é",
    "--é", "--net", "--net.", "--.", "--\n", "@words", "--version",
)  # fmt: skip
Flag = tuple[str, Any]


def prepare(ready: Path) -> Work:
    """Return what types one command, in a folder with a few images and weights in it."""
    from PIL import Image

    from benchmarks.whole_files import draw_weights
    from unet_spec import weight_file
    from unet_torch import checkpoint

    shutil.rmtree(ready, ignore_errors=True)
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (ready / part).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 2, (40, 36), np.uint8) * (120 if part == "images" else 1)
            Image.fromarray(pixels).save(ready / part / f"{index}.png")
    weight_file.write(ready / "weights.safetensors", draw_weights())
    checkpoint.write(ready / "weights.pt", draw_weights().tensors)

    def make(case: Case, folder: Path) -> list[str]:
        here = shutil.copytree(ready, folder / "here")  # `--out ..` is within the case's folder
        os.mkfifo(here / "pipe")
        (here / "circle").symlink_to("circle")
        return draw_words(np.random.default_rng(case.number))

    return Work(make, run_command, lambda words, content: Outcome("unchecked"))


def run_command(words: list[str], folder: Path) -> None:
    """Type one command in a folder, and see how it ends.

    Raises:
        FaultError: it ends in something else than status 0, or status 2 and one line.
        InputError: with the line of a refusal.
        WorkBegins: it got so far.
    """
    import unet_cli

    printed, said = io.StringIO(), io.StringIO()
    back = Path.cwd()
    os.chdir(folder / "here")
    try:
        with (
            _stop_at_work(),
            mock.patch.object(sys, "argv", ["unet", *words]),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(said),
        ):
            unet_cli.main()
        raise AssertionError("main() has not ended the process")
    except SystemExit as ended:
        status = ended.code
    except WorkBegins:
        raise
    except BaseException as error:
        error.args = (f"{' '.join(words)[:300]!r}: {error}",)
        raise
    finally:
        os.chdir(back)
    text = said.getvalue().removesuffix("\n")
    if status == 0 and not text:
        return
    if status != 2 or not text.startswith("unet: ") or not text.isprintable():
        shown = " ".join(text.split())
        raise FaultError("noise", f"unet {' '.join(words)[:200]!r}: status {status}, {shown[:200]}")
    raise InputError(text)


def draw_words(rng: np.random.Generator) -> list[str]:
    """Draw the words of a command: mostly good ones, so that the bad ones are reached."""
    import unet_cli

    verbs = [verb for verb in unet_cli.VERBS if verb not in ("bench", "demo")]
    verbs = [*verbs, "train", "train", "bench", "demo"]
    verb = str(rng.choice(verbs))
    words = [verb, *_draw_positionals(verb, rng)]
    if verb in ("train", "predict"):
        words += ["--out", "new"]
    if verb == "plan":
        words += ["--topology", str(rng.choice(["cpu:1", "v5e:2x2", "zzz:4"]))]
    flags = list_flags(unet_cli.VERBS[verb])
    for _ in range(int(rng.integers(1, 6))):
        name, kind = flags[int(rng.integers(len(flags)))]
        words += draw_flag(name, kind, rng)
    for change in (_add_word, _mistype, _leave_out, _join, _repeat, _add_flag_of_another):
        if rng.random() < 0.06:
            change(words, rng)
    return words


def _add_word(words: list[str], rng: np.random.Generator) -> None:
    words.insert(int(rng.integers(len(words) + 1)), WORDS[int(rng.integers(len(WORDS)))])


def _mistype(words: list[str], rng: np.random.Generator) -> None:
    """Leave a letter out of a word, say it twice, or make all of them large."""
    at = int(rng.integers(len(words)))
    word = words[at]
    if word:
        place = int(rng.integers(len(word)))
        changed = [word[:place] + word[place + 1 :], word[:place] + word[place] + word[place:],
                   word.upper(), word[:place], word.replace("-", "_")]  # fmt: skip
        words[at] = changed[int(rng.integers(len(changed)))]


def _leave_out(words: list[str], rng: np.random.Generator) -> None:
    """Leave a word out: a verb, a flag, its value or a file."""
    del words[int(rng.integers(len(words)))]


def _join(words: list[str], rng: np.random.Generator) -> None:
    """Write a flag and its value as one word."""
    flags = [at for at, word in enumerate(words[:-1]) if word.startswith("--")]
    if flags:
        at = flags[int(rng.integers(len(flags)))]
        words[at : at + 2] = [f"{words[at]}={words[at + 1]}"]


def _repeat(words: list[str], rng: np.random.Generator) -> None:
    """Say some words twice."""
    start = int(rng.integers(len(words)))
    words += words[start : start + int(rng.integers(1, 4))]


def _add_flag_of_another(words: list[str], rng: np.random.Generator) -> None:
    """Add a flag that some verb has, perhaps another one."""
    import unet_cli

    verbs = list(unet_cli.VERBS.values())
    flags = list_flags(verbs[int(rng.integers(len(verbs)))])
    words += draw_flag(*flags[int(rng.integers(len(flags)))], rng)


def list_flags(verb: Callable[..., Any]) -> list[Flag]:
    """List the flags of a verb with their types."""
    hints = typing.get_type_hints(verb, include_extras=True)
    hidden = ("return", "command", "weights", "images", "source", "target")
    return [flag for name, kind in hints.items() if name not in hidden
            for flag in _list_of_type(name, kind)]  # fmt: skip


def _list_of_type(name: str, kind: Any) -> Iterator[Flag]:
    if typing.get_origin(kind) is typing.Annotated:
        base, *options = typing.get_args(kind)
        name = "" if any(getattr(option, "name", None) == "" for option in options) else name
        kind = base
    if not dataclasses.is_dataclass(kind):
        yield "--" + name.replace("_", "-"), kind
        return
    for field, inner in typing.get_type_hints(kind, include_extras=True).items():
        if field != "preset":
            yield from _list_of_type(f"{name}.{field}".lstrip("."), inner)


def draw_flag(name: str, kind: Any, rng: np.random.Generator) -> list[str]:
    """Draw a flag with a value, or with none where that is one of its forms."""
    if kind is bool:
        prefix, dot, last = name.removeprefix("--").rpartition(".")
        forms = [[name], [f"--{prefix}{dot}no-{last}"], [name, "yes"]]
        return forms[int(rng.choice(3, p=[0.5, 0.4, 0.1]))]
    origin, items = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return [name, str(rng.choice([*items, "zzz"]))]
    if origin in (typing.Union, types.UnionType):
        kinds = [item for item in items if item is not types.NoneType]
        return [name, "None"] if rng.random() < 0.1 else draw_flag(name, kinds[0], rng)
    if origin is tuple:
        return [name, *(_draw_value(items[0], rng) for _ in range(int(rng.integers(5))))]
    return [name, _draw_value(kind, rng)]


def _draw_value(kind: Any, rng: np.random.Generator) -> str:
    pool = BAD if rng.random() < 0.35 else GOOD
    values = pool.get(kind, pool[str])
    return values[int(rng.integers(len(values)))]


def _draw_positionals(verb: str, rng: np.random.Generator) -> list[str]:
    if rng.random() < 0.05:
        return []
    path = _draw_value(Path, rng)
    match verb:
        case "train" | "plan":
            return [str(rng.choice(["cells", "nuclei", "cells", "zzz"]))]
        case "predict":
            return [
                str(rng.choice(["weights.safetensors", path])),
                str(rng.choice(["images", path])),
            ]
        case "convert":
            target = ["new.pt", "new.safetensors", path]
            return [
                str(rng.choice(["weights.pt", "weights.safetensors", path])),
                str(rng.choice(target)),
            ]
        case "verify":
            return [] if rng.random() < 0.5 else [str(rng.choice(["weights.safetensors", path]))]
    return []


@contextlib.contextmanager
def _stop_at_work() -> Iterator[None]:
    """Let what takes long, or starts processes, raise `WorkBegins`."""
    places = (
        "unet_train.loop.compile_steps", "unet_train.overfit.compile_steps", "unet_demo.run.run",
        "unet_train.devices.supervise.run_watched", "unet_parity.verify.verify",
        "unet_bench.bench.bench", "unet_jax.predict", "unet_torch.predict",
        "unet_train.devices.processes.join_processes", "unet_plan.compiler.compile_step",
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(mock.patch(place, side_effect=WorkBegins))
        yield
