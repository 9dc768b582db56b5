"""A certificate: what a proven net gives for integers, so that others can compute it again.

In a net of integers nothing is rounded (`integer_cases`). So whoever computes it again, in either
framework and on any device, has to find the same bits. A certificate holds the seeds from which the
integers are drawn, and the sha256 of all that the net gives for them; it needs no framework to be
read. The sha256 of the certificate itself stands at its end, so that a changed digit is told.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from unet_parity.differences import hash_tensors
from unet_parity.integer_cases import RUNGS, Case, Rung, make_case
from unet_parity.twins import Pass
from unet_spec import InputError, UNetConfig, geometry
from unet_spec.files import atomic_write, open_plain, refuse_no_file
from unet_spec.plain_json import read_json

FORMAT = 1
SCHEMA = Path(__file__).with_name("certificate.schema.json")
MOST_BYTES = 16 * 2**20
"""A certificate is at most so long; that of the largest net that a file may have is shorter."""


@dataclass(frozen=True)
class CertifiedCase:
    """A `CertifiedCase` is a net of integers, and what it gives for them.

    Attributes:
        config: of the net.
        rung: the arithmetic.
        taps: as of `Case`.
        seed: likewise.
        size: (height, width) of the input in pixels.
        drawn: sha256 of the integers: weights, input, and gradient of a loss by the output.
        hashes: sha256 of the output, of the input's gradient and of every parameter's, by names.
    """

    config: UNetConfig
    rung: Rung
    taps: float
    seed: int
    size: tuple[int, int]
    drawn: str
    hashes: dict[str, str]

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.rung.name}, padding={self.config.padding}, {height} x {width} pixels"

    def draw(self) -> Case:
        """Draw the integers again; numpy alone does it."""
        return make_case(self.config, taps=self.taps, seed=self.seed, size=self.size)


@dataclass(frozen=True)
class Certificate:
    """A `Certificate` says what was verified, and what a net gives for integers.

    Attributes:
        verdict: of `verify`.
        compared: what it was found on, in a sentence.
        not_compared: and on what not.
        config: the architecture.
        weights: sha256 of the tensors that were verified; None for an architecture alone.
        cases: one for each rung and padding.
        environment: versions and devices with which it was made.
    """

    verdict: str
    compared: str
    not_compared: str
    config: UNetConfig
    weights: str | None
    cases: tuple[CertifiedCase, ...]
    environment: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as plain values, with its own sha256."""
        content = {
            "format": FORMAT,
            "verdict": self.verdict,
            "compared": self.compared,
            "not_compared": self.not_compared,
            "config": asdict(self.config),
            "weights": self.weights,
            "cases": [
                {
                    "padding": case.config.padding,
                    "rung": case.rung.name,
                    "taps": case.taps,
                    "seed": case.seed,
                    "size": list(case.size),
                    "drawn": case.drawn,
                    "hashes": case.hashes,
                }
                for case in self.cases
            ],
            "environment": self.environment,
        }
        plain = json.loads(json.dumps(content))
        return {**plain, "sha256": hash_json(plain)}


def pad_otherwise(config: UNetConfig) -> UNetConfig:
    """Return the net with the other padding."""
    other = "valid" if config.padding == "same" else "same"
    return replace(config, padding=other, fit="error")  # type: ignore[arg-type]


def hash_json(content: Mapping[str, Any]) -> str:
    """Return the sha256 of plain values, however they are written down."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_case(case: Case) -> str:
    """Return the sha256 of the integers of a case."""
    numbers = {"input": case.x, "gradient of the output": case.cotangent}
    return hash_tensors({**case.tensors, **numbers})


def hash_pass(result: Pass) -> dict[str, str]:
    """Return the sha256 of all that a pass gave, by names."""
    arrays = {
        "output": result.output,
        "gradient of the input": result.input_gradient,
        **{f"gradient of {name}": array for name, array in result.gradients.items()},
    }
    return {name: hash_array(array) for name, array in arrays.items()}


def hash_array(array: np.ndarray) -> str:
    """Return the sha256 of a shape, such as `(1, 2, 32, 48)`, and of the values as float32, the
    lowest byte first; -0 counts as 0."""
    values = np.ascontiguousarray(array + np.float32(0), "<f4")
    return hashlib.sha256(f"{array.shape}".encode() + values.tobytes()).hexdigest()


def write(path: Path, certificate: Certificate) -> None:
    """Write a certificate into a file, whole or not at all."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(certificate.to_json(), indent=1).encode() + b"\n")


def read(path: Path) -> tuple[Certificate, str]:
    """Return the certificate in a file, and its problem as a file in words; empty without one.

    Raises:
        InputError: it is none, or of a newer version.
    """
    refuse_no_file(path)
    no_certificate = (
        f"{path}: it is no certificate; name a file that unet verify --certificate wrote"
    )
    try:
        with open_plain(path, most_bytes=MOST_BYTES) as stream:
            content = read_json(stream.read())
    except UnicodeDecodeError:
        raise InputError(no_certificate) from None
    except ValueError as error:
        raise InputError(f"{no_certificate} ({error})") from error
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(no_certificate)
    version = content["format"]
    if isinstance(version, int) and version > FORMAT:
        raise InputError(
            f"{path}: a certificate of format {version}, and this version reads {FORMAT}; install "
            "a newer one"
        )
    refusal = find_misfit(content)
    if refusal:
        raise InputError(f"{path}: it is no certificate that can be checked: {refusal}")
    own = content.pop("sha256")
    problem = ""
    if hash_json(content) != own:
        problem = "its own sha256 is not that of its content: it was changed after it was written"
    config = UNetConfig.from_json(json.dumps(content["config"]))
    try:
        cases = tuple(_read_cases(config, content["cases"]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Certificate(
        content["verdict"], content["compared"], content["not_compared"], config,
        content["weights"], cases, content["environment"],
    ), problem  # fmt: skip


def find_misfit(content: Any) -> str:
    """Say in what plain values are not as the schema says; empty if they are."""
    # it takes a third of a second to import, and most commands read no certificate
    import jsonschema

    validator = jsonschema.Draft202012Validator(read_schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(content))
    if error is None:
        return ""
    place = error.json_path.removeprefix("$").lstrip(".") or "the whole"
    return f"{place}: {error.message[:200]}"


@cache
def read_schema() -> Any:
    """Return the JSON schema of certificates."""
    return json.loads(SCHEMA.read_text())


def _read_cases(config: UNetConfig, rows: list[dict[str, Any]]) -> Iterator[CertifiedCase]:
    rungs = {rung.name: rung for rung in RUNGS}
    for row in rows:
        net = config if row["padding"] == config.padding else pad_otherwise(config)
        height, width = row["size"]
        geometry.check(net, height, width)
        yield CertifiedCase(
            net, rungs[row["rung"]], row["taps"], row["seed"], (height, width), row["drawn"],
            row["hashes"],
        )  # fmt: skip
