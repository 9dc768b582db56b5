"""Words that were typed become a verb, ready to run."""

import contextlib
import difflib
import functools
import inspect
import io
import re
import shlex
import sys
import typing
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import tyro
from tyro.conf import arg

from unet_command.usage import OF_PRESETS, check_switches, explain_refusal
from unet_command.wording import show_word
from unet_spec import InputError
from unet_train.config import PROMISES, list_presets


class Command(NamedTuple):
    """A `Command` is what was typed: the words after `unet`."""

    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the command as a line that repeats it in a shell."""
        return shlex.join(["unet", *self.words])

    @property
    def verb(self) -> str:
        """Return the first word, which names the verb; empty where nothing was typed."""
        return self.words[0] if self.words else ""

    def list_settings(self, flag: str) -> frozenset[str]:
        """Name the fields of a config of which a flag is given, also with its default.

        Args:
            flag: before their names, such as `--config.`.
        """
        given = [word.split("=", 1)[0].removeprefix(flag) for word in self.words
                 if word.startswith(flag)]  # fmt: skip
        return frozenset(name.removeprefix("no-").replace("-", "_") for name in given)

    def find_value(self, flag: str) -> str | None:
        """Return the value of a flag before all flags are parsed, or None where it is not given."""
        words = [part for word in self.words for part in word.split("=", 1)]
        values = [value for name, value in pairwise(words) if name == flag]
        return values[-1] if values else None


def parse(command: Command, verbs: Mapping[str, Callable[..., int]]) -> Callable[[], int]:
    """Return the verb that a command names, with its arguments.

    Args:
        command: what was typed.
        verbs: functions by their names; each takes `command`, and gets it.

    Raises:
        InputError: of a config, or of words that tyro refuses; it would draw a box around either.
        SystemExit: help was asked for.
    """
    if not command.words:
        raise InputError(f"no verb is given, one of {', '.join(verbs)}; unet --help lists all")
    if command.verb in verbs:
        check_switches(command.words, verbs[command.verb])
    ready = {name: _defer(verb, command) for name, verb in verbs.items()}
    presets = _offer_presets(command)
    for name in OF_PRESETS:
        ready[name].__annotations__["config"] = presets
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.extras.subcommand_cli_from_dict(
                ready,
                args=command.words,
                prog="unet",
                description="One U-Net in PyTorch and JAX, proven the same.",
                config=(tyro.conf.CascadeSubcommandArgs,),
            )
    except SystemExit as ended:
        cause: BaseException | None = ended
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        if ended.code:
            # what tyro says of words is text for a terminal, and its errors as values are private
            sentence = explain_refusal(command.words, verbs) or _flatten(printed.getvalue())
            raise InputError(sentence) from None
        sys.stderr.write(printed.getvalue())
        raise


def _flatten(box: str) -> str:
    """Return the text of tyro's box on one line."""
    return " ".join(re.sub("[─-╿]", " ", box).split())


def _defer(verb: Callable[..., int], command: Command) -> Callable[..., Callable[[], int]]:
    """Return a function with the flags of a verb, which gives the verb, ready to run."""

    @functools.wraps(verb)
    def ready(*arguments: Any, **flags: Any) -> Callable[[], int]:
        return functools.partial(verb, *arguments, **{**flags, "command": command})

    # tyro keeps line breaks within an argument's text, and would wrap the lines once more
    ready.__doc__ = re.sub(r"\n {8,}", " ", inspect.getdoc(verb) or "")
    # it would read the annotations of what is wrapped, and those of `OF_PRESETS` are changed
    ready.__annotations__ = typing.get_type_hints(verb, include_extras=True)
    attributes = vars(ready)
    attributes["__signature__"] = inspect.signature(verb)
    del attributes["__wrapped__"]
    return ready


def _offer_presets(command: Command) -> Any:
    """Return the type of which tyro makes `unet train PRESET`: flags begin as the preset says.

    Raises:
        InputError: no preset was typed.
    """
    if command.verb in OF_PRESETS and not {*PROMISES, "-h", "--help"} & {*command.words}:
        others = [word for word in command.words[1:2] if not word.startswith("-")]
        near = [word for word in command.words[1:] if difflib.get_close_matches(word, PROMISES)]
        word = next(iter([*others, *near]), None)
        instead = "" if word is None else f", not {show_word(word)}"
        raise InputError(
            f"{command.verb} needs a preset, one of {', '.join(PROMISES)}{instead}: "
            f"unet {command.verb} nuclei {OF_PRESETS[command.verb]} ..."
        )
    names = {part: command.find_value(f"--{part}.name") for part in ("optimizer", "schedule")}
    configs = list_presets(**names)
    preset = tyro.extras.subcommand_type_from_defaults(configs, PROMISES, prefix_names=False)
    return Annotated[preset, arg(name="")]
