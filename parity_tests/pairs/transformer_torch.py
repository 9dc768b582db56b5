"""One pre-norm transformer block with a causal mask, as one writes it in PyTorch."""

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention over the past, with one linear layer for queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each position gathers from itself and from those before it."""
        b, t, d = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (d // self.heads) ** 0.5
        mask = torch.full((t, t), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        mixed = (scores + mask).softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, t, d))


class Theirs(nn.Module):
    """The block, with a norm at its end."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a vector per position, for `x` of shape (b, t, d)."""
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.norm(x)
