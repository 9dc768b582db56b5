"""The instrument behind `unet verify`: whether PyTorch and JAX compute the same net.

`verify_pair` takes any torch module and any port of it to JAX; `unet_parity.testing` has it for
people's own tests. `record` records either side on a machine of its own.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_parity.pair.record import record
    from unet_parity.pair.verify import verify_pair

__all__ = ["record", "verify_pair"]


def __getattr__(name: str) -> Any:
    """Import the instrument when it is first used: it loads frameworks."""
    if name == "verify_pair":
        from unet_parity.pair.verify import verify_pair

        return verify_pair
    if name == "record":
        from unet_parity.pair.record import record

        return record
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
