"""Convolutions at shared lengths: torch's own results, on few lengths."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chatterbox.models import conv

LENGTHS = (16, 17, 33, 100, 129)


@pytest.mark.parametrize(("stride", "dilation", "kernel", "padding"), [(1, 1, 7, 3), (1, 5, 3, 5), (15, 1, 30, 7)])
@pytest.mark.parametrize("length", LENGTHS)
def test_conv1d_is_torchs(length, stride, dilation, kernel, padding):
    shape = {"stride": stride, "dilation": dilation, "padding": padding}
    ours, x = conv.Conv1d(6, 4, kernel, **shape), torch.randn(2, 6, length)
    with torch.no_grad():
        expected = F.conv1d(x, ours.weight, ours.bias, **shape)
        torch.testing.assert_close(ours(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(16, 8), (11, 5), (7, 3)])
@pytest.mark.parametrize("length", LENGTHS)
def test_transposed_is_torchs(length, kernel, stride):
    ours, x = conv.ConvTranspose1d(6, 4, kernel, stride, padding=(kernel - stride) // 2), torch.randn(2, 6, length)
    with torch.no_grad():
        expected = nn.ConvTranspose1d.forward(ours, x)
        torch.testing.assert_close(ours(x), expected, atol=1e-6, rtol=1e-5)


def test_causal_sees_no_future():
    layer, x = conv.CausalConv1d(3, 3, 5), torch.randn(1, 3, 40)
    with torch.no_grad():
        whole, head = layer(x), layer(x[..., :23])
    assert whole.shape == x.shape
    torch.testing.assert_close(whole[..., :23], head, atol=1e-6, rtol=1e-5)


def test_few_lengths_an_octave(monkeypatch):
    seen = set()

    def spy(x, *args):
        seen.add(x.shape[-1])
        return torch_conv1d(x, *args)

    torch_conv1d = F.conv1d
    monkeypatch.setattr(F, "conv1d", spy)
    layer = conv.Conv1d(2, 2, 3, padding=1)
    with torch.no_grad():
        assert all(layer(torch.zeros(1, 2, n)).shape[-1] == n for n in range(64, 128))
    assert len(seen) == 9  # 64, 72, ..., 128
    assert all(n <= conv.shared_length(n) <= n * 9 / 8 for n in range(8, 5000))


def test_training_keeps_its_lengths(monkeypatch):
    monkeypatch.setattr(conv, "shared_length", lambda length: pytest.fail("padded under autograd"))
    conv.Conv1d(2, 2, 3)(torch.randn(1, 2, 9)).sum().backward()
