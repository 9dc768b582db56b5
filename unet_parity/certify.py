"""The certificate of what `verify` found."""

from unet_parity.certificate import (
    Certificate,
    CertifiedCase,
    hash_case,
    hash_pass,
    pad_otherwise,
)
from unet_parity.integer_cases import RUNGS, make_case
from unet_parity.torch_twin import torch_pass
from unet_parity.verify import ParityReport
from unet_spec import InputError


def certify(report: ParityReport, *, is_of_weights: bool) -> Certificate:
    """Return the certificate of what `verify` found.

    PyTorch computes its cases once more; that JAX gives the same bits, the report says.

    Args:
        is_of_weights: they were given, and are no random ones.

    Raises:
        InputError: there is nothing to certify.
    """
    rows = [row for row in report.exact if row.holds]
    if report.verdict == "different" or not rows:
        raise InputError(f"the verdict is {report.verdict}, and there is nothing to certify")
    cases = []
    for row in rows:
        rung = next(rung for rung in RUNGS if rung.name == row.rung)
        is_own = row.padding == report.config.padding
        config = report.config if is_own else pad_otherwise(report.config)
        case = make_case(config, taps=row.taps, seed=row.seed, size=row.size)
        result = torch_pass(config, case.tensors, case.x, case.cotangent, dtype=rung.dtype)
        cases.append(
            CertifiedCase(
                config, rung, row.taps, row.seed, row.size, hash_case(case), hash_pass(result)
            )
        )
    return Certificate(
        report.verdict,
        report.scope.compared,
        report.scope.not_compared,
        report.config,
        report.hashes["weights"] if is_of_weights else None,
        tuple(cases),
        report.environment,
    )
