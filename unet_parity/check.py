"""`unet check`: a certificate computed again, by one framework on whatever devices are here."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from unet_parity import precision
from unet_parity.certificate import Certificate, CertifiedCase, hash_case, hash_pass
from unet_parity.differences import hash_tensors
from unet_parity.integer_cases import Case
from unet_parity.twins import Pass
from unet_spec import InputError, UNetConfig
from unet_spec.environment import environment
from unet_spec.weight_file import WeightFile
from unet_spec.wording import list_names

FRAMEWORKS = ("jax", "torch")
MOST_PROBLEMS = 4


@dataclass(frozen=True)
class CaseCheck:
    """A `CaseCheck` is a case of a certificate, computed again.

    Attributes:
        case: its name.
        framework: `jax` or `torch`.
        device: on which it ran.
        arrays: how many were compared.
        problem: what is not as certified, in words; empty if all is.
        left_out: why it was not computed; empty if it was.
    """

    case: str
    framework: str
    device: str
    arrays: int
    problem: str = ""
    left_out: str = ""

    def __str__(self) -> str:
        if self.left_out:
            return f"{self.framework}, {self.case}: left out, {self.left_out}"
        found = self.problem or f"{self.arrays} arrays, every bit as certified"
        return f"{self.framework} on {self.device}, {self.case}: {found}"


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Attributes:
        problems: all that is not as certified, in words; empty if the certificate holds.
        cases: each of its cases in each framework.
        weights: what was found of the weights, in a sentence.
        environment: versions and hardware of the check.
    """

    problems: tuple[str, ...]
    cases: tuple[CaseCheck, ...]
    weights: str
    environment: dict[str, str]

    @property
    def holds(self) -> bool:
        """Say whether everything that was computed is as certified."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """Return `holds` or `does not hold`."""
        return "holds" if self.holds else "does not hold"

    def list_sentences(self) -> list[str]:
        """Return the problems, the first ones, and what was found of the weights."""
        sentences = list(self.problems[:MOST_PROBLEMS])
        more = len(self.problems) - MOST_PROBLEMS
        return [*sentences, *([f"and {more} more"] if more > 0 else []), self.weights]

    def to_json(self) -> dict[str, Any]:
        """Return the check as plain values."""
        return {"holds": self.holds, **asdict(self)}


def check(
    certificate: Certificate,
    *,
    file_problem: str = "",
    weights: WeightFile | None = None,
    frameworks: tuple[str, ...] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Check:
    """Compute the cases of a certificate again, and compare every bit.

    Args:
        certificate: as `certificate.read` returns it.
        file_problem: likewise; it counts as a problem.
        weights: which the certificate may be of.
        frameworks: `jax` or `torch` or both; None takes those that are installed.
        say: is called with a line for each case.

    Raises:
        InputError: no framework is installed; weights of which the certificate does not speak.
    """
    chosen = list_installed() if frameworks is None else frameworks
    problems = [file_problem] if file_problem else []
    for text in problems:  # before minutes of computing
        say(text)
    sentence, problem = _compare_weights(certificate, weights)
    problems += [problem] if problem else []
    cases = []
    for case in certificate.cases:
        drawn = case.draw()
        changed = hash_case(drawn) != case.drawn
        for framework in chosen:
            checked = _check_case(case, drawn, framework, is_other=changed)
            say(str(checked))
            cases.append(checked)
            if checked.problem:
                problems.append(f"{framework}, {case}: {checked.problem}")
    if not problems and all(case.left_out for case in cases):
        problems.append("no case could be computed on this device")
    return Check(tuple(problems), tuple(cases), sentence, environment())


def list_installed() -> tuple[str, ...]:
    """Return the frameworks that are installed.

    Raises:
        InputError: none is.
    """
    installed = tuple(name for name in FRAMEWORKS if find_spec(name) is not None)
    if not installed:
        raise InputError(
            "neither JAX nor PyTorch is installed; install one: pip install 'unet-twins[torch]'"
        )
    return installed


def _compare_weights(certificate: Certificate, weights: WeightFile | None) -> tuple[str, str]:
    """Say what is found of the weights, and what is wrong with them.

    Raises:
        InputError: the certificate is not of any.
    """
    if weights is None:
        if certificate.weights is None:
            return "It is of an architecture, and of no weights.", ""
        return "It is of weights too; give the weight file to have them compared.", ""
    if certificate.weights is None:
        raise InputError(
            "the certificate is of an architecture, and of no weights; leave the weight file out, "
            "or make one for it: unet verify WEIGHTS --certificate NEW.json"
        )
    if weights.config != certificate.config:
        return "The weights are of another architecture.", "the weights are of another architecture"
    if hash_tensors(weights.tensors) != certificate.weights:
        return "The weights are others.", "the weights are not those that were verified"
    return "The weights are those that were verified, bit for bit.", ""


def _check_case(case: CertifiedCase, drawn: Case, framework: str, *, is_other: bool) -> CaseCheck:
    """Compute a case again and compare it.

    Args:
        is_other: the integers are not those of the certificate.
    """
    if framework == "jax":
        bits, run, device = precision.significand_bits(), _run_jax, _describe_jax(case)
    else:
        bits, run, device = case.rung.bits, _run_torch, _describe_torch()
    if case.rung.bits > bits:
        reason = f"this device's products keep {bits} bits"
        return CaseCheck(str(case), framework, device, 0, left_out=reason)
    if is_other:
        problem = (
            f"the integers drawn from seed {case.seed} are not the certified ones: something of "
            "this case was changed, or numpy draws otherwise than the version in its environment"
        )
        return CaseCheck(str(case), framework, device, 0, problem)
    hashes = hash_pass(run(case, drawn))
    differing = [name for name, value in hashes.items() if case.hashes.get(name) != value]
    differing += [name for name in case.hashes if name not in hashes]
    verb = "is" if len(differing) == 1 else "are"
    problem = f"{list_names(differing, 2)} {verb} not as certified" if differing else ""
    return CaseCheck(str(case), framework, device, len(hashes), problem)


def _run_torch(case: CertifiedCase, drawn: Case) -> Pass:
    from unet_parity.torch_twin import best_device, torch_pass

    precision.use_full_precision()
    return torch_pass(
        case.config, drawn.tensors, drawn.x, drawn.cotangent, dtype=case.rung.dtype,
        device=best_device(),
    )  # fmt: skip


def _describe_torch() -> str:
    from unet_parity.torch_twin import best_device

    return best_device()


def _run_jax(case: CertifiedCase, drawn: Case) -> Pass:
    """Run a case on all devices at once: each of them has a copy of the image, and a share of the
    gradient of the output. In integers the sum of what they give is exact."""
    from unet_parity.jax_twin import make_mesh

    mesh = make_mesh(case.config, case.size, _list_devices(case))
    copies = mesh.shape["data"]
    shares = split_cotangent(drawn.cotangent, copies)
    run = _make_jax_run(case.config, case.rung.dtype, mesh)
    result = run(drawn.tensors, np.repeat(drawn.x, copies, axis=0), shares)
    return Pass(
        _merge_equal(result.output),
        result.input_gradient.sum(axis=0, keepdims=True),
        result.gradients,
        result.statistics,
    )


@lru_cache(maxsize=1)
def _make_jax_run(config: UNetConfig, dtype: str, mesh: Any) -> Any:
    """Return a net that is compiled once for several cases."""
    from unet_parity.jax_twin import JaxRun

    return JaxRun(config, dtype=dtype, mesh=mesh, unoptimised=True)


def _list_devices(case: CertifiedCase) -> list[Any]:
    """Return the devices of a case: one in bfloat16, in which the share of each may be rounded."""
    import jax

    return jax.devices()[:1] if case.rung.dtype == "bfloat16" else jax.devices()


def _describe_jax(case: CertifiedCase) -> str:
    devices = _list_devices(case)
    kind = devices[0].device_kind
    return f"{len(devices)} devices ({kind})" if len(devices) > 1 else kind


def split_cotangent(cotangent: np.ndarray, parts: int) -> np.ndarray:
    """Return a batch of as many parts, whose sum is the given one and of which no two overlap."""
    pixels = np.arange(cotangent.size).reshape(cotangent.shape)
    return np.concatenate([np.where(pixels % parts == part, cotangent, 0) for part in range(parts)])


def _merge_equal(outputs: np.ndarray) -> np.ndarray:
    """Return the output that all copies of an image have, with NaN where they do not."""
    return np.where((outputs == outputs[:1]).all(axis=0, keepdims=True), outputs[:1], np.nan)
