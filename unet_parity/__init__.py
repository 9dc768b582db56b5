"""The instrument behind `unet verify`: whether PyTorch and JAX compute the same net.

`verify_pair` takes any torch module and any port of it to JAX; `unet_parity.testing` has it for
people's own tests. `record` records either side on a machine of its own. `RunRecorder` records a
training run in either framework, and `compare_runs` says at which step a replay in the other one
leaves it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_parity.pair.record import record
    from unet_parity.pair.verify import verify_pair
    from unet_parity.runs.comparison import compare_runs
    from unet_parity.runs.recorder import RunRecorder

__all__ = ["RunRecorder", "compare_runs", "record", "verify_pair"]


def __getattr__(name: str) -> Any:
    """Import a part of the instrument when it is first used: `verify_pair` loads both frameworks,
    `record` one, and the others none."""
    if name == "verify_pair":
        from unet_parity.pair.verify import verify_pair

        return verify_pair
    if name == "record":
        from unet_parity.pair.record import record

        return record
    if name == "RunRecorder":
        from unet_parity.runs.recorder import RunRecorder

        return RunRecorder
    if name == "compare_runs":
        from unet_parity.runs.comparison import compare_runs

        return compare_runs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
