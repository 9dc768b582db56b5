"""An LSTM that a Python loop takes through time, as one writes it in PyTorch."""

import torch
from torch import Tensor, nn


class Theirs(nn.Module):
    """One cell, started from zeros, and a linear head on its last hidden state."""

    def __init__(self, width: int, features: int = 3, classes: int = 7):
        super().__init__()
        self.width = width
        self.cell = nn.LSTMCell(features, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores and all hidden states, for `x` of shape (b, t, features)."""
        hidden = memory = x.new_zeros(x.shape[0], self.width)
        steps = []
        for t in range(x.shape[1]):
            hidden, memory = self.cell(x[:, t], (hidden, memory))
            steps.append(hidden)
        return self.head(hidden), torch.stack(steps, dim=1)
