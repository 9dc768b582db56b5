"""What people read begins with a whole sentence: the help of every verb, and every docstring."""

import ast
import contextlib
import functools
import inspect
import io
import itertools
import re
from collections.abc import Iterator

import docstring_parser
import pytest

import unet_cli
from parity_tests import shown
from unet_command.parsing import Command, parse
from unet_command.usage import OF_PRESETS
from unet_command.wording import list_flags
from unet_train.config import PROMISES

# what a sentence of the help may begin with that says what the flag makes the command do
IMPERATIVES = {
    "Add", "Average", "Bend", "Compare", "Compile", "Compute", "Convert", "Enlarge", "Find",
    "Give", "Go", "Keep", "Leave", "Mirror", "Move", "Multiply", "Only", "Predict", "Prove", "Read",
    "Say", "Segment", "Take", "Time", "Train", "Turn", "Validate", "Write",
}  # fmt: skip
# the verbs of all other sentences of the help
VERBS = {
    "add", "are", "bears", "began", "begins", "compared", "computes", "count", "counts", "divides",
    "ends", "falls", "follows", "get", "has", "have", "holds", "is", "keep", "keeps", "leaves",
    "listens", "moves", "multiplies", "pads", "peaks", "reaches", "rises", "says", "sees", "sets",
    "stand", "stands", "starts", "stay", "turns", "uses", "watches",
}  # fmt: skip
# a first word that only goes on from a name that the reader does not see
DANGLING = {"Of", "That", "Likewise", "Which", "Whether", "What", "How", "Where", "As", "With"}


def first_sentence(text: str) -> str:
    """Return a text up to its first semicolon, colon or period, with that."""
    match = re.match(r"(?:[^;:.`(]|`[^`]*`|\([^)]*\)|[.:](?=\S))*[;:.]", text)
    return match[0] if match else text


def what_is_wrong(text: str) -> str | None:
    """Return why a text of the help does not begin with a whole sentence, or None if it does."""
    sentence = first_sentence(text)
    words = re.findall(r"[A-Za-z]+", re.sub(r"`[^`]*`", "", sentence))
    if not re.match(r"[A-Z]", text):
        return "it does not begin with a capital"
    if not text.endswith("."):
        return "it does not end with a period"
    if words[0] in DANGLING:
        return f"it begins in the middle: {words[0]}"
    if len(words) < 3:
        return "it has less than three words"
    if words[0] not in IMPERATIVES and not VERBS & {*words}:
        return "it has no verb"
    return None


def help_texts() -> dict[str, str]:
    """Return what the help says, by what it explains: a verb, a flag of it, a config, a preset."""
    texts = {f"unet {verb} {p}": promise for verb in OF_PRESETS for p, promise in PROMISES.items()}
    for name, verb in unet_cli.VERBS.items():
        parsed = docstring_parser.parse(inspect.getdoc(verb) or "")
        texts[f"unet {name}"] = parsed.short_description or ""
        for parameter in parsed.params:
            flag = f"--{parameter.arg_name.replace('_', '-')}"
            texts[f"unet {name} {flag}"] = parameter.description or ""
        for (config, field), flag in list_flags(verb).items():
            texts[f"unet {name} {flag}"] = field_docstrings(config)[field]
            texts[f"unet {name} {config.__name__}"] = docstring_parser.parse(
                inspect.getdoc(config) or ""
            ).short_description or ""  # fmt: skip
    return {place: " ".join(text.split()) for place, text in texts.items()}


@functools.cache
def field_docstrings(config: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, by the field's name."""
    (tree,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: below.value.value
        for field, below in itertools.pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(below.value.value, str)
    }


TEXTS = help_texts()


@pytest.mark.parametrize("place", TEXTS)
def test_help_begins_with_a_whole_sentence(place):
    reason = what_is_wrong(TEXTS[place])
    assert reason is None, f"{reason}: {TEXTS[place]}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Which.", "it begins in the middle"),
        ("Of the initial weights, the split, the crops and the dropout.", "begins in the middle"),
        ("Which of them this is, from 0; on a TPU pod it is found out.", "begins in the middle"),
        ("Images in a step.", "it has no verb"),
        ("Number of batches; a schedule without a length ends at the last.", "it has no verb"),
        ("Folder of images. It is read once.", "it has no verb"),
        ("write the scores there.", "it does not begin with a capital"),
        ("The scores go into this file", "it does not end with a period"),
        ("Turn it.", "less than three words"),
    ],
)
def test_a_text_that_is_no_sentence_is_refused(text, reason):
    assert reason in (what_is_wrong(text) or "")


def test_every_word_of_the_lists_is_used_so_they_do_not_grow_beyond_the_help():
    sentences = [first_sentence(text) for text in TEXTS.values()]
    first = {sentence.partition(" ")[0] for sentence in sentences}
    words = {word for sentence in sentences for word in re.findall(r"[A-Za-z]+", sentence)}
    assert (IMPERATIVES - first, VERBS - words) == (set(), set())


def test_these_are_all_the_texts_of_the_help():
    explained = {place.split()[-1] for place in TEXTS}
    negated = {re.sub(r"(--(?:.*\.)?)no-", r"\1", flag) for flag in shown.flags()}
    assert negated - explained == {"--help"}
    printed = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")  # one column
        for words in (
            [],
            *([verb] for verb in unet_cli.VERBS),
            *([v, p] for v in OF_PRESETS for p in PROMISES),
        ):
            printed += help_of(*words)
    # positional arguments have no flag, the config's own docstring yields to that of the argument
    unseen = {place: text for place, text in TEXTS.items() if text not in printed}
    parts = ("--config", "--preset", "TrainConfig")
    hidden = {f"unet {verb} {part}" for verb in OF_PRESETS for part in parts}
    hidden |= {f"unet {verb} --command" for verb in unet_cli.VERBS}
    hidden |= {f"unet {verb} UNetConfig" for verb in ("convert", "verify")}
    assert unseen.keys() <= hidden


def help_of(*words: str) -> str:
    """Return what `unet WORDS --help` prints, on one line and without its boxes."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), pytest.raises(SystemExit):
        parse(Command((*words, "--help")), unet_cli.VERBS)
    return " ".join(re.sub("[│╭╮╰╯─•]", " ", stream.getvalue()).split())


def public_docstrings() -> Iterator[tuple[str, str]]:
    """Yield (place, docstring) of every public function and class of the product."""
    for path in (*shown.SOURCES, *sorted((shown.ROOT / "benchmarks").glob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                text = ast.get_docstring(node)
                if text:
                    yield f"{path.relative_to(shown.ROOT)} {node.name}", text


def begins_well(docstring: str) -> bool:
    """Return whether the first paragraph of a docstring is a sentence as far as a test can see."""
    first = " ".join(docstring.split("\n\n")[0].split())
    (word,) = re.findall(r"^\S+?(?=[\s,.:]|$)", first)
    return (
        first[0].isupper() and first[-1] in ".:" and word not in {"Of", "That", "Likewise", "Which"}
    )


def test_docstrings_begin_with_a_capital_and_a_first_sentence_that_stands_alone():
    docstrings = list(public_docstrings())
    assert len(docstrings) > 400
    wrong = []
    for place, text in docstrings:
        if not begins_well(text):
            wrong.append(f"{place}: {text.splitlines()[0]}")
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    ["Likewise, in this process.", "Of a batch as it is cut.", "(x, truth) of a batch.",
     "That of each array.", "numpy arrays.", "Return the mean", "`f` is it, and\n\nthat."],
)  # fmt: skip
def test_a_docstring_that_begins_in_the_middle_is_refused(text):
    assert not begins_well(text)
