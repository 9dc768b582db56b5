"""The instrument behind `unet verify`: whether PyTorch and JAX compute the same net.

`verify_pair` takes any torch module and any port of it to JAX; `unet_parity.testing` has it for
people's own tests.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_parity.pair.verify import PairReport, verify_pair

__all__ = ["PairReport", "verify_pair"]


def __getattr__(name: str) -> Any:
    """Import the instrument when it is first used: it loads both frameworks."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from unet_parity.pair import verify

    return getattr(verify, name)
