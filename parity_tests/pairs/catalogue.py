"""The four pairs: how to build the reference of each."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from parity_tests.pairs import lstm_torch, mixer_torch, residual_torch, transformer_torch

WIDTHS = (4, 6, 8, 10)  # even, as the transformer has two heads


@dataclass(frozen=True)
class Pair:
    """A reference in PyTorch and the name of its port.

    Attributes:
        name: what the files `NAME_torch.py` and `NAME_jax.py` begin with.
        make_reference: builds the torch module for a width.
    """

    name: str
    make_reference: Callable[[int], nn.Module]


PAIRS = (
    Pair("residual", residual_torch.Theirs),
    Pair("transformer", transformer_torch.Theirs),
    Pair("mixer", mixer_torch.Theirs),
    Pair("lstm", lstm_torch.Theirs),
)
