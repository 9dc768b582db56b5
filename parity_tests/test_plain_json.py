"""JSON of files, and files of a run and of recordings, that are not what was written."""

import json
from dataclasses import replace

import pytest
import safetensors.numpy
import torch

from benchmarks.whole_files import draw_run, write_run
from unet_convert import conversion
from unet_parity import oracle
from unet_spec import InputError, Preprocessing, UNetConfig, weight_file
from unet_spec.errors import FieldError
from unet_spec.plain_json import MOST_LEVELS, read_json
from unet_spec.weight_file import WeightFile
from unet_torch import training_state as torch_state
from unet_train.config import CELLS
from unet_train.input.dataset import open_dataset
from unet_train.report import metrics_log
from unet_train.run import beginning
from unet_train.run import folder as run_folder

NET = UNetConfig(widths=(4, 6))
WEIGHTS = WeightFile(NET, oracle.random_tensors(NET, seed=0), class_names=("a", "b"))
TWICE = '"version": 1, "version": 1'


def test_what_json_says_is_returned():
    content = {"a": [1, -2.5, None, True, "x"], "b": {"a": 10**40}}
    assert read_json(json.dumps(content)) == content
    assert read_json(b"[]") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"),
        ("[NaN]", "NaN is no number"),
        ("-Infinity", "-Infinity is no number"),
        ("1e999", "too large"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1), "nested too deeply"),
        ("9" * 5000, "digits"),
        ("{", "Expecting"),
    ],
)
def test_what_no_program_writes_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        read_json(text)


def write_card(path, old, new):
    """A weight file without a hash whose card has other words."""
    weight_file.write(path, WEIGHTS)
    with safetensors.safe_open(path, "np") as file:
        text = file.metadata()["unet"]
    card = json.loads(text)
    del card["sha256"]
    text = json.dumps(card, sort_keys=True)
    assert old in text
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors, path, {"unet": text.replace(old, new)})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"version": 1', TWICE),
        ('"version": 1', '"version": true'),
        ('"version": 1', '"version": 0'),
        ('"version": 1', '"version": 1.0'),
        ('"class_names": ["a", "b"]', '"class_names": "ab"'),
        ('"class_names": ["a", "b"]', '"class_names": [1, 2]'),
        ('"class_names": ["a", "b"]', '"class_names": {"a": 1, "b": 2}'),
        ('"class_names": ["a", "b"]', '"class_names": ["\\ud800", "b"]'),
        ('"negative_slope": 0.01', '"negative_slope": NaN'),
        ('"negative_slope": 0.01', '"negative_slope": 1e308'),
        ('"in_channels": 1', '"in_channels": ' + "9" * 5000),
        ('"window_px": null', '"window_px": 0'),
    ],
)
def test_a_card_with_other_values_is_refused_by_the_name_of_its_file(tmp_path, old, new):
    path = tmp_path / "w.safetensors"
    write_card(path, "", "")
    weight_file.read(path)
    write_card(path, old, new)
    with pytest.raises(InputError, match=r"w\.safetensors: "):
        weight_file.read(path)


def test_a_deeper_net_than_the_bound_can_be_written_and_is_not_read(tmp_path):
    path, words = tmp_path / "w.safetensors", "widths needs at most 16 levels, got"
    for levels in (16, 17):
        net = UNetConfig(widths=(1,) * levels)
        weight_file.write(path, WeightFile(net, oracle.random_tensors(net, seed=0)))
        if levels == 16:
            assert weight_file.read(path).config == net
    with pytest.raises(InputError, match=rf"w\.safetensors: .*{words}"):
        weight_file.read(path)
    with pytest.raises(FieldError, match=words):
        replace(CELLS, net=net)


def test_a_window_of_no_pixels_is_refused():
    with pytest.raises(InputError, match="window_px needs at least 1"):
        Preprocessing(window_px=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.json", '{"files": 5}'),
        ("data.json", '{"files": {"images/a.png": ["a"]}}'),
        (
            "data.json",
            '{"files": {"images/a.png": {"bytes": "a", "modified_ns": 1, "sha256": ""}}}',
        ),
        ("data.json", "{}"),
        ("data.json", "[" * 100_000),
        ("config.json", "[" * 100_000),
        ("config.json", "[]"),
        ("start.json", '{"settings": 5}'),
        ("start.json", '{"settings": null}'),
        ("start.json", '{"settings": ["zzz"]}'),
        ("start.json", '{"settings": [], "origin": 5}'),
        ("metrics.jsonl", '{"step": 1, "kind": "train", "loss": "x"}\n'),
        ("metrics.jsonl", '{"step": 1, "kind": "train", "lr": [1]}\n'),
        ("metrics.jsonl", '{"step": true, "kind": "train"}\n'),
        ("metrics.jsonl", "[" * 100_000 + "\n"),
        ("metrics.jsonl", "[]\n"),
    ],
)
def test_a_file_of_a_run_that_says_something_else_is_named(tmp_path, name, content):
    def read():
        run_folder.compare_with_beginning(run, CELLS, dataset)
        beginning.read_start_settings(replace(CELLS, start=run / "w.safetensors"), run=run)
        beginning.read_origin(None, run=run)
        metrics_log.read_validations(run, until=2)

    run, dataset = tmp_path / "run", open_dataset(CELLS)
    write_run(run)
    read()
    (run / name).write_text(content)
    with pytest.raises(InputError, match=name):
        read()


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", b"{}", 5, '{"config": NaN}', "null"])
def test_what_a_run_of_torch_says_of_its_net_is_read_with_care(tmp_path, text):
    path = tmp_path / "run.pt"
    torch_state.write(path, draw_run())
    content = torch.load(path, weights_only=True)
    torch.save({**content, "unet": text}, path)
    for weights_only in (False, True):
        with pytest.raises(InputError, match=r"run\.pt: its entry `unet` is damaged"):
            conversion.read(path, weights_only=weights_only)
