"""What the project shows to people, collected: blocks and commands of documents, examples of
docstrings, and advice in messages."""

import ast
import contextlib
import dataclasses
import functools
import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import unet_cli
from unet_command.parsing import Command, parse
from unet_spec import Preprocessing, UNetConfig
from unet_spec.recipe import Optimizer, Recipe, Schedule
from unet_train import loop
from unet_train.config import (
    PRESETS,
    AugmentConfig,
    DataConfig,
    LossConfig,
    MeshConfig,
    TrainConfig,
)

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
             *sorted((ROOT / "benchmarks").glob("*.md"))]  # fmt: skip
PACKAGES = ("unet_spec", "unet_torch", "unet_jax", "unet_image", "unet_parity", "unet_page",
            "unet_bench", "unet_demo", "unet_plan", "unet_command", "unet_convert",
            "train")  # fmt: skip
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SOURCES += sorted(ROOT.glob("unet_*.py"))

ELSEWHERE = {
    "make demo": "continuous integration runs it as it stands",
    "make test": "continuous integration runs it as it stands; this test is a part of it",
    ". .venv/bin/activate": "this test runs in that environment",
    "python3 -m venv .venv": "`make` runs it, in the rule that makes .venv",
    ".venv/bin/pip install -c constraints.txt -e '.[all]'": "`make` runs it, with '.[test]'",
    "pip install -e '.[all]' 'jax[cuda13]'": "it takes gigabytes, and needs a GPU to be tried",
    "pip install -e '.[train]' 'jax[tpu]'": "it needs a TPU to be tried",
    "pip install 'unet-twins[plan]'": "`make` installs the same as a part of '.[test]'",
    "pip install 'unet-twins[plan-gpu]'": "it takes half a gigabyte",
    "unet plan cells --topology v5e:2x2 --largest": "it compiles for minutes; benchmarks/plan.py "
    "runs such commands, and test_plan.py the search",
}
"""Commands that are not run by this test, with the reason."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a document; `language` is what stands behind the opening fence."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """Return the document and the line where the block stands."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """Return the name of the file that the reader is told to write: its first line."""
        match = re.match(r"# (\w+\.\w+)\n", self.text)
        return match[1] if match else None

    @property
    def commands(self) -> list[str]:
        """Return the lines of a block of commands, without their comments."""
        lines = (line.split("  #")[0].strip() for line in self.text.splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a document, in their order."""
    text = document.read_text()
    return [
        Block(document, text[: match.start()].count("\n") + 1, match[1], match[2])
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def count_blocks() -> list[str]:
    """Return lines that say how many blocks of the documents are run, and which are not."""
    every = [block for document in DOCUMENTS for block in blocks(document)]
    python = [block for block in every if block.language == "python"]
    listings = [block for block in every if block.language == "text"]
    shells = [b for b in every if b not in python and b not in listings and b.file is None]
    commands = [command for block in shells for command in block.commands]
    left_out = [command for command in commands if command in ELSEWHERE]
    return [
        f"documents: {len(python)} blocks of Python and {len(commands) - len(left_out)} commands "
        f"are run, {len(left_out)} commands and {len(listings)} listings are not:",
        *(f"  {command}: {ELSEWHERE[command]}" for command in dict.fromkeys(left_out)),
        *(f"  {block.name}: a listing, nothing to run" for block in listings),
    ]


def inline_code(document: Path) -> list[str]:
    """Return what stands between single backquotes in running text and tables."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


@dataclasses.dataclass(frozen=True)
class Message:
    """A sentence in the code, with {} for what is filled in.

    Attributes:
        place: file and line.
        text: the sentence; a field that it names stands as Python has it: `data.crop_px={}`.
        names_fields: whether it is that of a `ConfigError`, which names fields of a config.
    """

    place: str
    text: str
    names_fields: bool = False


def messages() -> Iterator[Message]:
    """Yield the sentences in the product's code that name a command, a flag or a field."""
    fields = "|".join(map(re.escape, run_fields()))
    advice = re.compile(rf"--[a-z]|\bunet [a-z]+ |pip install|git lfs|numpy\.savez|\b({fields})\b")
    return (one for one in sentences() if one.names_fields or advice.search(one.text))


def sentences() -> Iterator[Message]:
    """Yield every string in the product's code with more than one word, but for docstrings."""
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        docstrings = _docstrings(tree)
        parts = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr | ast.BinOp) or is_config_error(node)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(tree):
            if id(node) in parts or id(node) in docstrings:
                continue
            names_fields = is_config_error(node)
            text = template_of(node) if names_fields else _text_of(node)
            if text and " " in text:
                place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                text = _word_markers(text) if names_fields else text
                yield Message(place, " ".join(text.split()), names_fields)


def is_config_error(node: ast.AST) -> bool:
    """Return whether a node makes a `ConfigError` or a `FieldError`."""
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") in {
        "ConfigError",
        "FieldError",
    }


def template_of(node: ast.AST) -> str:
    """Return the template of a `ConfigError` in the code, without those values that have a name."""
    assert isinstance(node, ast.Call)
    arguments = [_text_of(argument) or "{}" for argument in node.args]
    values = {keyword.arg: _text_of(keyword.value) or "{}" for keyword in node.keywords}
    if getattr(node.func, "id", "") == "FieldError":
        _, field, rule = arguments
        remedy = f"; {values['remedy']}" if "remedy" in values else ""
        template = f"{{{field}}} {rule}, got {{}}{remedy}"
    else:
        _, template = arguments
    for name in values:
        template = template.replace(f"{{{name}}}", "{}")
    return template


@dataclasses.dataclass(frozen=True)
class ConfigErrorCall:
    """A place in the code that makes a `ConfigError`.

    Attributes:
        place: file and line.
        owners: the classes of which its config may be.
        template: its sentence, with the fields marked.
        marks: the paths of fields that the template marks, as far as the code spells them out.
    """

    place: str
    owners: tuple[type, ...]
    template: str
    marks: tuple[str, ...]


CONFIGS = {one.__name__: one for one in (
    UNetConfig, Preprocessing, Optimizer, Schedule, Recipe, DataConfig, AugmentConfig, LossConfig,
    MeshConfig, TrainConfig,
)}  # fmt: skip


def config_errors() -> Iterator[ConfigErrorCall]:
    """Yield every place in the product's code that makes a `ConfigError` of a known config."""
    for path in SOURCES:
        for outer in ast.parse(path.read_text()).body:
            yield from _config_errors(outer, {}, str(path.relative_to(ROOT)))


def _config_errors(node: ast.AST, names: dict[str, str], place: str) -> Iterator[ConfigErrorCall]:
    """Yield those in a node.

    Args:
        names: the types of names that are known there, as they are written.
        place: the file.
    """
    if isinstance(node, ast.ClassDef):
        names = names | {"self": node.name}
    if isinstance(node, ast.FunctionDef):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        names = names | {a.arg: ast.unparse(a.annotation) for a in arguments if a.annotation}
    if is_config_error(node):
        assert isinstance(node, ast.Call)
        config = node.args[0]
        written = ast.unparse(config.func if isinstance(config, ast.Call) else config)
        owners = [CONFIGS[n] for n in names.get(written, written).split(" | ") if n in CONFIGS]
        assert owners or names[written] == "Any", f"{place}:{node.lineno}: of what config?"
        if owners:
            template = template_of(node)
            marks = re.findall(r"{([A-Za-z_][\w.]*)(?:=[^{}]*|={})?}", template)
            yield ConfigErrorCall(f"{place}:{node.lineno}", tuple(owners), template, tuple(marks))
    for child in ast.iter_child_nodes(node):
        yield from _config_errors(child, names, place)


def _word_markers(template: str) -> str:
    """Return a template with the fields that it marks as Python has them."""

    def word(match: re.Match[str]) -> str:
        path, equals, value = match.groups()
        return f"{path}={value or filled}" if equals else path

    filled = "\0"
    template = template.replace("{}", filled)
    return re.sub(rf"{{([\w.{filled}]+)(=?)([^{{}}]*)}}", word, template).replace(filled, "{}")


def _docstrings(tree: ast.AST) -> set[int]:
    """Strings that stand alone: docstrings of modules, classes, functions and fields."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def _text_of(node: ast.AST) -> str | None:
    """Return the text of a string, of an f-string, or of such added together."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_text_of(part) or "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left, right = _text_of(node.left), _text_of(node.right)
        return None if left is None and right is None else (left or "") + (right or "")
    return None


def run_fields() -> list[str]:
    """Return the fields of a training run by their dotted names: data.crop_px and so on."""
    return [
        f"{part.name}.{field.name}"
        for part in dataclasses.fields(TrainConfig)
        if dataclasses.is_dataclass(part.type)
        for field in dataclasses.fields(part.type)
    ]


@functools.cache
def flags() -> frozenset[str]:
    """Return every flag that a verb of `unet` takes."""
    verbs = [["demo"], ["predict"], ["convert"], ["verify"], ["bench"]]
    verbs += [[verb, preset] for verb in ("train", "plan") for preset in PRESETS]
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "400")
        for verb in verbs:
            with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
                parse(Command((*verb, "--help")), unet_cli.VERBS)
    return frozenset(re.findall(r"--[a-z][A-Za-z0-9.-]*[a-z0-9]", shown.getvalue()))


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    status: int
    text: str


class _Compiling(BaseException):
    """A training run has begun, and would compile its step now."""


def _stop_before_compiling(*_: object) -> None:
    raise _Compiling


def run_unet(command: str, folder: Path, *, compiles: bool = True) -> Done:
    """Run a command line of `unet` in this process, in a folder, as a person types it.

    Args:
        compiles: False ends a training run, with status 0, where it would compile its step: its
            flags, data, devices and folder have been accepted by then.
    """
    words = shlex.split(command)
    assert words[0] == "unet", command
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "400")
        patch.setattr(sys, "argv", words)
        if not compiles:
            patch.setattr(loop, "compile_steps", _stop_before_compiling)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                unet_cli.main()
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else 1
            except _Compiling:
                status = 0
    return Done(status, " ".join(printed.getvalue().split()))
