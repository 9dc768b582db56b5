"""A certificate holds in either framework alone and on many devices, and tells a changed digit."""

import json
import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from parity_tests import planted
from parity_tests.shown import run_unet
from parity_tests.test_isolation import BLOCKED, BLOCKER
from unet_parity import certificate as certificates
from unet_parity import check, precision
from unet_parity.certificate import find_misfit, hash_array, hash_json, read_schema
from unet_parity.check import split_cotangent
from unet_parity.oracle import random_tensors
from unet_parity.torch_twin import torch_pass
from unet_spec import InputError, UNetConfig, weight_file
from unet_spec.weight_file import WeightFile

OWN = Path(__file__).parent.parent / "docs" / "certificate.json"
NET = UNetConfig(widths=(6, 8))
WEIGHTS = WeightFile(NET, random_tensors(NET, seed=1))
# of both packages, `unet_parity` is needed here
WITHOUT = {
    "jax": [name for name in BLOCKED["unet_jax"] if name != "unet_parity"],
    "torch": [name for name in BLOCKED["unet_torch"] if name != "unet_parity"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a certificate of an architecture, and one of weights."""
    folder = tmp_path_factory.mktemp("certificates")
    weight_file.write(folder / "cells.safetensors", WEIGHTS)
    other = WeightFile(NET, random_tensors(NET, seed=2))
    weight_file.write(folder / "other.safetensors", other)
    for words in (
        "--config.widths 6 8 --certificate net.json",
        "cells.safetensors --certificate cells.json",
    ):
        done = run_unet(f"unet verify {words} --steps 0 --no-other-sizes", folder)
        assert done.status == 0, done.text
    return folder


@pytest.fixture(scope="module")
def content(folder):
    return json.loads((folder / "cells.json").read_text())


def seal(content):
    """The content with its own sha256, as somebody would write it who wants to deceive."""
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return {**rest, "sha256": hash_json(rest)}


def check_content(folder, content, *, framework="torch"):
    (folder / "changed.json").write_text(json.dumps(content))
    certificate, problem = certificates.read(folder / "changed.json")
    return check.check(
        certificate, file_problem=problem, weights=WEIGHTS, frameworks=(framework,)
    ).problems


def run_alone(framework, arguments, folder, **variables):
    """Run `unet` where the other framework cannot be imported."""
    program = (
        BLOCKER.format(blocked=WITHOUT[framework])
        + "import unet_cli; sys.argv[0] = 'unet'; unet_cli.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=folder, check=False,
        capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
    )  # fmt: skip


# ---- it holds


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_own_certificate_holds_in_one_framework_alone(framework, tmp_path):
    done = run_alone(framework, ["check", OWN, "--json", "check.json"], tmp_path, XLA_FLAGS="")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["holds"]
    assert {case["framework"] for case in found["cases"]} == {framework}
    assert not any(case["left_out"] for case in found["cases"])


def test_the_own_certificate_is_of_both_nets_of_the_slides():
    certificate, problem = certificates.read(OWN)
    assert not problem
    assert certificate.config == UNetConfig()
    assert certificate.verdict == "identical"
    names = {(case.config.padding, case.rung.name) for case in certificate.cases}
    assert names == {(p, r) for p in ("same", "valid") for r in ("fp32", "tf32", "bf16")}
    assert all(len(case.hashes) == 48 for case in certificate.cases)


@pytest.mark.parametrize("devices", [3, 8])
def test_a_certificate_holds_on_many_devices(folder, devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = run_alone("jax", ["check", "net.json"], folder, XLA_FLAGS=flags)
    assert done.returncode == 0, done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    assert text.count(f"{devices} devices (cpu)") == 4  # fp32 and tf32 of both paddings
    assert text.endswith("holds It is of an architecture, and of no weights.")


def test_weights_are_told_from_others(folder):
    right = run_unet("unet check cells.json cells.safetensors --framework torch", folder)
    assert right.status == 0
    assert "The weights are those that were verified, bit for bit." in right.text
    wrong = run_unet("unet check cells.json other.safetensors --framework torch", folder)
    assert wrong.status == 1
    assert "the weights are not those that were verified" in wrong.text


def test_shares_of_a_gradient_add_up_and_differ():
    whole = np.random.default_rng(0).integers(-1, 2, (1, 2, 6, 7)).astype(np.float32)
    shares = split_cotangent(whole, 4)
    assert shares.shape == (4, 2, 6, 7)
    np.testing.assert_array_equal(shares.sum(axis=0, keepdims=True), whole)
    assert all(share.any() for share in shares)


def test_a_zero_has_one_sha256_and_a_shape_counts():
    zeros = np.zeros((2, 3), np.float32)
    assert hash_array(-zeros) == hash_array(zeros)
    assert hash_array(zeros.astype(np.float64)) == hash_array(zeros)
    assert hash_array(zeros.reshape(3, 2)) != hash_array(zeros)


# ---- a changed digit


def turn(text):
    """A text whose first digit, or letter of a sha256, is another one."""
    return re.sub(r"[0-9a-f]", lambda m: "1" if m[0] == "0" else "0", text, count=1)


def change(path, value):
    def edit(content):
        *way, last = path
        for part in way:
            content = content[part]
        content[last] = value(content[last])

    return edit


CASE = ("cases", 1)
WEIGHT = "gradient of down_1.conv.conv.0.weight"
KINDS = {
    "a figure in what was compared": change(("compared",), turn),
    "a version": change(("environment", "numpy"), turn),
    "its own sha256": change(("sha256",), turn),
    "a width": change(("config", "widths"), lambda widths: [6, 9]),
    "taps": change((*CASE, "taps"), lambda taps: taps + 0.5),
    "a seed": change((*CASE, "seed"), lambda seed: seed + 1),
    "a size": change((*CASE, "size"), lambda size: [size[0] + 2, size[1]]),
    "the sha256 of the integers": change((*CASE, "drawn"), turn),
    "that of the output": change((*CASE, "hashes", "output"), turn),
    "that of the input's gradient": change((*CASE, "hashes", "gradient of the input"), turn),
    "that of a parameter's gradient": change((*CASE, "hashes", WEIGHT), turn),
    "that of the weights": change(("weights",), turn),
}
NOT_COMPUTED = ("a figure in what was compared", "a version", "its own sha256")


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_digit_is_told(folder, content, kind):
    changed = deepcopy(content)
    KINDS[kind](changed)
    problems = check_content(folder, changed)
    assert problems[0].startswith("its own sha256 is not that of its content")
    if kind in NOT_COMPUTED:
        assert len(problems) == 1


SAID = {
    "a width": "the weights are of another architecture",
    "that of the weights": "the weights are not those that were verified",
    "that of the output": "torch, tf32, padding=same, 16 x 18 pixels: output is not as certified",
    "that of the input's gradient": "gradient of the input is not as certified",
    "that of a parameter's gradient": f"{WEIGHT} is not as certified",
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NOT_COMPUTED])
def test_a_changed_digit_is_told_even_where_the_file_agrees_with_itself(folder, content, kind):
    changed = deepcopy(content)
    KINDS[kind](changed)
    problems = check_content(folder, seal(changed))
    assert any(SAID.get(kind, "are not the certified ones") in text for text in problems), problems


def test_a_gradient_that_was_taken_away_is_told(folder, content):
    changed = deepcopy(content)
    del changed["cases"][0]["hashes"][WEIGHT]
    assert f"{WEIGHT} is not as certified" in check_content(folder, seal(changed))[0]
    changed["cases"][0]["hashes"]["gradient of nothing"] = content["weights"]
    assert "gradient of nothing are not" in check_content(folder, seal(changed))[0]


# ---- a bug


@pytest.mark.parametrize(
    "bug",
    [
        "up-convolution mirrored",
        "crop off by one",
        "ReLU's gradient split at zero",
        "pool averages",
    ],
)  # fmt: skip
def test_a_bug_in_the_net_does_not_hold(bug, tmp_path):
    config = planted.BUGS[bug].config
    case, _ = planted.certified(config, planted.FP32)
    result = torch_pass(config, case.tensors, case.x, case.cotangent)
    height, width = case.x.shape[2:]
    certified = certificates.CertifiedCase(
        config, planted.FP32, case.taps, case.seed, (height, width),
        certificates.hash_case(case), certificates.hash_pass(result),
    )  # fmt: skip
    right = certificates.Certificate("identical", "", "", config, None, (certified,), {})
    with planted.planted(bug):
        check._make_jax_run.cache_clear()
        found = check.check(right, frameworks=("jax",))
    check._make_jax_run.cache_clear()
    assert "not as certified" in found.problems[0]


def test_a_rung_that_a_device_cannot_keep_is_left_out(folder, content, monkeypatch):
    monkeypatch.setattr(precision, "significand_bits", lambda *args: 11)
    (folder / "left.json").write_text(json.dumps(content))
    found = check.check(certificates.read(folder / "left.json")[0], frameworks=("jax",))
    assert [case.left_out for case in found.cases] == [
        "this device's products keep 11 bits", "", ""
    ]  # fmt: skip
    assert found.holds
    monkeypatch.setattr(precision, "significand_bits", lambda *args: 4)
    found = check.check(certificates.read(folder / "left.json")[0], frameworks=("jax",))
    assert found.problems == ("no case could be computed on this device",)


# ---- refusals


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(("format",), lambda n: 2), "a certificate of format 2, and this version reads 1"),
        (change((*CASE, "seed"), lambda n: "1"), r"cases\[1\].seed: '1' is not of type 'integer'"),
        (change((*CASE, "size"), lambda n: [17, 20]), "size 17 px is not legal"),
        (change(("cases",), lambda n: []), "cases: "),
        (change(("config", "widths"), lambda n: [0]), "widths"),
    ],
)
def test_what_is_no_certificate_is_refused(folder, content, edit, message):
    changed = deepcopy(content)
    edit(changed)
    (folder / "changed.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=message):
        certificates.read(folder / "changed.json")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("check cells.safetensors", "it is no certificate; name a file"),
        ("check nothing.json", "nothing.json: there is no such file"),
        ("check .", "a folder, and a file is needed"),
        ("check net.json cells.safetensors", "of an architecture, and of no weights; leave"),
        ("check net.json --json net.json", "the report would take the place of this file"),
        ("verify --config.widths 4 6 --config.norm batch --certificate new.json",
         "of this net there is none: norm=batch divides and takes roots; leave it out"),
        ("verify cells.safetensors --certificate cells.safetensors", "name ends in .json"),
        ("verify --port net.py:port --certificate new.json", "--certificate is of a U-Net here"),
    ],
)  # fmt: skip
def test_the_commands_refuse_in_a_sentence(folder, command, message):
    done = run_unet(f"unet {command}", folder)
    assert done.status == 2, done.text
    assert message in done.text
    assert not (folder / "new.json").exists()


def test_a_net_that_differs_gets_no_certificate(tmp_path):
    with planted.planted("pool averages"):
        done = run_unet(
            "unet verify --config.widths 4 6 --steps 0 --no-other-sizes --certificate new.json",
            tmp_path,
        )
    assert done.status == 1
    assert done.text.endswith("no certificate was written")
    assert not (tmp_path / "new.json").exists()


def test_the_schema_is_one_and_fits(content):
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(read_schema())
    assert find_misfit(content) == ""
    assert find_misfit(None)
