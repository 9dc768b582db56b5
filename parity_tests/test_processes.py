"""Runs of two processes over the loopback interface, as a person starts them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from parity_tests.compiling import CHEAP_FLAGS
from unet_command import training
from unet_spec import training_state, weight_file
from unet_train.devices import supervise
from unet_train.input import synthetic
from unet_train.report.metrics_log import read_metrics

FLAGS = [
    "cells", "--net.widths", "4", "6", "--net.norm", "batch", "--data.crop-px", "32",
    "--data.batch", "4", "--data.synthetic", "4", "--ema", "0.9", "--validate-every", "1000000",
    "--checkpoint-every", "5",
]  # fmt: skip


FLAGS_OF_XLA = f"--xla_force_host_platform_device_count=2 {CHEAP_FLAGS}"


def started(out, *flags, variables={}):
    return subprocess.Popen(
        [sys.executable, "-m", "unet_cli", "train", *FLAGS, *flags, "--out", str(out)],
        env={**os.environ, "XLA_FLAGS": FLAGS_OF_XLA, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def pair(out, *flags, each=((), ()), count=2, variables=({}, {})):
    """Two processes of two devices each, or the first of them alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    mesh = ["--mesh.processes", "2", "--mesh.coordinator", address]
    return [
        started(
            out,
            *(*flags, *each[index], *mesh, "--mesh.process", str(index)),
            variables=variables[index],
        )
        for index in range(count)
    ]


def losses(run):
    return [line["loss"] for line in read_metrics(run) if line["kind"] == "train"]


@pytest.fixture
def ended():
    """Kills what a test has left."""
    left: list[subprocess.Popen[str]] = []
    yield left
    for process in left:
        process.kill()
        process.communicate()


def test_two_processes_train_what_one_does(tmp_path, ended):
    # of Adam a gradient's size would not be seen
    steps = ["--steps", "6", "--optimizer.name", "sgd", "--optimizer.lr", "0.1",
             "--schedule.name", "constant"]  # fmt: skip
    ended += [
        started(tmp_path / "alone", *steps, "--mesh.data", "1"),
        *pair(tmp_path / "both", *steps, "--mesh.rows", "2", "--mesh.shard-parameters"),
    ]
    for process in ended:
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, out + err
    one, two = (weight_file.read(tmp_path / n / "weights.safetensors") for n in ("alone", "both"))
    np.testing.assert_allclose(losses(tmp_path / "both"), losses(tmp_path / "alone"), rtol=2e-5)
    # float32 sums in another order: 5e-7 was the largest seen; one step fewer is 0.17 apart
    for name, tensor in one.tensors.items():
        assert np.abs(tensor - two.tensors[name]).max() < 1e-5, name


COUNTING = """
import os
import unet_image
read_page = unet_image.read_page
def counted(page, **options):
    with open(os.environ["READ"], "a") as log:
        log.write(f"{page.path.parent.name}/{page.name}\\n")
    return read_page(page, **options)
unet_image.read_page = counted
"""


def test_two_processes_read_and_validate_half_each_with_the_scores_of_one(tmp_path, ended):
    (tmp_path / "sitecustomize.py").write_text(COUNTING)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number in range(8):
        image, mask = synthetic.draw_cells(number, height=64, width=48 + number)
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(255 * mask).save(tmp_path / "masks" / f"{number}.png")
    flags = [
        "--data.images", str(tmp_path / "images"), "--data.masks", str(tmp_path / "masks"),
        "--data.cache-gb", "0", "--data.holdout", "0.5", "--steps", "6", "--validate-every", "6",
        "--optimizer.name", "sgd", "--optimizer.lr", "0", "--schedule.name", "constant",
    ]  # fmt: skip
    logs = [tmp_path / f"{name}.txt" for name in ("alone", "first", "second")]
    place = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    each = [{"READ": str(log), "PYTHONPATH": place} for log in logs]
    ended.append(started(tmp_path / "alone", *flags, variables=each[0]))
    ended += pair(tmp_path / "both", *flags, variables=each[1:])
    for process in ended:
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, out + err
    reads = [log.read_text().split() for log in logs]
    # of 8 images 4 are held out: the doctor sees each once, six steps see 4, a validation sees 4
    halves = 8 + 6 * 4 + 4
    # the first of the processes draws pictures: of a batch, of 3 images in the log, of 4 at the end
    pictures = 4 + 3 + 4
    counts = [2 * (halves + pictures), 2 * (halves // 2 + pictures), 2 * (halves // 2)]
    assert [len(names) for names in reads] == counts
    alone, both = (
        [line for line in read_metrics(tmp_path / name) if line["kind"] == "validation"]
        for name in ("alone", "both")
    )
    assert len(alone) == 1
    assert alone == both


@pytest.mark.parametrize(("index", "dies"), [(0, "worker"), (1, "watcher")])
def test_a_process_that_dies_ends_the_other_with_a_sentence(tmp_path, ended, index, dies):
    """Each command is two processes: one that computes, and one that watches it."""
    ended += pair(tmp_path / "run", "--steps", "1000000", "--mesh.heartbeat-s", "2")
    until(lambda: list((tmp_path / "run" / "checkpoints").glob("[0-9]*")), ended)
    watcher = ended[index].pid
    workers = subprocess.run(["pgrep", "-P", str(watcher)], capture_output=True, text=True).stdout
    os.kill(int(workers) if dies == "worker" else watcher, signal.SIGKILL)
    other = ended[1 - index]
    _, err = other.communicate(timeout=120)
    assert other.returncode == 1, err
    assert err.startswith("unet: another process of the run died")
    assert err.count("\n") == 1
    assert "start all processes again" in err


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", True),
        ("DEADLINE_EXCEEDED: Barrier timed out. Id: score 20::0", True),
        ("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)", True),
        ("INTERNAL: CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_only_a_lost_exchange_is_another_process_that_died(monkeypatch, capsys, text, lost):
    left: list[int] = []
    monkeypatch.setattr(supervise, "is_watched", lambda: True)
    monkeypatch.setattr(supervise, "exit_now", left.append)
    with pytest.raises(jax.errors.JaxRuntimeError):
        training._end(jax.errors.JaxRuntimeError(text))
    said = capsys.readouterr().err
    assert left[0] == (supervise.LOST if lost else 1)
    assert said.startswith("unet: another process") == lost
    assert text in said


def test_processes_with_other_flags_are_refused(tmp_path, ended):
    ended += pair(tmp_path / "run", "--steps", "6", each=(["--seed", "1"], ["--seed", "2"]))
    told = [process.communicate(timeout=120)[1] for process in ended]
    assert [process.returncode for process in ended] == [2, 2], told
    for err in told:
        assert "process 1 was not given what process 0 was" in err
    assert not (tmp_path / "run").exists()


def test_a_coordinator_whose_port_is_taken_is_refused(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        first = started(
            tmp_path / "run", "--mesh.processes", "2", "--mesh.process", "0",
            "--mesh.coordinator", address,
        )  # fmt: skip
        _, err = first.communicate(timeout=120)
    assert first.returncode == 2
    assert err.startswith(f"unet: --mesh.coordinator {address}: this process cannot listen")


def test_a_process_that_waits_says_so_and_is_ended_with_a_sentence(tmp_path, ended):
    (alone,) = pair(tmp_path / "run", count=1)
    ended.append(alone)
    assert alone.stdout.readline() == "waiting for all 2 processes\n"
    alone.terminate()
    _, err = alone.communicate(timeout=60)
    assert alone.returncode == 143
    assert err.startswith("unet: SIGTERM ended this process")


def test_sigterm_to_one_process_stops_both_at_one_step(tmp_path, ended):
    ended += pair(tmp_path / "run", "--steps", "1000000")
    until(lambda: list((tmp_path / "run" / "checkpoints").glob("[0-9]*")), ended)
    ended[1].terminate()
    told = [process.communicate(timeout=120)[1] for process in ended]
    assert [process.returncode for process in ended] == [143, 143], told
    (step,) = {number for err in told for number in re.findall(r"stopped at step (\d+)", err)}
    assert training_state.read(tmp_path / "run").step == int(step)


def until(there, processes, *, timeout_s=300):
    """Wait for something that the processes make."""
    began = time.monotonic()
    while not there():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < timeout_s
        time.sleep(0.2)
