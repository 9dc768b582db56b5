"""Every block, command and example that a document or a docstring shows is run."""

import doctest
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unet_cli
import unet_torch
from parity_tests import shown
from parity_tests.shown import ELSEWHERE, Block, run_unet
from unet_command.parsing import Command, parse
from unet_command.usage import list_kinds
from unet_spec import UNetConfig

NET = UNetConfig(widths=(4, 6))
RUN = ("--net.widths 8 16 --data.batch 2 --data.crop-px 32 --steps 2 --validate-every 2 "
       "--checkpoint-every 2 --mesh.data 1")  # fmt: skip
SIZES = {
    "unet verify": "--config.widths 6 9 --steps 2 --no-other-sizes",
    "unet verify --config.widths 8 16 --steps 0 --certificate unet.json": "--no-other-sizes",
    "unet verify demo_run/run/weights.safetensors --report page.html --json out.json": "--steps 2",
    "unet train nuclei --data.images IMAGES --data.masks MASKS --out RUN": (
        f"{RUN} --preprocessing.window-px 32"
    ),
    **{
        f"unet train nuclei --data.images IMAGES --data.masks MASKS {flags}": (
            f"{RUN} --preprocessing.window-px 32"
        )
        for flags in (
            "--data.split split.json --out RUN_SPLIT",
            "--data.validation-images MORE_IMAGES --data.validation-masks MORE_MASKS "
            "--out RUN_FOLDERS",
            "--data.groups '^[0-9]+' --out RUN_GROUPS",
        )
    },
    # test_plan.py compiles for a TPU, where its compiler can be installed
    "unet plan modern --topology v5e:2x2 --data.batch 64 --report plan.html --json plan.json": (
        "--topology cpu:2 --net.widths 4 6 --data.crop-px 16"
    ),
    "unet train nuclei --start start.safetensors --data.images IMAGES --data.masks MASKS "
    "--out FURTHER --steps 2000": (
        "--data.batch 2 --data.crop-px 32 --steps 4 --validate-every 2 --mesh.data 1"
    ),
    "unet train nuclei --start start.safetensors --data.images IMAGES --data.masks MASKS "
    "--out MY_RUN --steps 40": (
        "--data.batch 2 --data.crop-px 32 --steps 22 --validate-every 2 --mesh.data 1"
    ),
    'unet verify start.safetensors --reference my_unet.py:UNet --reference-arguments "1, 2"': (
        "--steps 2 --no-other-sizes"
    ),
}
"""Flags that are appended to a command, which make it small and nothing else. Continuous
integration runs `unet verify` at full width as well."""


def prepare(folder: Path) -> dict[str, Any]:
    """Make what documents take for granted in a folder, and the names that Python blocks use."""
    rng = np.random.default_rng(0)
    for part in ("IMAGES", "MASKS", "MORE_IMAGES", "MORE_MASKS"):
        (folder / part).mkdir()
    for index in range(4):
        image = rng.integers(0, 255, (40, 48), np.uint8)
        mask = (255 * (image > 127)).astype(np.uint8)
        for part in ("", "MORE_") if index < 2 else ("",):
            Image.fromarray(image).save(folder / f"{part}IMAGES" / f"{index}.png")
            Image.fromarray(mask).save(folder / f"{part}MASKS" / f"{index}.png")
    net = unet_torch.UNet(NET)
    (folder / "demo_run" / "run").mkdir(parents=True)
    unet_torch.save(net, folder / "demo_run" / "run" / "weights.safetensors")
    torch.save(net.state_dict(), folder / "model.pth")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for _ in range(2):
        net(torch.ones(1, 1, 8, 12)).sum().backward()
        optimizer.step()
        scheduler.step()
    parts: dict[str, Any] = {"model": net, "optimizer": optimizer, "scheduler": scheduler}
    torch.save({name: part.state_dict() for name, part in parts.items()}, folder / "run.pt")
    return parts


OWN = ("my_unet", "series", "series_jax", "layers")
"""The modules that documents tell the reader to write."""


@pytest.mark.parametrize(
    "document", [d for d in shown.DOCUMENTS if shown.blocks(d)], ids=lambda path: path.stem
)
def test_every_block_of_a_document_runs_in_its_order(document, tmp_path, monkeypatch):
    names = prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in shown.blocks(document):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
            for own in OWN:  # a block behind it runs in a Python that is started anew
                monkeypatch.delitem(sys.modules, own, raising=False)
        elif block.language == "python":
            exec(compile(block.text, block.name, "exec"), names)
        elif block.language != "text":
            run_commands(block, tmp_path)


def run_commands(block: Block, folder: Path) -> None:
    """Run the lines of a block, but for those that run elsewhere."""
    for command in block.commands:
        if command in ELSEWHERE:
            continue
        done = run_unet(f"{command} {SIZES.get(command, '')}", folder)
        assert done.status == 0, f"{block.name}: {command}: {done.text}"


@pytest.mark.parametrize("document", shown.DOCUMENTS, ids=lambda path: path.stem)
def test_every_fence_of_a_document_belongs_to_a_block(document):
    fences = re.findall(r"^\s*(?:```|~~~)", document.read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(shown.blocks(document))


@pytest.mark.parametrize("document", shown.DOCUMENTS, ids=lambda path: path.stem)
def test_every_file_and_heading_that_a_document_names_is_there(document):
    assert missing_places(document) == []


def missing_places(document: Path) -> list[str]:
    """Return the links of a document, and the source files named in it, that lead nowhere."""
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", document.read_text())
    broken = [link for link in links if not _leads_somewhere(document, link)]
    files = [
        span
        for span in shown.inline_code(document)
        if re.fullmatch(r"[\w.]+(/[\w.]+)*/[\w.]*", span)
    ]
    return broken + [
        file for file in files if not file.startswith(WRITTEN) and not (shown.ROOT / file).exists()
    ]


def _leads_somewhere(document: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = document.parent / path if path else document
    if not anchor:
        return target.exists()
    headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
    return anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]


def test_commands_that_run_elsewhere_are_shown_and_run_there():
    commands = {c for d in shown.DOCUMENTS for b in shown.blocks(d) for c in b.commands}
    assert ELSEWHERE.keys() <= commands | {c for d in shown.DOCUMENTS for c in shown.inline_code(d)}
    assert SIZES.keys() <= commands
    integration = (shown.ROOT / ".ci" / "run").read_text().splitlines()
    for command in ("make demo", "make test"):
        assert command in integration
    assert any(line.startswith("(.venv/bin/unet verify ") for line in integration)
    assert "-m venv .venv" in (shown.ROOT / "Makefile").read_text()


# folders and files that a run writes
WRITTEN = ("RUN/", "demo_run/", "checkpoints/", "tensorboard/", "pictures/")
# what stands for a value in running text
VALUES = {
    "N": "2",
    "I": "0",
    "P": "0.3",
    "HOST:PORT": "127.0.0.1:12345",
    "...": "x",
    "H": "16",
    "W": "24",
}
SHORT = {  # a flag that is explained by itself, with what it needs beside it
    "--data.images": "--data.images a --data.masks b",
    "--loss.ignore-index": "--loss.ignore-index 255",
}
VERBS = ("train nuclei --out RUN", "train paper --out RUN", "verify w.safetensors", "verify",
         "predict w.safetensors a.png --out OUT", "convert a.pt b.safetensors", "bench", "demo",
         "train cells --start w.safetensors --out RUN", "plan modern")  # fmt: skip


def _inline_commands() -> list[str]:
    spans = {span for document in shown.DOCUMENTS for span in shown.inline_code(document)}
    return sorted(span for span in spans if re.match(r"(unet [a-z]+ |--[a-z])", span))


def is_accepted(words: list[str]) -> bool:
    """Whether `unet` takes these words, without running them."""
    try:
        parse(Command(tuple(words)), unet_cli.VERBS)
    except SystemExit as ended:
        return ended.code == 0
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("span", _inline_commands())
def test_every_command_and_flag_in_running_text_is_one_that_unet_takes(span, capsys):
    words = [VALUES.get(word, word) for word in shlex.split(span)]
    if words[0] == "unet":
        assert is_accepted(words[1:])
        return
    if len(words) == 1:  # alone, it may need a value
        assert words[0] in shown.flags()
        return
    # the parser takes a third of a second
    takers = [v for v in VERBS if words[0] in list_kinds(unet_cli.VERBS[v.split()[0]])]
    assert any(is_accepted([*verb.split(), *words]) for verb in takers)


def _modules() -> list[str]:
    return [
        ".".join(path.relative_to(shown.ROOT).with_suffix("").parts)
        .removesuffix(".__init__")
        .replace("train.", "unet_train.", 1)
        for path in shown.SOURCES
        if ">>> " in path.read_text()
    ]


@pytest.mark.parametrize("module", _modules())
def test_every_example_in_a_docstring_runs(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0


def test_the_collection_finds_what_it_is_for(tmp_path, monkeypatch):
    document = tmp_path / "A.md"
    document.write_text(
        "`unet verify --size 1`\n\n```\nunet convert a b  # why\n```\n\n```python\n1 / 0\n```\n"
    )
    monkeypatch.setattr(shown, "ROOT", tmp_path)
    commands, python = shown.blocks(document)
    assert commands.commands == ["unet convert a b"]
    assert (python.language, python.name) == ("python", "A.md:7")
    assert shown.inline_code(document) == ["unet verify --size 1"]
    document.write_text("# One two\n[a](A.md#one-two) [b](A.md#one) [c](B.md) `train/x.py` `1/x`")
    assert missing_places(document) == ["A.md#one", "B.md", "train/x.py", "1/x"]
    assert not is_accepted(["verify", "--sizzle", "1"])
