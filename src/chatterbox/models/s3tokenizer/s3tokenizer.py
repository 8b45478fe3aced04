"""Speech tokenizer: 16 kHz audio to speech tokens at 25 a second.

Owns: the log-mel spectrogram, batches of recordings, recordings of more than 30 seconds, and the start and stop ids.
Does not know: files, nor what the speech tokens are used for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from chatterbox.audio.recordings import mel_filters
from chatterbox.models.config import NUM_SPEECH_TOKENS, START_SPEECH_TOKEN, STOP_SPEECH_TOKEN, S3TokenizerConfig
from chatterbox.models.s3tokenizer.encoder import AudioEncoder, FSQCodebook

S3_SR = 16_000
S3_HOP = 160  # samples per mel frame
S3_TOKEN_HOP = 640  # samples per speech token
S3_TOKEN_RATE = 25
SPEECH_VOCAB_SIZE = NUM_SPEECH_TOKENS
SOS = START_SPEECH_TOKEN
EOS = STOP_SPEECH_TOKEN

FRAMES_PER_CODE = S3_TOKEN_HOP // S3_HOP
_N_FFT = 400
WINDOW_FRAMES, WINDOW_OVERLAP = 3000, 400  # 30 s and 4 s
_WINDOWS_PER_BATCH = 4  # bounds memory for recordings of any length


class S3Tokenizer(nn.Module):
    """S3 tokenizer v2 (CosyVoice 2). Both buffers are in the state dict; checkpoints may lack them.

    ``forward`` and ``quantize`` return speech tokens and take no gradients. To train, go through
    ``log_mel_spectrogram`` and ``digits``, which are differentiable.
    """

    _mel_filters: torch.Tensor
    window: torch.Tensor
    ignore_state_dict_missing = ("_mel_filters", "window")

    def __init__(
        self, name: str = "speech_tokenizer_v2_25hz", *, config: S3TokenizerConfig = S3TokenizerConfig()
    ) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.encoder = AudioEncoder(config)
        self.quantizer = nn.ModuleDict({"_codebook": FSQCodebook(config.hidden_size)})
        self.register_buffer("_mel_filters", mel_filters(S3_SR, _N_FFT, config.num_mels).clone())
        self.register_buffer("window", torch.hann_window(_N_FFT, dtype=torch.float32, device="cpu"))

    @property
    def device(self) -> torch.device:
        return self.window.device

    @torch.no_grad()
    def forward(
        self,
        wavs: Sequence[torch.Tensor | np.ndarray] | torch.Tensor,
        accelerator: object | None = None,
        max_len: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Speech tokens (B, T) and their lengths (B,), int64, of 16 kHz recordings, each (L,) or (1, L).

        ``max_len`` cuts each spectrogram to that many speech tokens; ``accelerator`` stands where upstream has it and
        is not used. In a batch, ids past a row's length mean nothing.
        """
        mels = [self.log_mel_spectrogram(wav).reshape(self.config.num_mels, -1) for wav in wavs]
        if max_len is not None:
            mels = [mel[:, : max_len * FRAMES_PER_CODE] for mel in mels]
        lengths = torch.tensor([mel.shape[1] for mel in mels], device=self.device)
        padded = nn.utils.rnn.pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)
        return self.quantize(padded, lengths)

    def log_mel_spectrogram(self, audio: torch.Tensor | np.ndarray, padding: int = 0) -> torch.Tensor:
        """Log-mel (..., num_mels, L // 160) of 16 kHz audio (..., L), floored 8 decades below each recording's peak.

        ``padding`` zero samples are appended first. Differentiable.
        """
        log_mel = self.log_spectrum(audio, padding)
        return self.floored(log_mel, log_mel.amax(dim=(-2, -1), keepdim=True))

    def log_spectrum(self, audio: torch.Tensor | np.ndarray, padding: int = 0) -> torch.Tensor:
        """`log_mel_spectrogram` as it is before it is `floored` and scaled."""
        audio = F.pad(torch.as_tensor(audio).to(self.device).float(), (0, padding))
        if audio.shape[-1] <= _N_FFT // 2:
            raise ValueError(f"audio has {audio.shape[-1]} samples, fewer than {_N_FFT // 2 + 1}; give a longer one")
        spectrum = torch.stft(audio, _N_FFT, S3_HOP, window=self.window.float(), return_complex=True)
        mel = self._mel_filters.float() @ spectrum[..., :-1].abs().square()
        return mel.clamp_min(1e-10).log10()

    @staticmethod
    def floored(log_mel: torch.Tensor, peak: torch.Tensor) -> torch.Tensor:
        """A log-mel of `log_spectrum`, floored 8 decades below ``peak`` and scaled as the encoder has it."""
        return (torch.maximum(log_mel, peak - 8.0) + 4.0) / 4.0

    def digits(self, mel: torch.Tensor, mel_len: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Eight numbers per speech token before tanh and rounding, (B, ceil(T / 4), 8), and lengths (B,);
        differentiable.

        ``mel`` is (B, num_mels, T) of at most 3000 frames, ``mel_len`` (B,).
        """
        hidden, lengths = self.encoder(mel, mel_len)
        return self.quantizer["_codebook"](hidden), lengths

    @torch.no_grad()
    def quantize(self, mel: torch.Tensor, mel_len: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Speech tokens (B, ceil(T / 4)) and lengths (B,), int64, of log-mels (B, num_mels, T) of any length."""
        if int(mel_len.max()) <= WINDOW_FRAMES:
            digits, lengths = self.digits(mel, mel_len)
            return FSQCodebook.tokens(digits), lengths.long()
        rows = [self._quantize_row(row[:, : int(n)]) for row, n in zip(mel, mel_len, strict=True)]
        lengths = torch.tensor([len(row) for row in rows], device=mel.device)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths

    def pad(self, wavs: Sequence[torch.Tensor | np.ndarray], sr: int) -> list[torch.Tensor]:
        """Recordings (1, L), zero-padded to whole speech tokens (40 ms)."""
        rows = [torch.atleast_2d(torch.as_tensor(wav)) for wav in wavs]
        sizes = [int(math.ceil(row.shape[1] / sr * S3_TOKEN_RATE) * (sr / S3_TOKEN_RATE)) for row in rows]
        return [F.pad(row, (0, size - row.shape[1])) for row, size in zip(rows, sizes, strict=True)]

    def _quantize_row(self, mel: torch.Tensor) -> torch.Tensor:
        """Speech tokens (ceil(T / 4),) of one log-mel (num_mels, T): half of each overlap comes from either window."""
        windows, lengths = split_windows(mel)
        speech_tokens = []
        for batch, batch_len in zip(windows.split(_WINDOWS_PER_BATCH), lengths.split(_WINDOWS_PER_BATCH), strict=True):
            digits, token_len = self.digits(batch, batch_len)
            speech_tokens += [row[: int(n)] for row, n in zip(FSQCodebook.tokens(digits), token_len, strict=True)]
        half = WINDOW_OVERLAP // 2 // FRAMES_PER_CODE
        last = len(speech_tokens) - 1
        return torch.cat([row[half * (i > 0) : len(row) - half * (i < last)] for i, row in enumerate(speech_tokens)])


def split_windows(mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows (N, num_mels, 3000) of (num_mels, T), overlapping by 400 frames, and their lengths (N,).

    The last one is zero-padded, and is the first to reach the end of the recording. Upstream may add another one that
    lies inside the last overlap, and then loses up to two seconds of speech.
    """
    stride = WINDOW_FRAMES - WINDOW_OVERLAP
    starts = range(0, max(1, mel.shape[1] - WINDOW_OVERLAP), stride)
    pieces = [mel[:, start : start + WINDOW_FRAMES] for start in starts]
    lengths = torch.tensor([piece.shape[1] for piece in pieces], device=mel.device)
    return torch.stack([F.pad(piece, (0, WINDOW_FRAMES - piece.shape[1])) for piece in pieces]), lengths


def drop_invalid_tokens(x: torch.Tensor) -> torch.Tensor:
    """What lies between the start and the stop id in (T,) or (1, T), of the same number of dimensions.

    The first stop id ends the speech and the last start id before it begins it; a start id only after the stop id
    leaves nothing. Upstream fails on repeated ids and cuts (1, T) along the wrong axis.
    """
    if x.ndim not in (1, 2) or (x.ndim == 2 and len(x) != 1):
        raise ValueError(f"tokens must be (T,) or (1, T), got {tuple(x.shape)}; pass one row at a time")
    row = x.flatten()
    starts, stops = (row == SOS).nonzero().flatten(), (row == EOS).nonzero().flatten()
    end = int(stops[0]) if len(stops) else len(row)
    before = starts[starts < end]
    begin = int(before[-1]) + 1 if len(before) else end if len(starts) else 0
    return x[..., begin:end]
