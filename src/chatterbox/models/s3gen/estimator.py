"""Velocity network of the flow matching decoder.

Owns: one forward pass from a noisy mel and its conditions to a velocity.
Does not know: the solver, guidance, tokens. There is one resolution level, so the "down" and "up" blocks of the
checkpoint's names change nothing in time; all convolutions look back only, the attention looks everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox.models.config import EstimatorConfig, FlowConfig
from chatterbox.models.conv import CausalConv1d, Conv1d
from chatterbox.models.linear import LinearSequential, apply_linear
from chatterbox.models.s3gen.attention import attend
from chatterbox.models.s3gen.memory import NUM_TAIL_FRAMES, MemoryShape, StepPass
from chatterbox.models.shared_input import SharedInput


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class CausalBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        conv = CausalConv1d(width_in, width_out, 1 + NUM_TAIL_FRAMES)
        # Index 2 is the norm's place in the checkpoint.
        self.block = nn.Sequential(conv, nn.Identity(), ChannelNorm(width_out), nn.Mish())

    def forward(self, x: Tensor, mask: Tensor | None, frames: StepPass | None = None) -> Tensor:
        conv, *rest = self.block
        x = _convolved(conv, _masked(x, mask), frames)
        for layer in rest:
            x = layer(x)
        return _masked(x, mask)


class ResnetBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int, time_size: int) -> None:
        super().__init__()
        self.mlp = LinearSequential(nn.Mish(), nn.Linear(time_size, width_out))
        self.block1 = CausalBlock(width_in, width_out)
        self.block2 = CausalBlock(width_out, width_out)
        self.res_conv = Conv1d(width_in, width_out, 1)

    def forward(self, x: Tensor, mask: Tensor | None, time: Tensor, frames: StepPass | None = None) -> Tensor:
        h = self.block1(x, mask, frames) + self.mlp(time)[..., None]
        return self.block2(h, mask, frames) + self.res_conv(_masked(x, mask))


class Attention(SharedInput):
    JOINED = ("to_q", "to_k", "to_v")

    def __init__(self, width: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, num_heads * head_dim, bias=False)
        self.to_k = nn.Linear(width, num_heads * head_dim, bias=False)
        self.to_v = nn.Linear(width, num_heads * head_dim, bias=False)
        self.to_out = LinearSequential(nn.Linear(num_heads * head_dim, width))

    def forward(self, x: Tensor, mask: Tensor | None, frames: StepPass | None = None) -> Tensor:
        heads = (self.num_heads, -1)
        q, k, v = (part.unflatten(-1, heads).transpose(1, 2) for part in self.project(x))
        out = attend(q, [(k, v)] if frames is None else frames.places(k, v), mask)  # (B, H, T, d)
        return self.to_out(out.transpose(1, 2).flatten(-2))


class GELUProjection(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(apply_linear(self.proj, x))


class FeedForward(nn.Module):
    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        # Index 2 is the output layer's place in the checkpoint.
        inner = factor * width
        self.net = LinearSequential(GELUProjection(width, inner), nn.Identity(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        width = config.channels
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, config.num_heads, config.head_dim)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, config.feed_forward_factor)

    def forward(self, x: Tensor, mask: Tensor | None, frames: StepPass | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x), mask, frames)
        return x + self.ff(self.norm3(x))


class TimeEmbedding(nn.Module):
    """Sinusoids of a time in [0, 1], scaled by 1000, and two linear layers."""

    def __init__(self, num_sinusoids: int, time_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(num_sinusoids, time_size)
        self.linear_2 = nn.Linear(time_size, time_size)

    def forward(self, t: Tensor) -> Tensor:
        half = self.linear_1.in_features // 2
        rate = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10_000.0) / (half - 1)))
        angle = 1000 * t.float()[:, None] * rate  # (B, half)
        dtype = next(self.parameters(), angle).dtype  # quantised layers have no parameters
        sinusoids = torch.cat([angle.sin(), angle.cos()], dim=-1).to(dtype)
        return apply_linear(self.linear_2, F.silu(apply_linear(self.linear_1, sinusoids)))


class ConditionalDecoder(nn.Module):
    """``v = estimator(x, mask, mu, t, spks, cond)``; a mean-flow model also takes the end time ``r`` of the step."""

    def __init__(self, config: FlowConfig = FlowConfig(), meanflow: bool = False) -> None:
        super().__init__()
        c = config.estimator
        num_inputs, width, time_size = 4 * config.num_mels, c.channels, 4 * c.channels
        self.meanflow, self._config = meanflow, c
        self.time_mlp = TimeEmbedding(num_inputs, time_size)
        self.time_embed_mixer = nn.Linear(2 * time_size, time_size, bias=False) if meanflow else None

        def stage(width_in: int) -> list[nn.Module]:
            transformers = nn.ModuleList(TransformerBlock(c) for _ in range(c.num_transformers))
            return [ResnetBlock(width_in, width, time_size), transformers]

        # Any: torch's types do not say what stands in a ModuleList.
        self.down_blocks: Any = nn.ModuleList(
            [nn.ModuleList([*stage(num_inputs), CausalConv1d(width, width, 1 + NUM_TAIL_FRAMES)])]
        )
        self.mid_blocks: Any = nn.ModuleList(nn.ModuleList(stage(width)) for _ in range(c.num_mid_blocks))
        self.up_blocks: Any = nn.ModuleList(
            [nn.ModuleList([*stage(2 * width), CausalConv1d(width, width, 1 + NUM_TAIL_FRAMES)])]
        )
        self.final_block = CausalBlock(width, width)
        self.final_proj = Conv1d(width, config.num_mels, 1)

    @property
    def dtype(self) -> torch.dtype:
        return self.final_proj.weight.dtype

    def memory_shape(self, num_rows: tuple[int, ...]) -> MemoryShape:
        """Of what Euler steps of so many rows each remember."""
        layers = [module for module in self.modules() if isinstance(module, Attention)]
        widths = [module.in_channels for module in self.modules() if isinstance(module, CausalConv1d)]
        tails = tuple(NUM_TAIL_FRAMES * width for width in widths)
        return MemoryShape(num_rows, len(layers), self._config.num_heads, self._config.head_dim, tails)

    def embed_time(self, t: Tensor, r: Tensor | None = None) -> Tensor:
        """Time vector (B, time_size) of times ``t`` (B,); ``r`` (B,) is needed by mean-flow models and by no other."""
        if (r is not None) != self.meanflow:
            raise ValueError(f"r must be {'given to' if self.meanflow else 'left out of'} a {self._kind} estimator")
        time = self.time_mlp(t)
        if r is None or self.time_embed_mixer is None:
            return time
        return apply_linear(self.time_embed_mixer, torch.cat([time, self.time_mlp(r)], dim=1))

    def forward(
        self, x: Tensor, mask: Tensor | None, mu: Tensor, t: Tensor, spks: Tensor, cond: Tensor, r: Tensor | None = None
    ) -> Tensor:
        """Velocity (B, num_mels, T).

        Args:
            x: (B, num_mels, T), the sample at time t.
            mask: (B, 1, T), 1 at valid frames; None when nothing is padded.
            mu: (B, num_mels, T), the encoder's output.
            t: (B,), time in [0, 1].
            spks: (B, num_mels), the speaker.
            cond: (B, num_mels, T), known frames, zero elsewhere.
            r: (B,), end of the step; mean-flow only.
        """
        return self._run(x, mask, mu, self.embed_time(t, r), spks, cond, None)

    def resume(
        self, frames: StepPass, x: Tensor, mu: Tensor, t: Tensor, spks: Tensor, cond: Tensor, r: Tensor | None = None
    ) -> Tensor:
        """:meth:`forward` of frames that follow others; ``frames`` knows those, and remembers some of these."""
        return self._run(x, None, mu, self.embed_time(t, r), spks, cond, frames)

    def _run(
        self,
        x: Tensor,
        mask: Tensor | None,
        mu: Tensor,
        time: Tensor,
        spks: Tensor,
        cond: Tensor,
        frames: StepPass | None,
    ) -> Tensor:
        keys = None if mask is None else mask.bool()[:, None]  # (B, 1, 1, T)
        x = torch.cat([x, mu, spks[..., None].expand(-1, -1, x.shape[2]), cond], dim=1)
        for resnet, transformers, conv in self.down_blocks:
            x = skip = _stage(resnet, transformers, x, mask, keys, time, frames)
            x = _convolved(conv, _masked(x, mask), frames)
        for resnet, transformers in self.mid_blocks:
            x = _stage(resnet, transformers, x, mask, keys, time, frames)
        for resnet, transformers, conv in self.up_blocks:
            x = _stage(resnet, transformers, torch.cat([x, skip], dim=1), mask, keys, time, frames)
            x = _convolved(conv, _masked(x, mask), frames)
        x = self.final_block(x, mask, frames)
        return _masked(self.final_proj(x), mask)

    @property
    def _kind(self) -> str:
        return "mean-flow" if self.meanflow else "standard"


def _stage(
    resnet: ResnetBlock,
    transformers: nn.ModuleList,
    x: Tensor,
    mask: Tensor | None,
    keys: Tensor | None,
    time: Tensor,
    frames: StepPass | None,
) -> Tensor:
    x = resnet(x, mask, time, frames).transpose(1, 2)  # (B, T, C)
    for block in transformers:
        x = block(x, keys, frames)
    return x.transpose(1, 2)


def _convolved(conv: nn.Module, x: Tensor, frames: StepPass | None) -> Tensor:
    """``x`` (B, C, T) through a causal convolution, behind the frames before it where they are known."""
    if frames is None:
        out: Tensor = conv(x)
        return out
    assert isinstance(conv, CausalConv1d)
    return conv.behind(frames.continued(x))


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask.to(x.dtype)
