"""CAM++ speaker embedding (Wang et al. 2023), which conditions the flow.

Owns: the network and its features. Does not know: the flow, which normalises the embedding, or files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox.models.config import CAMPPlusConfig
from chatterbox.models.s3gen.fbank import kaldi_fbank

_KERNEL = 3  # of the dense layers
_MIN_SAMPLES = 720  # three frames: the pooled deviation needs two after the stride


class CAMPPlus(nn.Module):
    """D-TDNN with context-aware masking. Features (B, T, num_mels) to embeddings (B, embed_size), not normalised."""

    def __init__(self, config: CAMPPlusConfig = CAMPPlusConfig()) -> None:
        super().__init__()
        self.config = config
        self.head = ConvHead(config)
        channels = config.tdnn_channels
        layers: OrderedDict[str, nn.Module] = OrderedDict(tdnn=TDNN(self.head.out_channels, channels))
        for i, (num_layers, dilation) in enumerate(zip(config.block_layers, config.block_dilations, strict=True), 1):
            layers[f"block{i}"] = DenseBlock(config, num_layers, channels, dilation)
            channels += num_layers * config.growth_rate
            layers[f"transit{i}"] = Transit(channels, channels // 2)
            channels //= 2
        layers["out_nonlinear"] = norm_relu(channels)
        layers["stats"] = StatisticsPooling()
        layers["dense"] = Projection(2 * channels, config.embed_size)
        self.xvector = nn.Sequential(layers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.xvector(self.head(features.transpose(1, 2)))

    def features(self, wav: torch.Tensor) -> torch.Tensor:
        """Kaldi features (..., T, num_mels) of 16 kHz audio (..., L), their mean over time removed."""
        if wav.shape[-1] < _MIN_SAMPLES:
            raise ValueError(f"audio has {wav.shape[-1]} samples, fewer than {_MIN_SAMPLES}; give at least 0.1 seconds")
        features = kaldi_fbank(wav, self.config.num_mels)
        return features - features.mean(dim=-2, keepdim=True)

    def inference(self, audio_list: torch.Tensor | Iterable[torch.Tensor]) -> torch.Tensor:
        """Embeddings (B, embed_size) of 16 kHz recordings, each (L,).

        Unequal ones are embedded apart: upstream pads the shorter, and without a mask that changes their embeddings.
        """
        features = [self.features(wav).to(self.head.conv1.weight) for wav in audio_list]
        if len({len(one) for one in features}) == 1:
            return self(torch.stack(features))
        return torch.cat([self(one[None]) for one in features])


class ConvHead(nn.Module):
    """Two-dimensional convolutions over (mel, time) that keep the time axis: (B, num_mels, T) to (B, channels, T)."""

    def __init__(self, config: CAMPPlusConfig) -> None:
        super().__init__()
        width = config.head_channels
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(ResidualBlock(width, stride=2), ResidualBlock(width))
        self.layer2 = nn.Sequential(ResidualBlock(width, stride=2), ResidualBlock(width))
        self.conv2 = nn.Conv2d(width, width, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.out_channels = width * -(-config.num_mels // 8)  # three strides of two

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(mel[:, None])))
        x = self.layer2(self.layer1(x))
        return F.relu(self.bn2(self.conv2(x))).flatten(1, 2)  # (B, C, mel, T) -> (B, C * mel, T)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1:
            pointwise = nn.Conv2d(channels, channels, 1, stride=(stride, 1), bias=False)
            self.shortcut.extend((pointwise, nn.BatchNorm2d(channels)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class TDNN(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(in_channels, out_channels, 5, stride=2, padding=2, bias=False)
        self.nonlinear = norm_relu(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nonlinear(self.linear(x))


class DenseBlock(nn.Module):
    """Every layer sees the input and all earlier layers' outputs: (B, C, T) to (B, C + num_layers * growth_rate, T)."""

    def __init__(self, config: CAMPPlusConfig, num_layers: int, in_channels: int, dilation: int) -> None:
        super().__init__()
        for i in range(num_layers):
            layer = DenseLayer(config, in_channels + i * config.growth_rate, dilation)
            self.add_module(f"tdnnd{i + 1}", layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = torch.cat((x, layer(x)), dim=1)
        return x


class DenseLayer(nn.Module):
    def __init__(self, config: CAMPPlusConfig, in_channels: int, dilation: int) -> None:
        super().__init__()
        bottleneck = config.bottleneck_factor * config.growth_rate
        self.nonlinear1 = norm_relu(in_channels)
        self.linear1 = nn.Conv1d(in_channels, bottleneck, 1, bias=False)
        self.nonlinear2 = norm_relu(bottleneck)
        self.cam_layer = ContextMask(bottleneck, config.growth_rate, dilation, config.segment_len)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))


class ContextMask(nn.Module):
    """A convolution gated by what the whole recording and the current segment sound like."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int, segment_len: int) -> None:
        super().__init__()
        self.segment_len = segment_len
        self.linear_local = nn.Conv1d(
            in_channels, out_channels, _KERNEL, padding=_KERNEL // 2 * dilation, dilation=dilation, bias=False
        )
        self.linear1 = nn.Conv1d(in_channels, in_channels // 2, 1)
        self.linear2 = nn.Conv1d(in_channels // 2, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        segments = F.avg_pool1d(x, self.segment_len, self.segment_len, ceil_mode=True)
        segments = segments.repeat_interleave(self.segment_len, dim=-1)[..., : x.shape[-1]]
        context = x.mean(dim=-1, keepdim=True) + segments
        return self.linear_local(x) * self.linear2(F.relu(self.linear1(context))).sigmoid()


class Transit(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.nonlinear = norm_relu(in_channels)
        self.linear = nn.Conv1d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.nonlinear(x))


class StatisticsPooling(nn.Module):
    """Mean and unbiased standard deviation over time: (B, C, T) to (B, 2 * C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x.mean(dim=-1), x.std(dim=-1)), dim=1)


class Projection(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(in_channels, out_channels, 1, bias=False)
        self.nonlinear = nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(out_channels, affine=False)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nonlinear(self.linear(x[..., None]).squeeze(-1))


def norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU()))
