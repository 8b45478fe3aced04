"""Network of the S3 speech tokenizer: mel frames to eight numbers per token, and those to a token.

Owns: convolutions, attention with FSMN memory, finite scalar quantisation; all of it batched and masked by length.
Does not know: audio, or recordings longer than one window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox.models.config import S3TokenizerConfig
from chatterbox.models.linear import LinearSequential, apply_linear

NUM_DIGITS, NUM_LEVELS = 8, 3  # a speech token has eight digits of base three
_MLP_FACTOR = 4
_ROPE_THETA = 10_000.0
_LARGEST_DIGIT = 0.9990000128746033  # keeps tanh inside the outer levels


class AudioEncoder(nn.Module):
    """Mel (B, num_mels, T) to hidden states (B, ceil(T / 4), hidden_size). No final norm."""

    def __init__(self, config: S3TokenizerConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.num_mels, config.hidden_size, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(config.hidden_size, config.hidden_size, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_layers))
        self.head_dim = config.hidden_size // config.num_heads

    def forward(self, mel: torch.Tensor, mel_len: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states and their lengths (B,). What lies past a row's length is not meaningful."""
        x, lengths = mel.to(self.conv1.weight.dtype), mel_len
        for conv in (self.conv1, self.conv2):
            x = F.gelu(conv(x * valid_mask(lengths, x.shape[-1])[:, None]))
            lengths = (lengths - 1) // 2 + 1
        x = x.transpose(1, 2)  # (B, T, D)
        valid = valid_mask(lengths, x.shape[1])
        rope = rope_table(x.shape[1], self.head_dim, x)
        for block in self.blocks:
            x = block(x, valid, rope)
        return x, lengths


class EncoderBlock(nn.Module):
    def __init__(self, config: S3TokenizerConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, _MLP_FACTOR * config.hidden_size
        self.attn = MemoryAttention(config)
        self.attn_ln = nn.LayerNorm(width)
        self.mlp = LinearSequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, valid: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x = x + self.attn(self.attn_ln(x), valid, rope)
        return x + self.mlp(self.mlp_ln(x))


class MemoryAttention(nn.Module):
    """Self-attention plus an FSMN memory: a depthwise convolution of the values over time (Gao et al. 2020)."""

    def __init__(self, config: S3TokenizerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(width, width, config.fsmn_kernel, padding="same", groups=width, bias=False)

    def forward(self, x: torch.Tensor, valid: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """``x`` (B, T, D), ``valid`` (B, T), ``rope`` cosine and sine (T, head_dim)."""
        value = apply_linear(self.value, x)
        parts = apply_linear(self.query, x), apply_linear(self.key, x), value
        heads = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        q, k, v = heads  # (B, H, T, D / H)
        mixed = F.scaled_dot_product_attention(rotate(q, rope), rotate(k, rope), v, attn_mask=valid[:, None, None])
        return apply_linear(self.out, mixed.transpose(1, 2).flatten(2)) + self._memory(value, valid)

    def _memory(self, value: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        mask = valid[..., None].to(value.dtype)
        value = value * mask
        return (self.fsmn_block(value.transpose(1, 2)).transpose(1, 2) + value) * mask


class FSQCodebook(nn.Module):
    """Finite scalar quantisation (Mentzer et al. 2023) to digits -1, 0, 1."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.project_down = nn.Linear(hidden_size, NUM_DIGITS)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Numbers (..., 8) before tanh and rounding, float32, differentiable."""
        return apply_linear(self.project_down, hidden).float()

    @staticmethod
    def tokens(digits: torch.Tensor) -> torch.Tensor:
        """Speech tokens (...) of what ``forward`` returns; the first digit counts least."""
        levels = (digits.tanh() * _LARGEST_DIGIT).round().long() + 1
        return (levels * NUM_LEVELS ** torch.arange(NUM_DIGITS, device=digits.device)).sum(dim=-1)


def valid_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(B, size), true where a position lies within its row's length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def rope_table(size: int, head_dim: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine (size, head_dim) of rotary positions, in the dtype and on the device of ``like``."""
    frequencies = _ROPE_THETA ** (-torch.arange(0, head_dim, 2, device=like.device).float() / head_dim)
    angles = torch.outer(torch.arange(size, device=like.device).float(), frequencies).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions on (..., T, head_dim), halves paired."""
    first, second = x.chunk(2, dim=-1)
    return x * rope[0] + torch.cat((-second, first), dim=-1) * rope[1]
