"""What a run wrote down: JSON lines, and event files as TensorBoard's own messages read them."""

import io
import json
import math
import os
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from unet_spec import InputError
from unet_train.report.metrics_log import MetricsLog, read_metrics, read_validations

STEPS = (1, 20, 40, 60)


def _run(folder, *, steps=STEPS, resume_at=0):
    with MetricsLog(folder, resume_at=resume_at) as record:
        for step in steps:
            record.add_scalars(step, {"train/loss": 1 / step, "train/iou": 0.5})
            if step % 40 == 0:
                record.add_scalars(step, {"validation/mean_image_iou": step / 100})


def _strict(text):
    """JSON as its standard has it."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def _events(folder):
    """The messages of every event file, as tensorboardX's classes and its checksum read them."""
    messages = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content = io.BytesIO(path.read_bytes())
        while header := content.read(8):
            assert struct.unpack("<I", content.read(4))[0] == masked_crc32c(header)
            event = content.read(struct.unpack("<Q", header)[0])
            assert struct.unpack("<I", content.read(4))[0] == masked_crc32c(event)
            messages.append(Event.FromString(event))
    return messages


def _values(folder):
    return [
        (event.step, value.tag, value.simple_value)
        for event in _events(folder)
        for value in event.summary.value
    ]


def test_lines_equal_what_was_measured(tmp_path):
    _run(tmp_path)
    lines = _strict((tmp_path / "metrics.jsonl").read_text())
    training = [{"step": s, "kind": "train", "loss": 1 / s, "iou": 0.5} for s in STEPS]
    held_out = {"step": 40, "kind": "validation", "mean_image_iou": 0.4}
    assert lines == read_metrics(tmp_path) == [*training[:3], held_out, training[3]]


def test_a_call_with_both_kinds_makes_a_line_of_each(tmp_path):
    with MetricsLog(tmp_path) as record:
        record.add_scalars(7, {"train/loss": 2, "validation/pooled_iou": np.float32(0.5)})
    assert read_metrics(tmp_path) == [
        {"step": 7, "kind": "train", "loss": 2.0},
        {"step": 7, "kind": "validation", "pooled_iou": 0.5},
    ]


def test_no_line_is_there_before_the_first(tmp_path):
    assert read_metrics(tmp_path) == []


def test_every_line_is_in_its_files_when_the_call_returns(tmp_path):
    with MetricsLog(tmp_path) as record:
        record.add_scalars(1, {"train/loss": 0.5})
        assert read_metrics(tmp_path) == [{"step": 1, "kind": "train", "loss": 0.5}]
        assert _values(tmp_path) == [(1, "train/loss", 0.5)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")], ids=str)
def test_what_is_not_finite_is_null_in_json_and_itself_in_tensorboard(tmp_path, value):
    with MetricsLog(tmp_path) as record:
        record.add_scalars(3, {"train/loss": value})
    assert _strict((tmp_path / "metrics.jsonl").read_text())[0]["loss"] is None
    np.testing.assert_equal(_values(tmp_path), [(3, "train/loss", float(value))])


@pytest.mark.parametrize("resume_at", [0, 19, 20, 40, 99])
def test_a_resumed_run_leaves_the_lines_of_one_that_never_stopped(tmp_path, resume_at):
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
        _run(tmp_path / name)
    again = [step for step in STEPS if step > resume_at]
    _run(tmp_path / "resumed", steps=again, resume_at=resume_at)
    whole, resumed = (
        (tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "resumed")
    )
    assert resumed == whole


def test_validations_up_to_a_step_are_read_with_every_bit_of_their_score(tmp_path):
    scores = {20: 0.1 + 0.2, 40: None, 60: 1 / 3}
    with MetricsLog(tmp_path) as log:
        for step, score in scores.items():
            log.add_scalars(step, {"train/loss": 1.0, "validation/mean_image_iou": score})
    assert read_validations(tmp_path / "nothing", until=99) == []
    assert read_validations(tmp_path, until=39) == [(20, 0.1 + 0.2)]
    assert read_validations(tmp_path, until=60) == [(20, 0.1 + 0.2), (40, None), (60, 1 / 3)]


def test_a_score_that_does_not_exist_is_null_in_json_and_not_in_tensorboard(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.add_scalars(3, {"validation/mean_image_iou": None, "validation/pixel_error": 0.25})
    assert _strict((tmp_path / "metrics.jsonl").read_text()) == [
        {"step": 3, "kind": "validation", "mean_image_iou": None, "pixel_error": 0.25}
    ]
    assert _values(tmp_path) == [(3, "validation/pixel_error", 0.25)]


@pytest.mark.parametrize("of_lines", [True, False])
def test_a_full_disk_is_told_with_the_file(tmp_path, of_lines):
    """/dev/full takes nothing."""
    record = MetricsLog(tmp_path)
    path = record._path if of_lines else record._events._path
    stream = record._lines if of_lines else record._events._stream
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), stream.fileno())
    with pytest.raises(OSError, match=r"No space left") as refusal, record:
        record.add_scalars(1, {"train/loss": 0.5})
    assert refusal.value.filename == str(path)


def test_a_line_cut_anywhere_is_dropped_and_those_before_it_stay(tmp_path):
    _run(tmp_path)
    path = tmp_path / "metrics.jsonl"
    content = path.read_bytes()
    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        MetricsLog(tmp_path, resume_at=60).__exit__()
        assert path.read_bytes().splitlines() == content.splitlines()[:whole], cut


def test_lines_are_whole_where_dropping_some_was_interrupted(tmp_path, monkeypatch):
    _run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(tmp_path, resume_at=20)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "line", ["{", "[]", "7", '{"kind": "train"}', '{"step": "1", "kind": "train"}', "\x00\xff"]
)
def test_a_line_in_the_middle_that_is_none_is_refused_by_its_number(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 1, "kind": "train"}\n'
    path.write_bytes((whole + line + "\n" + whole).encode("latin-1"))
    for look in (read_metrics, MetricsLog):
        with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 is not JSON"):
            look(tmp_path)
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize(
    "tag", ["train/loss", "validation/" + 300 * "long "], ids=["short", "long"]
)
@pytest.mark.parametrize("step", [0, 1, 127, 128, 2_000_000])
@pytest.mark.parametrize("value", [0.0, -1.5, 0.1, 1e39], ids=str)
def test_values_in_tensorboard_equal_those_given(tmp_path, tag, step, value):
    with MetricsLog(tmp_path) as record:
        record.add_scalars(step, {tag: value, "train/other": 1.0})
    with np.errstate(over="ignore"):
        expected = float(np.float32(value))
    assert _values(tmp_path) == [(step, tag, expected), (step, "train/other", 1.0)]


def test_pictures_in_tensorboard_equal_those_given(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 300, 3)).astype(np.uint8)
    with MetricsLog(tmp_path) as record:
        record.add_images(9, {"validation/0": pixels})
    (value,) = _events(tmp_path)[-1].summary.value
    assert (value.tag, value.image.height, value.image.width, value.image.colorspace) == (
        "validation/0", 37, 300, 3
    )  # fmt: skip
    shown = Image.open(io.BytesIO(value.image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(shown), pixels)


def test_tensorboard_is_told_from_which_step_a_run_happens_again(tmp_path):
    _run(tmp_path, steps=(1, 20, 40))
    _run(tmp_path, steps=(21,), resume_at=20)
    starts = [e for e in _events(tmp_path) if e.HasField("session_log")]
    assert [(e.step, e.session_log.status) for e in starts] == [
        (1, SessionLog.START), (21, SessionLog.START)
    ]  # fmt: skip
    versions = [e for e in _events(tmp_path) if e.file_version]
    assert [e.file_version for e in versions] == 2 * ["brain.Event:2"]
    assert [step for step, tag, _ in _values(tmp_path) if tag == "train/loss"] == [1, 20, 40, 21]
