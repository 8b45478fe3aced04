"""Convolutions over time that run at few different lengths.

Owns: the padding at the end that makes lengths alike, and its removal. Does not know: what is convolved.

oneDNN, which runs torch's convolutions on a CPU, compiles a kernel for every new length and keeps it for good: a
process that speaks ever new sentences would grow with each. Zeros after the end change no output before it, so all
lengths between two steps of a coarse scale share a kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS_PER_OCTAVE_LOG2 = 3  # 8 lengths between n and 2n: at most an eighth is added


def shared_length(length: int) -> int:
    """The length at which ``length`` is computed: the next one with a number of at most 4 significant bits."""
    step = 1 << max(0, length.bit_length() - 1 - _STEPS_PER_OCTAVE_LOG2)
    return -(-length // step) * step


class Conv1d(nn.Conv1d):
    """`nn.Conv1d` with zero padding, whose length is shared; the state dict is the same."""

    padding: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        return conv1d(x, self.weight, self.bias, self.stride[0], self.padding[0], self.dilation[0], self.groups)


class CausalConv1d(nn.Conv1d):
    """Convolution padded with zeros on the left only, so that no output looks ahead."""

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(F.pad(x, (self.kernel_size[0] - 1, 0)))

    def behind(self, x: Tensor) -> Tensor:
        """(B, C', T) of inputs (B, C, kernel - 1 + T): those in front have no output."""
        return conv1d(x, self.weight, self.bias)


class ConvTranspose1d(nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` without output padding, whose length is shared; the state dict is the same."""

    padding: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # there with a size to come out
        size = (x.shape[-1] - 1) * self.stride[0] - 2 * self.padding[0] + self.kernel_size[0]
        out = F.conv_transpose1d(_shared(x), self.weight, self.bias, self.stride, self.padding)
        return out[..., :size]


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv1d` of (B, C, T), at a shared length."""
    size = (x.shape[-1] + 2 * padding - dilation * (weight.shape[2] - 1) - 1) // stride + 1
    return F.conv1d(_shared(x), weight, bias, stride, padding, dilation, groups)[..., :size]


def _shared(x: Tensor) -> Tensor:
    """``x`` with zeros up to its shared length, where kernels are kept by length; elsewhere ``x`` itself."""
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return x
    return F.pad(x, (0, shared_length(x.shape[-1]) - x.shape[-1]))
