"""Words that make no command are refused in one sentence: every flag of every verb."""

import contextlib
import io
import sys
import typing
from pathlib import Path

import pytest

import unet_cli
from parity_tests import shown
from unet_command import parsing
from unet_command.usage import OF_PRESETS, describe_kind, explain_refusal, list_kinds
from unet_spec.errors import InputError
from unet_train.config import PROMISES

WHOLE = {
    "demo": ["demo"],
    "train": ["train", "cells", "--out", "new"],
    "plan": ["plan", "cells", "--topology", "v5e:2x2"],
    "predict": ["predict", "weights", "images", "--out", "new"],
    "convert": ["convert", "source", "target"],
    "verify": ["verify", "weights"],
    "bench": ["bench"],
}
FLAGS = [(verb, flag) for verb in WHOLE for flag in list_kinds(unet_cli.VERBS[verb])]
# what no flag of this type takes; a text takes everything
WRONG = {int: "4.5", float: "four", Path: None, str: None}


def refuse(monkeypatch, *words):
    """The sentence that a command ends in, without its beginning."""
    monkeypatch.setattr(sys, "argv", ["unet", *words])
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        unet_cli.main()
    text = said.getvalue()
    assert ended.value.code == 2, text
    assert text.startswith("unet: "), text
    assert text.endswith("\n"), text
    assert text[:-1].isprintable(), text
    assert len(text) < 900, text
    return text.removeprefix("unet: ").removesuffix("\n")


@pytest.fixture(autouse=True)
def no_box(monkeypatch):
    """The text of the parser's own box is for words of which nothing better is known."""

    def flatten(box):
        raise AssertionError(box)

    monkeypatch.setattr(parsing, "_flatten", flatten)


def test_a_command_without_a_verb_is_refused(monkeypatch):
    assert refuse(monkeypatch).startswith("no verb is given, one of demo, train, plan, predict, ")


def test_these_are_all_the_flags():
    assert {flag for _, flag in FLAGS} | {"--help"} == shown.flags()


@pytest.mark.parametrize(("verb", "flag"), FLAGS)
def test_a_flag_without_its_value_and_with_another_is_refused_by_its_name(monkeypatch, verb, flag):
    kind = list_kinds(unet_cli.VERBS[verb])[flag]
    begins = f"{flag} takes {'no value' if kind is bool else describe_kind(kind)}, got"
    for number, (got, words) in enumerate(list_wrong_words(flag, kind)):
        sentence = explain_refusal([*WHOLE[verb], *words], unet_cli.VERBS)
        assert (sentence or "").startswith(f"{begins} {got}; unet {verb} "), words
        if number == 0:  # the parser takes a third of a second
            assert refuse(monkeypatch, *WHOLE[verb], *words) == sentence


def list_wrong_words(flag, kind):
    """What the sentence says was typed, with the words."""
    if kind is bool:
        return [("yes", [flag, "yes"])]
    given, *_ = [one for one in typing.get_args(kind) if type(None) in typing.get_args(kind)] or [
        kind
    ]
    is_several = typing.get_origin(given) is tuple
    item = typing.get_args(given)[0] if is_several else given
    wrong = WRONG.get(item, "none-of-them")
    cases = [] if wrong is None else [(wrong, [flag, wrong]), (wrong, [f"{flag}={wrong}"])]
    if not (is_several and Ellipsis in typing.get_args(given)):
        cases += [("nothing", [flag]), ("nothing", [flag, "--json", "a.json"])]
    return cases


@pytest.mark.parametrize("words", ["verify --config.bias=yes", "convert --no-explain=no a b"])
def test_a_switch_with_a_value_is_refused_where_the_value_could_be_a_file(monkeypatch, words):
    flag, value = words.split()[1].split("=")
    assert refuse(monkeypatch, *words.split()).startswith(f"{flag} takes no value, got {value}; ")


@pytest.mark.parametrize("verb", WHOLE)
def test_a_flag_that_there_is_not_is_named_with_those_near_it(monkeypatch, verb):
    preset = "cells " if verb in OF_PRESETS else ""
    help_command = f"unet {verb} {preset}--help"
    sentence = refuse(monkeypatch, *WHOLE[verb], "--jsom", "a.json")
    assert sentence == f"--jsom is no flag of {verb}; --json is near it; {help_command} lists all"
    sentence = refuse(monkeypatch, *WHOLE[verb], "--zzzzz")
    assert sentence == f"--zzzzz is no flag of {verb}; {help_command} lists all"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("trian cells", "trian is no verb of unet; train is near it; unet --help lists all"),
        ("--stepz 3", "--stepz is no verb of unet; unet --help lists all"),
        ("plan", "plan needs a preset, one of nuclei, cells, paper, modern: unet plan nuclei "
         "--topology v5e:4x4 ..."),
        ("plan modern", "plan needs --topology with words, and it is missing; unet plan modern "
         "--help lists all"),
        ("train cellz --out new", "train needs a preset, one of nuclei, cells, paper, modern, not "
         "cellz: unet train nuclei --out RUN ..."),
        ("train --out new nuclie", "train needs a preset, one of nuclei, cells, paper, modern, not "
         "nuclie: unet train nuclei --out RUN ..."),
        ("train cells", "train needs --out with a path, and it is missing; unet train cells --help "
         "lists all"),
        ("train --steps 3 cells --out new", "--steps stands before the preset; write it behind "
         "cells; unet train cells --help lists all"),
        ("train cells --out new --widths 4 8", "--widths is no flag of train; --net.widths is near "
         "it; unet train cells --help lists all"),
        ("train cells --out new --stepz 3", "--stepz is no flag of train; --steps is near it; unet "
         "train cells --help lists all"),
        ("train cells --out new --size 3 4", "--size is no flag of train, but one of verify; unet "
         "train cells --help lists all"),
        ("train cells --out new -- x", "x is one word too many; train takes no word but a preset; "
         "unet train cells --help lists all"),
        ("train cells --out new --optimizer.betas 0.5", "--optimizer.betas takes 2 numbers, got "
         "0.5; unet train cells --help lists all"),
        ("train cells --out new --preset x", "--preset is no flag of train; unet train cells "
         "--help lists all"),
        ("verify --size 3 4 5", "--size takes 2 whole numbers, got 3 4 5; unet verify --help lists "
         "all"),
        ("verify --command x", "--command is no flag of verify; unet verify --help lists all"),
        ("verify a b", "b is one word too many; verify takes no word but WEIGHTS; unet verify "
         "--help lists all"),
        ("bench x", "x is one word too many; bench takes no word but its flags; unet bench --help "
         "lists all"),
        ("predict", "predict needs WEIGHTS, and it is missing; unet predict --help lists all"),
        ("convert", "convert needs SOURCE, and it is missing; unet convert --help lists all"),
    ],
)  # fmt: skip
def test_other_words_that_make_no_command(monkeypatch, words, sentence):
    assert refuse(monkeypatch, *words.split()) == sentence


@pytest.mark.parametrize(
    ("word", "shows"),
    [
        ("9" * 5000, f"'{'9' * 120}... (5000 characters)'"),
        ("3\n\x1b[2J", r"'3\n\x1b[2J'"),
        ("3\udcff", r"'3\udcff'"),
        ("3\u202e4", r"'3\u202e4'"),
    ],
    ids=["long", "of a terminal", "no unicode", "turned"],
)
@pytest.mark.parametrize("place", ["value", "flag", "verb", "word"])
def test_what_was_typed_is_cut_and_printable(monkeypatch, word, shows, place):
    words = {
        "value": [*WHOLE["train"], "--steps", word],
        "flag": [*WHOLE["train"], f"--{word}", "3"],
        "verb": [word],
        "word": ["bench", word],
    }[place]
    if place == "flag":
        shows = shows.replace("'", "'--", 1).replace("9" * 120, "9" * 118).replace("5000", "5002")
    assert shows in refuse(monkeypatch, *words)


def test_a_value_of_a_config_and_a_path_are_cut_and_printable(monkeypatch):
    words = [str(number) for number in range(3000)]
    sentence = refuse(monkeypatch, *WHOLE["train"], "--class-names", *words)
    assert sentence.endswith("--net.classes 2, got 0 1 2 3 4 5 6 7 8 9 10 11 and 2988 more")
    for name in ("x" * 5000, "a\x1b[2Jb"):
        refuse(monkeypatch, "verify", name)


def test_words_of_which_nothing_is_known_give_what_the_parser_says(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(parsing, "explain_refusal", lambda words, verbs: None)
    sentence = refuse(monkeypatch, "bench", "x")
    assert sentence.startswith("Unrecognized options Unrecognized options: x For full")


def test_a_whole_command_is_not_explained(monkeypatch):
    """A sentence is only sought where the parser refuses; and it finds nothing in what it takes."""
    for verb, words in WHOLE.items():
        assert explain_refusal(words, unet_cli.VERBS) is None, verb
    for preset in PROMISES:
        with pytest.raises(InputError, match="got 0"):
            parsing.parse(
                parsing.Command(("train", preset, "--out", "a", "--steps", "0")), unet_cli.VERBS
            )
