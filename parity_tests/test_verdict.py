"""What a reviewer sees of a verdict: the last screen of a terminal, and the top of the page."""

import html
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import unet_cli
import unet_torch
from parity_tests import planted
from parity_tests.browser import needs_browser, render
from unet_parity import (
    exact,
    float32_errors,
    integer_cases,
    oracle,
    page,
    precision,
    report,
    training,
    verify,
)
from unet_parity.scope import Scope
from unet_spec import InputError, UNetConfig
from unet_spec.weight_file import WeightFile

TINY = UNetConfig(widths=(4, 6))
WEIGHTS = WeightFile(TINY, oracle.random_tensors(TINY, seed=0))
SCREEN = 24
BOTH = ("inference", "training")


def run(config=TINY, **options):
    """A report with an exact proof of what compiles once: in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integer_cases, "RUNGS", integer_cases.RUNGS[:2])
        return verify.verify(
            config, **{"steps": 0, "other_sizes": False, "say": lambda text: None, **options}
        )


@pytest.fixture(scope="module")
def healthy():
    return run(weights=WEIGHTS, size=(12, 20), steps=2)


@pytest.fixture(scope="module")
def wrong():
    """A fault from which dozens of others follow."""
    with planted.planted("concat swapped"):
        return run(weights=WEIGHTS)


def terminal(result, width=80):
    """What a terminal shows, line by line."""
    console = Console(file=io.StringIO(), width=width)
    report.show(result, console)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def words(lines):
    return " ".join(" ".join(lines).split())


def text_of(markup):
    return words([html.unescape(re.sub(r"<[^>]*>", " ", markup))])


def box(result):
    """The text of the page's verdict, and of what is folded away in it."""
    whole = page.make_page(result).partition('<div class="result')[2].partition("</div>\n<p>")[0]
    folded = " ".join(re.findall(r"<details>.*?</details>", whole, re.DOTALL))
    return text_of(whole.replace(folded, "")), text_of(folded)


# the terminal


def test_the_last_screen_tells_the_whole_story_of_a_fault(wrong):
    lines = terminal(wrong)
    assert max(map(len, lines)) <= 80
    assert len(wrong.reasons) > 20
    screen = words(lines[-SCREEN:])
    ending = screen.partition("verdict: different")[2]
    assert f"first at fault: {wrong.reasons[0]}" in ending
    assert "inference: up_1: what reaches the input of up_1.conv differs by" in ending
    assert "it looks like swapped halves of a concatenation" in ending
    assert f"and {len(wrong.reasons) - 1} more; --report PAGE.html or --json FILE" in ending
    assert ending.endswith(f"{wrong.scope.compared} {wrong.scope.not_compared}")
    assert not any(reason in words(lines) for reason in wrong.reasons[1:])


@pytest.mark.parametrize("count", [1, 7], ids=["alone", "with_caveats"])
def test_the_last_screen_tells_the_whole_story_of_a_pass(healthy, count):
    caveats = tuple(f"caveat {n}: {'something that is not visible ' * 3}" for n in range(1, count))
    result = replace(healthy, reasons=(*healthy.reasons, *caveats))
    ending = words(terminal(result)[-SCREEN:]).partition("verdict: equivalent")[2]
    assert verify.ROUNDING in ending
    assert ending.endswith(f"{result.scope.compared} {result.scope.not_compared}")
    assert ("and 3 more; --report" in ending) == (count == 7)
    assert ("caveat 3" in ending) == (count == 7)


def test_a_fault_with_brackets_is_shown_as_it_is(healthy):
    reason = "inference: out: its output differs; it looks like weight[0] or [bold]"
    result = replace(healthy, verdict="different", reasons=(reason,))
    lines = terminal(result)
    assert reason in words(lines)
    assert "more;" not in words(lines)


# bounds: what is shown is what is judged by


def test_the_terminal_says_the_bounds_that_are_judged_by(healthy):
    visible = words(terminal(healthy))
    modules = (
        rf"modules by themselves: [\d.e+-]+, up to {float32_errors.LOCAL_FACTOR:g} x either way"
    )
    assert re.search(modules, visible)
    assert re.search(
        rf"gradients: [\d.e+-]+, up to {float32_errors.GRADIENT_FACTOR:g} x either way", visible
    )
    assert f"x torch's; {oracle.FACTOR:g} x either way" in visible


def test_the_page_says_the_bounds_that_are_judged_by(healthy):
    text = text_of(page.make_page(healthy))
    for factor in (float32_errors.LOCAL_FACTOR, float32_errors.GRADIENT_FACTOR):
        assert f"Allowed is a ratio of {factor:g} either way" in text
    assert re.search(rf"that of PyTorch [\d.]+ {oracle.FACTOR:g} either way", text)


def test_what_equivalent_means_is_what_is_judged_by(healthy):
    bounds = f"within a factor of {oracle.FACTOR:g} (gradients {float32_errors.GRADIENT_FACTOR:g})"
    assert oracle.FACTOR == float32_errors.LOCAL_FACTOR
    assert healthy.reasons[0] == verify.ROUNDING
    for said in (verify.ROUNDING, box(healthy)[0], page.SENTENCES["identical"]):
        assert bounds in said
        assert "neither is further" not in said
    docs = (Path(__file__).parent.parent / "docs" / "parity.md").read_text()
    gradients = f"{float32_errors.GRADIENT_FACTOR:g} times for gradients"
    assert f"more than {oracle.FACTOR:g} times the other ({gradients})" in docs
    assert f"| float32, a gradient, ratio | {float32_errors.GRADIENT_FACTOR:g} either way |" in docs


@pytest.mark.parametrize("show", [terminal, lambda result: [text_of(page.make_page(result))]])
@pytest.mark.parametrize(
    ("bits", "sentence"),
    [
        (precision.FLOAT32_BITS, "float32 arithmetic, with integers small enough for TF32"),
        (11, "JAX's products kept 11 bits of their factors, PyTorch's all 24"),
    ],
)
def test_the_tf32_row_says_in_which_arithmetic_it_ran(healthy, show, bits, sentence):
    assert sentence in words(show(replace(healthy, bits=bits)))


# the page


def test_the_box_says_the_verdict_one_fault_and_the_scope_and_folds_the_rest(wrong):
    visible, folded = box(wrong)
    first, *others = wrong.reasons
    assert "different" in visible
    assert f"First at fault: {first}" in visible
    assert f"{wrong.scope.compared} {wrong.scope.not_compared}" in visible
    assert f"and {len(others)} more" in folded
    for other in others:
        assert other in folded
        assert other not in visible


def test_the_box_of_a_pass_folds_nothing_and_says_its_caveats(healthy):
    visible, folded = box(replace(healthy, reasons=(*healthy.reasons, "bf16 is not asked")))
    assert folded == ""
    assert "bf16 is not asked" in visible
    assert f"{healthy.scope.compared} {healthy.scope.not_compared}" in visible


def with_a_long_axis(result):
    """The report with an error of 1e-17 in one module and one of 10 in another."""
    compared = result.comparisons[0]
    first, second, *rest = compared.layers
    first = replace(first, torch_error=1e-17 * first.scale)
    second = replace(second, torch_error=10 * second.scale)
    return replace(result, comparisons=(replace(compared, layers=(first, second, *rest)),))


@needs_browser
@pytest.mark.parametrize("width_px", [400, 700, 1280])
@pytest.mark.parametrize("change", [lambda result: result, with_a_long_axis], ids=["short", "long"])
def test_every_label_of_an_axis_is_whole_and_apart(healthy, tmp_path, change, width_px):
    visible = render(page.make_page(change(healthy)), tmp_path, width_px=width_px)
    assert visible.width == width_px
    assert visible.labels >= 4
    assert visible.clipped == []
    assert visible.overlapping == []


@needs_browser
def test_labels_that_are_cut_or_meet_are_noticed(tmp_path):
    """A label over the end of its cell, one over the end of what scrolls, and two in one place."""
    label = '<span style="position:absolute;white-space:nowrap;left:{}px">{}</span>'
    cell = '<th><div class="track" style="position:relative;width:{}px">{}</div></th>'
    text = (
        '<!doctype html><div style="overflow-x:auto"><table><tr>'
        + cell.format(50, label.format(40, "of the cell"))
        + cell.format(100, label.format(0, "one") + label.format(5, "two"))
        + cell.format(400, label.format(300, "of what scrolls"))
        + "</tr></table></div>"
    )
    visible = render(text, tmp_path)
    assert visible.labels == 4
    assert set(visible.clipped) == {"of the cell", "of what scrolls"}
    assert ["one", "two"] in visible.overlapping


# the scope


def test_the_scope_is_what_was_compared(healthy):
    (trajectory, _) = healthy.steps
    assert healthy.scope == Scope(
        input_size=healthy.x.shape[2:],
        own_weights=True,
        modes=tuple(c.agreement.mode for c in healthy.comparisons),
        steps=len(trajectory.parameters),
        step_size=(12, 20),
        exact_sizes=(("same", (12, 20)),),
    )
    assert healthy.scope.compared == (
        "Compared: the given weights on random inputs of 12 x 20 pixels (height x width), forward "
        "and gradients, in inference (training computes the same in this net); 2 training steps; "
        "exact proof on 12 x 20 pixels with padding=same."
    )
    assert healthy.scope.not_compared == (
        "Not compared: other sizes, and the code of predict around the net (tiles, windows, "
        "mirroring, preprocessing)."
    )


def test_the_scope_is_in_the_json(healthy):
    result = json.loads(json.dumps(healthy.to_json()))["scope"]
    assert result["compared"] == healthy.scope.compared
    assert result["not_compared"] == healthy.scope.not_compared
    assert (result["input_size"], result["modes"], result["steps"]) == ([12, 20], ["inference"], 2)


@pytest.mark.parametrize(
    ("scope", "sentence"),
    [
        (Scope(), "names and shapes of the tensors, and no pass of either net."),
        (Scope((8, 12)), "random weights on random inputs of 8 x 12 pixels"),
        (Scope((8, 12), steps=0), "no training steps"),
        (Scope((8, 12), modes=BOTH), "in inference and training; no"),
        (
            Scope((64, 96), own_input=True, modes=BOTH, steps=1, step_size=(8, 12)),
            "on the given input of 64 x 96 pixels (height x width), forward and gradients, "
            "in inference and training; 1 training step on random inputs of 8 x 12 pixels.",
        ),
        (
            Scope((8, 12), exact_sizes=(("same", (8, 12)), ("valid", (40, 42)))),
            "exact proof on 8 x 12 pixels with padding=same and 40 x 42 pixels with padding=valid.",
        ),
        (
            Scope((8, 12), reference=BOTH),
            "your --reference and JAX's net as a pair, in inference and training;",
        ),
        (
            Scope((8, 12), reference=("inference",), no_training="it drops values at random"),
            "other sizes, your --reference in training, where it drops values at random, and the",
        ),
        (
            Scope((8, 12), steps=2, step_size=(8, 12), precision="default"),
            "training steps in precision default",
        ),
    ],
)  # fmt: skip
def test_the_scope_says_what_it_is_not(scope, sentence):
    assert sentence in f"{scope.compared} {scope.not_compared}"


def test_an_input_of_ones_own_is_not_that_of_the_steps(healthy, monkeypatch):
    monkeypatch.setattr(integer_cases, "RUNGS", ())
    sizes = []

    def train_side_by_side(*args, size, **options):
        sizes.append(size)
        return replace(healthy.steps[0], batch=[2, 1, 4, 6])

    monkeypatch.setattr(training, "train_side_by_side", train_side_by_side)
    x = oracle.random_input(TINY, seed=5, size=(6, 10))[0]
    scope = verify.verify(
        TINY, weights=WEIGHTS, x=x, steps=2, reference=unet_torch.UNet(TINY), jax_precision="high",
        other_sizes=False, say=lambda text: None,
    ).scope  # fmt: skip
    assert sizes == [None, None]
    assert (scope.own_input, scope.input_size, scope.step_size) == (True, (6, 10), (4, 6))
    assert (scope.reference, scope.precision) == (("inference",), "high")


# the size


def test_the_size_is_that_of_every_part(healthy):
    assert healthy.x.shape[2:] == (12, 20)
    assert {row.size for row in healthy.exact} == {(12, 20)}
    assert {row.outputs for row in healthy.exact} == {TINY.classes * 12 * 20}
    assert [trajectory.batch for trajectory in healthy.steps] == 2 * [[2, 1, 12, 20]]


@pytest.mark.parametrize(
    ("padding", "size", "sizes"),
    [
        ("same", (12, 20), {"same": (12, 20), "valid": None}),
        ("same", (46, 50), {"same": (46, 50), "valid": (46, 50)}),
        ("valid", (47, 47), {"valid": (47, 47), "same": None}),
    ],
)
def test_a_padding_for_which_the_size_is_illegal_is_proven_at_its_own(
    monkeypatch, padding, size, sizes
):
    arguments = {}

    def prove_rungs(config, *, rungs, size, precision):
        arguments[config.padding] = size
        return ()

    monkeypatch.setattr(exact, "prove_rungs", prove_rungs)
    config = UNetConfig(widths=(4, 6), padding=padding, fit="crop" if 47 in size else "error")
    list(verify._prove_exactly(
        config, both_paddings=True, size=size, jax_precision="highest", say=lambda text: None
    ))  # fmt: skip
    assert arguments == sizes


def test_without_a_size_the_proof_is_as_it_was():
    """The default input of a base-width net of five levels, which the docs' figures rest on."""
    config = UNetConfig()
    assert integer_cases.small_size(config) == (32, 48)
    assert oracle.random_input(config, seed=0)[0].shape == (2, 1, 32, 48)


@pytest.mark.parametrize(
    ("norm", "images"), [("instance", 2), ("batch", 1), ("group", 1)], ids=lambda value: str(value)
)
def test_a_neck_of_one_value_is_refused_where_there_is_a_norm(norm, images):
    config = replace(TINY, norm=norm, groups=2 if norm != "group" else 6, widths=(6, 6))
    x = np.ones((images, 1, 2, 2), np.float32)
    with pytest.raises(InputError, match=f"2 x 2 pixels leaves norm={norm} one value in the neck"):
        run(config, x=x)
    verify._refuse_single_values(config, np.ones((images, 1, 2, 4), np.float32))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--size", "13", "20"), "--size 13 20: size 13 px is not legal: with padding=same each of "
         "the 1 pools must halve an even size; the nearest legal sizes: 12 and 14"),
        (("--size", "12", "20", "--image", "cell.png"), "--size and --image both give the input"),
        (("--size", "12", "20", "--recorded", "g.npz"), "--size and --recorded both give the"),
    ],
    ids=["illegal", "with_image", "with_recorded"],
)  # fmt: skip
def test_a_size_that_cannot_be_is_one_sentence(monkeypatch, capsys, flags, sentence):
    monkeypatch.setattr(sys, "argv", ["unet", "verify", "--config.widths", "4", "6", *flags])
    with pytest.raises(SystemExit) as ended:
        unet_cli.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"unet: {sentence}")


def test_the_size_reaches_every_part_from_the_command(monkeypatch):
    arguments = {}

    def fake(config, **options):
        arguments.update(options)
        raise InputError("enough")

    monkeypatch.setattr(verify, "verify", fake)
    command = ["unet", "verify", "--config.widths", "4", "6", "--size", "12", "20"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        unet_cli.main()
    assert arguments["size"] == (12, 20)
    assert arguments["x"] is None


def test_an_input_and_a_size_are_refused():
    with pytest.raises(InputError, match="both give the input"):
        run(x=np.zeros((1, 1, 8, 8), np.float32), size=(8, 8))
