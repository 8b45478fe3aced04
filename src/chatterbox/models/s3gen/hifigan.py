"""HiFT vocoder: mel spectrogram to 24 kHz waveform (HiFTNet, https://arxiv.org/abs/2309.09493).

Owns: the harmonic source, the upsampling decoder, the inverse STFT head, and rows of unequal length. With `excitation`
"pulses", which no published vocoder has, the source is a train of pulses and noise, and the decoder's answer is how to
mix and filter the two.
Does not know: speech tokens, voices, chunks of a stream. The random parts (phase, noise) can be handed in.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox.models.config import HiFTConfig
from chatterbox.models.conv import Conv1d, ConvTranspose1d
from chatterbox.models.s3gen.f0_predictor import ConvRNNF0Predictor
from chatterbox.models.s3gen.weight_norm import fold_weight_norm, weight_norm
from chatterbox.runtime.replaceable import replaceable

MAX_MAGNITUDE = 100.0


class Snake(nn.Module):
    """``x + sin(alpha x)^2 / alpha`` with one alpha per channel (https://arxiv.org/abs/2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]  # (C, 1)
        wave = torch.sin(x * alpha)
        return torch.addcmul(x, wave * (1.0 / (alpha + 1e-9)), wave)


class ResBlock(nn.Module):
    """Residual stack of Snake and dilated convolutions; length and channels stay."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Conv1d:
            padding = dilation * (kernel - 1) // 2
            return weight_norm(Conv1d(channels, channels, kernel, dilation=dilation, padding=padding))

        self.convs1 = nn.ModuleList(conv(d) for d in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        stages = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for activation1, conv1, activation2, conv2 in stages:
            x = x + conv2(activation2(conv1(activation1(x))))
        return x


class SineGen(nn.Module):
    """Harmonics of F0 with noise, the noise alone where there is no voice. Has no weights; passes no gradient to F0."""

    def __init__(self, config: HiFTConfig) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(
        self,
        f0: Tensor,
        phase: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        turns: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sines for F0 (B, 1, N) in Hz at the sample rate, computed in float32.

        Args:
            phase: (B, H, 1) in [-pi, pi], H = harmonics + 1; the fundamental's entry is not used. Default: drawn.
            noise: (B, H, N) standard normal. Default: drawn.
            generator: source of the draws; None is torch's global one, in upstream's order and shapes.
            turns: of the fundamental before the first sample, where the sines go on from earlier ones.

        Returns:
            Sines with noise (B, H, N), voiced flags (B, 1, N), noise alone (B, H, N).
        """
        c = self.config
        f0 = f0.float()
        batch, _, num_samples = f0.shape
        shape = (batch, c.num_harmonics + 1, num_samples)
        phase = draw_phase(c, batch, generator) if phase is None else phase
        noise = _randn(shape, f0, generator) if noise is None else noise
        order = torch.arange(1, c.num_harmonics + 2, device=f0.device, dtype=f0.dtype)[:, None]  # (H, 1)
        cycles = (order * turns % 1 + torch.cumsum(f0 * order / c.sample_rate, dim=-1)) % 1  # (B, H, N)
        phase = torch.where(order > 1, phase.to(f0), 0.0)
        voiced = (f0 > c.voiced_threshold).to(f0)
        noise = (voiced * c.noise_std + (1 - voiced) * c.sine_amplitude / 3) * noise.to(f0)
        sines = c.sine_amplitude * torch.sin(2 * math.pi * cycles + phase) * voiced + noise
        return sines, voiced, noise


class HarmonicSource(nn.Module):
    """Learned mix of the harmonics into one excitation signal."""

    def __init__(self, config: HiFTConfig) -> None:
        super().__init__()
        self.l_sin_gen = SineGen(config)
        self.l_linear = nn.Linear(config.num_harmonics + 1, 1)

    def forward(
        self,
        f0: Tensor,
        phase: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        turns: float = 0.0,
    ) -> Tensor:
        """Excitation (B, 1, N) for F0 (B, 1, N); see :class:`SineGen` for the other arguments."""
        sines, _, _ = self.l_sin_gen(f0, phase, noise, generator, turns)
        if noise is None and generator is None:
            _randn((f0.shape[0], f0.shape[2], 1), f0, None)  # upstream's unused noise branch advances the generator
        dtype = next(self.l_linear.parameters(), sines).dtype  # a quantised layer has no parameters
        sines = sines.transpose(1, 2).to(dtype)  # (B, N, H)
        return torch.tanh(self.l_linear(sines)).transpose(1, 2)


class PulseSource(nn.Module):
    """A pulse each turn of F0, noise where there is no voice, and other noise to mix with. Has no weights.

    A pulse is all the harmonics that there is room for, so it has no aliases: their sum in closed form.
    """

    def __init__(self, config: HiFTConfig) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(
        self,
        f0: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        turns: float = 0.0,
    ) -> Tensor:
        """Excitation (B, 2, N), both channels of unit power, for F0 (B, 1, N) in Hz; computed in float32.

        Args:
            noise: (B, 2, N) standard normal. Default: drawn.
            generator: source of the draws; None is torch's global one.
            turns: of the fundamental before the first sample, where the pulses go on from earlier ones.
        """
        rate, f0 = self.config.sample_rate, f0.float()
        noise = _randn((f0.shape[0], 2, f0.shape[2]), f0, generator) if noise is None else noise.to(f0)
        harmonics = (rate / 2 / f0.clamp_min(1.0)).floor().clamp_min(1.0)
        exact = torch.float32 if f0.device.type == "mps" else torch.float64  # which that backend lacks
        cycles = turns + torch.cumsum(f0.to(exact) / rate, dim=-1)
        angle = math.pi * (cycles - cycles.round())
        sine = torch.sin(angle)
        at_pulse = sine.abs() < 1e-9
        ratio = torch.sin((2 * harmonics + 1) * angle) / sine.where(~at_pulse, 1.0)
        ratio = ratio.where(~at_pulse, 2.0 * harmonics + 1)
        pulses = ((ratio - 1) * (f0.clamp_min(1.0) / rate).sqrt()).float()  # no step where a harmonic comes or goes
        return torch.cat([pulses.where(f0 > self.config.voiced_threshold, noise[:, :1]), noise[:, 1:]], dim=1)


class HiFTGenerator(nn.Module):
    """The vocoder. Every method but :meth:`inference` is differentiable and takes any batch size."""

    stft_window: Tensor

    def __init__(self, config: HiFTConfig = HiFTConfig()) -> None:
        super().__init__()
        self.config = config
        self.filters = config.excitation == "pulses"
        spectrum = config.istft_n_fft + 2  # real and imaginary parts, or log-magnitude and phase
        widths = [config.base_channels // 2**i for i in range(len(config.upsample_rates) + 1)]
        self.m_source = PulseSource(config) if self.filters else HarmonicSource(config)
        self.conv_pre = weight_norm(Conv1d(config.num_mels, widths[0], 7, padding=3))
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for i, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernels, strict=True)):
            width = widths[i + 1]
            up = ConvTranspose1d(widths[i], width, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(weight_norm(up))
            if not self.filters:
                down, source_kernel = math.prod(config.upsample_rates[i + 1 :]), config.source_resblock_kernels[i]
                kernel = 2 * down if down > 1 else 1
                self.source_downs.append(Conv1d(spectrum, width, kernel, down, padding=down // 2))
                self.source_resblocks.append(ResBlock(width, source_kernel, config.resblock_dilations))
            self.resblocks.extend(ResBlock(width, k, config.resblock_dilations) for k in config.resblock_kernels)
        # Filtering, a log-gain, a phase and the logit of noise's share.
        num_outputs = 3 * spectrum // 2 if self.filters else spectrum
        self.conv_post = weight_norm(Conv1d(widths[-1], num_outputs, 7, padding=3))
        if self.filters:
            self.envelope = Conv1d(config.num_mels, num_outputs, 1)
        window = torch.hann_window(config.istft_n_fft, dtype=torch.float32)
        self.register_buffer("stft_window", window, persistent=False)
        self.f0_predictor = ConvRNNF0Predictor(config.num_mels, config.f0_channels)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def source(
        self,
        f0: Tensor,
        phase: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        turns: float = 0.0,
    ) -> Tensor:
        """Excitation (B, C, T * hop) for F0 (B, T) in Hz per mel frame; see :class:`SineGen` for what else.

        C is 1, with pulses 2.
        """
        f0 = f0[:, None].repeat_interleave(self.config.hop_len, dim=-1)
        if isinstance(self.m_source, PulseSource):
            return self.m_source(f0, noise, generator, turns).to(self.dtype)
        return self.m_source(f0, phase, noise, generator, turns)

    def decode(self, x: Tensor, s: Tensor) -> Tensor:
        """Waveform (B, T * hop) of mel ``x`` (B, num_mels, T) and excitation ``s`` (B, C, T * hop), clipped."""
        spectra = [self._stft(signal) for signal in s.unbind(1)]
        num_kernels, last = len(self.config.resblock_kernels), len(self.ups) - 1
        mel, x = x, self.conv_pre(x)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            if i == last:
                x = torch.cat([x[..., 1:2], x], dim=-1)  # reflected: as many frames as the source's STFT
            if not self.filters:
                x = x + self.source_resblocks[i](self.source_downs[i](spectra[0].to(s.dtype)))
            blocks = self.resblocks[i * num_kernels : (i + 1) * num_kernels]
            x = reduce(torch.add, [block(x) for block in blocks]) / num_kernels
        x = self.conv_post(F.leaky_relu(x, 0.01))
        if self.filters:
            wav = self._filtered((x + self._at_frames(self.envelope(mel))).float(), *spectra)
        else:
            log_magnitude, phase = x.float().chunk(2, dim=1)
            wav = self._istft(bounded_polar(torch.exp(log_magnitude), torch.sin(phase)))
        return wav.clamp(-self.config.audio_limit, self.config.audio_limit).to(x.dtype)

    def forward(
        self,
        speech_feat: Tensor,
        cache_source: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        phase: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        turns: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Waveform (B, T * hop) and excitation (B, C, T * hop) of mel (B, num_mels, T).

        Args:
            cache_source: (B or 1, C, n) replaces the first n samples of the excitation: the tail of the chunk before.
            lengths: (B,) valid frames of each row. A row is then what it is alone, with zeros behind it; without them
                the frames at its padding reach into its end, as upstream.
            phase: see `SineGen`, as for ``noise``, ``generator`` and ``turns``.
        """
        if lengths is not None and bool((lengths < speech_feat.shape[2]).any()):
            return self._apart(speech_feat, lengths, cache_source, phase, noise, generator, turns)
        speech_feat = speech_feat.to(self.dtype)  # it may be another than the flow's
        source = self.source(self.f0_predictor(speech_feat), phase, noise, generator, turns)
        if cache_source is not None and cache_source.shape[2]:
            head = cache_source[..., : source.shape[2]].to(source).expand(source.shape[0], -1, -1)
            source = torch.cat([head, source[..., head.shape[2] :]], dim=2)
        return self.decode(speech_feat, source), source

    def _apart(
        self,
        speech_feat: Tensor,
        lengths: Tensor,
        cache_source: Tensor | None,
        phase: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
        turns: float,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`forward` in one pass per length: masks could not give a row the edges that its own STFT has."""
        hop, (batch, _, num_frames) = self.config.hop_len, speech_feat.shape
        if phase is None:
            phase = draw_phase(self.config, batch, generator)
        if noise is None:
            noise = _randn((batch, phase.shape[1], num_frames * hop), speech_feat, generator)
        phase, noise = (part.to(speech_feat.device).expand(batch, -1, -1) for part in (phase, noise))
        if cache_source is not None:
            cache_source = cache_source.to(speech_feat.device).expand(batch, -1, -1)
        wav = speech_feat.new_zeros(batch, num_frames * hop)
        source = wav[:, None].repeat(1, 1 + self.filters, 1)
        for length in set(lengths.tolist()) - {0}:
            rows, end = (lengths == length).to(speech_feat.device), length * hop
            head = None if cache_source is None else cache_source[rows]
            wav[rows, :end], source[rows, :, :end] = self.forward(
                speech_feat[rows, :, :length], head, phase=phase[rows], noise=noise[rows, :, :end], turns=turns
            )
        return wav, source

    @replaceable
    @torch.inference_mode()
    def inference(
        self,
        speech_feat: Tensor,
        cache_source: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        phase: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        turns: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`forward` without autograd."""
        return self.forward(
            speech_feat, cache_source, lengths=lengths, phase=phase, noise=noise, generator=generator, turns=turns
        )

    def remove_weight_norm(self) -> None:
        """Fold the weight normalisation into plain weights: half the memory, but no longer the checkpoint's keys."""
        fold_weight_norm(self)

    def _stft(self, wav: Tensor) -> Tensor:
        """Real, then imaginary parts (B, n_fft + 2, N / hop + 1) of ``wav`` (B, N), in float32."""
        c = self.config
        window = self.stft_window.float()
        spectrum = torch.stft(wav.float(), c.istft_n_fft, c.istft_hop, window=window, return_complex=True)
        return torch.cat([spectrum.real, spectrum.imag], dim=1)

    def _at_frames(self, x: Tensor) -> Tensor:
        """(B, C, T * rate + 1) at the frames of the excitation's STFT, between the values (B, C, T) of mel frames."""
        x = F.interpolate(x, scale_factor=math.prod(self.config.upsample_rates), mode="linear")
        return F.avg_pool1d(F.pad(x, (1, 1), mode="replicate"), 2, 1)  # from the middles of hops to their edges

    def _filtered(self, filters: Tensor, pulses: Tensor, noise: Tensor) -> Tensor:
        """Waveform (B, N) of the spectra (B, n_fft + 2, N / hop + 1) of the excitation, mixed and filtered."""
        log_gain, phase, logit = filters.chunk(3, dim=1)
        log_gain = log_gain.clamp(max=math.log(MAX_MAGNITUDE))
        voice, breath = (torch.exp(log_gain + 0.5 * F.logsigmoid(x)) for x in (-logit, logit))
        spectrum = torch.complex(*pulses.float().chunk(2, dim=1)) * bounded_polar(voice, phase)
        return self._istft(spectrum + torch.complex(*noise.float().chunk(2, dim=1)) * breath)

    def _istft(self, spectrum: Tensor) -> Tensor:
        """Waveform (B, N) of a complex spectrum (B, n_fft / 2 + 1, N / hop + 1)."""
        c = self.config
        return torch.istft(spectrum, c.istft_n_fft, c.istft_hop, window=self.stft_window.float())


def draw_phase(config: HiFTConfig, batch: int, generator: torch.Generator | None) -> Tensor:
    """(B, H, 1) in [-pi, pi): of the harmonics, H = harmonics + 1."""
    # Upstream draws the phase on the CPU, whatever the device of the model.
    where = generator.device if generator is not None else "cpu"
    shape = (batch, config.num_harmonics + 1, 1)
    return torch.rand(shape, generator=generator, dtype=torch.float32, device=where) * (2 * math.pi) - math.pi


def bounded_polar(magnitude: Tensor, phase: Tensor) -> Tensor:
    """Complex numbers of a magnitude, `MAX_MAGNITUDE` at most, and a phase."""
    magnitude = magnitude.clamp(max=MAX_MAGNITUDE)
    return torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))


def _randn(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    where = generator.device if generator is not None else like.device
    return torch.randn(shape, generator=generator, device=where, dtype=torch.float32).to(like.device)
