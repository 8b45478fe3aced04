"""Upsampling conformer encoder: speech-token embeddings at 25 Hz to hidden frames at 50 Hz.

Owns: the lookahead convolution, self-attention with relative positions, and the upsampling by two.
Does not know: tokens, speakers, mels. Without convolution and macaron modules a conformer layer is a pre-norm
transformer layer; relative positions are those of https://arxiv.org/abs/1901.02860, section 3.3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox.models.config import FlowEncoderConfig
from chatterbox.models.conv import CausalConv1d, Conv1d
from chatterbox.models.linear import LinearSequential, apply_linear


def length_mask(lengths: Tensor, max_len: int) -> Tensor:
    """True at valid positions: (B,) lengths to (B, max_len)."""
    return torch.arange(max_len, device=lengths.device) < lengths[:, None]


def relative_positions(num_frames: int, hidden_size: int, like: Tensor) -> Tensor:
    """Sinusoids (2T, D) of the distances T, T - 1, ..., -(T - 1): sine in even columns, cosine in odd ones."""
    distance = torch.arange(num_frames, -num_frames, -1, device=like.device, dtype=torch.float32)
    column = torch.arange(0, hidden_size, 2, device=like.device, dtype=torch.float32)
    rate = torch.exp(column * (-math.log(10_000.0) / hidden_size))
    angle = distance[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(like.dtype)


class RelativeSelfAttention(nn.Module):
    """Full self-attention whose scores add a term of the distance between query and key."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.linear_q = nn.Linear(hidden_size, hidden_size)
        self.linear_k = nn.Linear(hidden_size, hidden_size)
        self.linear_v = nn.Linear(hidden_size, hidden_size)
        self.linear_out = nn.Linear(hidden_size, hidden_size)
        self.linear_pos = nn.Linear(hidden_size, hidden_size, bias=False)
        self.pos_bias_u = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_heads, hidden_size // num_heads)))
        self.pos_bias_v = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_heads, hidden_size // num_heads)))

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """``x`` (B, T, D), ``positions`` (2T, D) by :func:`relative_positions`, ``mask`` (B, 1, 1, T) True if valid."""
        num_frames, heads = x.shape[1], (self.num_heads, -1)
        q = apply_linear(self.linear_q, x).unflatten(-1, heads)  # (B, T, H, d)
        k = apply_linear(self.linear_k, x).unflatten(-1, heads).transpose(1, 2)  # (B, H, T, d)
        v = apply_linear(self.linear_v, x).unflatten(-1, heads).transpose(1, 2)
        p = apply_linear(self.linear_pos, positions).unflatten(-1, heads).permute(1, 2, 0)  # (H, d, 2T)
        by_distance = torch.matmul((q + self.pos_bias_v).transpose(1, 2), p)  # (B, H, T, 2T), column c: distance T - c
        # Row i reads columns T - i .. 2T - 1 - i: in the flattened rows that is a view of stride 2T - 1.
        skewed = by_distance.flatten(-2)[..., num_frames:].unflatten(-1, (num_frames, 2 * num_frames - 1))
        bias = skewed[..., :num_frames] / math.sqrt(k.shape[-1])  # (B, H, T, T)
        if mask is not None:
            bias = bias.masked_fill(~mask, -torch.inf)
        out = F.scaled_dot_product_attention((q + self.pos_bias_u).transpose(1, 2), k, v, attn_mask=bias)
        return apply_linear(self.linear_out, out.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(hidden_size, inner_size)
        self.w_2 = nn.Linear(inner_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return apply_linear(self.w_2, F.silu(apply_linear(self.w_1, x)))


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward. These norms have eps 1e-12, the encoder's others 1e-5."""

    def __init__(self, config: FlowEncoderConfig) -> None:
        super().__init__()
        self.self_attn = RelativeSelfAttention(config.hidden_size, config.num_heads)
        self.feed_forward = FeedForward(config.hidden_size, config.feed_forward_size)
        self.norm_mha = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.norm_ff = nn.LayerNorm(config.hidden_size, eps=1e-12)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, mask)
        return x + self.feed_forward(self.norm_ff(x))


class InputProjection(nn.Module):
    """Linear and norm, scaled by sqrt(D). Positions enter in the attention, not here."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.scale = math.sqrt(hidden_size)
        self.out = LinearSequential(nn.Linear(hidden_size, hidden_size), nn.LayerNorm(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) * self.scale


class PreLookaheadLayer(nn.Module):
    """Residual convolutions that see ``lookahead_len`` tokens ahead: all the future the encoder's convolutions see."""

    def __init__(self, hidden_size: int, lookahead_len: int) -> None:
        super().__init__()
        self.lookahead_len = lookahead_len
        self.conv1 = Conv1d(hidden_size, hidden_size, lookahead_len + 1)
        self.conv2 = CausalConv1d(hidden_size, hidden_size, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(F.pad(x.transpose(1, 2), (0, self.lookahead_len))), 0.01)
        return x + self.conv2(h).transpose(1, 2)


class UpsampleLayer(nn.Module):
    """Each frame twice, then a convolution over the past."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.conv = CausalConv1d(hidden_size, hidden_size, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).repeat_interleave(2, dim=2)  # (B, D, 2T)
        return self.conv(x).transpose(1, 2)


class UpsampleConformerEncoder(nn.Module):
    """Embeddings (B, T, D) to hidden frames (B, 2T, D)."""

    def __init__(self, config: FlowEncoderConfig = FlowEncoderConfig()) -> None:
        super().__init__()
        self.embed = InputProjection(config.hidden_size)
        self.pre_lookahead_layer = PreLookaheadLayer(config.hidden_size, config.lookahead_len)
        self.encoders = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.up_layer = UpsampleLayer(config.hidden_size)
        self.up_embed = InputProjection(config.hidden_size)
        self.up_encoders = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_up_layers))
        self.after_norm = nn.LayerNorm(config.hidden_size)

    def forward(self, x: Tensor, lengths: Tensor | None = None, *, isolate_padding: bool = True) -> Tensor:
        """Encode ``x``.

        Args:
            x: (B, T, D), zero at padding.
            lengths: (B,) valid frames of each row; None when nothing is padded.
            isolate_padding: encode each row as it is alone. False is upstream, which lets the padding of a shorter row
                reach its last frames through the lookahead, so that a row changes with its company.

        Returns:
            (B, 2T, D); what stands at padding has no meaning.
        """
        mask = None if lengths is None else length_mask(lengths, x.shape[1])
        x = self.embed(x)
        if isolate_padding and mask is not None:
            x = x * mask[..., None].to(x.dtype)
        x = self._run(self.encoders, self.pre_lookahead_layer(x), mask)
        if mask is not None:
            mask = mask.repeat_interleave(2, dim=1)
        x = self._run(self.up_encoders, self.up_embed(self.up_layer(x)), mask)
        return self.after_norm(x)

    @staticmethod
    def _run(layers: nn.ModuleList, x: Tensor, mask: Tensor | None) -> Tensor:
        positions = relative_positions(x.shape[1], x.shape[2], x)
        keys = None if mask is None else mask[:, None, None]
        for layer in layers:
            x = layer(x, positions, keys)
        return x
