"""S3Gen: speech tokens to a 24 kHz waveform in the voice of a reference recording.

Owns: the parts of the published checkpoint (speech tokenizer, speaker encoder, flow, vocoder) under upstream's names,
what a reference dict holds, and the fade-in of every waveform.
Does not know: T3, text, chunks of a stream. A call keeps no state and changes nothing that it was given.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatterbox.audio.recordings import resample_sinc
from chatterbox.models.config import FlowConfig, S3GenConfig
from chatterbox.models.late import LateParts
from chatterbox.models.s3gen.const import S3GEN_SR
from chatterbox.models.s3gen.flow import FRAMES_PER_TOKEN, CausalMaskedDiffWithXvec
from chatterbox.models.s3gen.hifigan import HiFTGenerator
from chatterbox.models.s3gen.mel import mel_spectrogram
from chatterbox.models.s3gen.xvector import CAMPPlus
from chatterbox.models.s3tokenizer import S3_SR, S3Tokenizer
from chatterbox.runtime import forking
from chatterbox.runtime.replaceable import call, replaceable, replacement
from chatterbox.runtime.torch_context import own_context

logger = logging.getLogger(__name__)

MAX_REF_SECONDS = 10
FADE_SAMPLES = S3GEN_SR // 50  # 20 ms of silence, then 20 ms of fade-in

_REF_KEYS = ("prompt_token", "prompt_token_len", "prompt_feat", "embedding")


def require_reference(ref_dict: Mapping[str, Any], config: FlowConfig) -> None:
    """Raise ValueError if a voice lacks what `S3Gen.embed_ref` makes of a recording, or is of another model."""
    if lacking := [key for key in _REF_KEYS if key != "prompt_token_len" and ref_dict.get(key) is None]:
        raise ValueError(f"ref_dict lacks {', '.join(lacking)}; make it with embed_ref")
    for key, width in (("prompt_feat", config.num_mels), ("embedding", config.speaker_embed_size)):
        shape = tuple(getattr(ref_dict[key], "shape", ()))
        if shape[-1:] != (width,):
            raise ValueError(f"ref_dict's {key} is {shape}, that of this model {width} wide; make it with embed_ref")


class S3Token2Mel(LateParts):
    """Speech tokens to mel, and everything that reads a reference recording."""

    def __init__(self, meanflow: bool = False, *, config: S3GenConfig = S3GenConfig()) -> None:
        super().__init__()
        self.config = config
        self.meanflow = meanflow
        self.tokenizer = S3Tokenizer(config=config.tokenizer)
        self.speaker_encoder = CAMPPlus(config.speaker_encoder)
        self.flow = CausalMaskedDiffWithXvec(config.flow, meanflow)

    @property
    def device(self) -> torch.device:
        return self.flow.input_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.flow.dtype

    @own_context()
    @torch.no_grad()
    def embed_ref(
        self, ref_wav: Tensor | np.ndarray, ref_sr: int, device: str | torch.device = "auto", ref_fade_out: bool = True
    ) -> dict[str, Tensor | None]:
        """What the flow needs to know of a voice.

        Args:
            ref_wav: samples (L,) or (1, L) at ``ref_sr`` Hz; more than 10 s is unusual and logged.
            device: where the result goes; "auto" is the model's device.
            ref_fade_out: has no effect, as in upstream.

        Returns:
            ``prompt_token`` (1, n) and ``prompt_token_len`` (1,) integers, ``prompt_feat`` (1, frames, num_mels) with
            2n frames or one more, ``prompt_feat_len`` None, ``embedding`` (1, speaker_embed_size).
        """
        wav = torch.atleast_2d(torch.as_tensor(ref_wav)).to(self.device, torch.float32)  # (B, L)
        if wav.shape[1] > MAX_REF_SECONDS * ref_sr:
            logger.warning("reference of %.1f s; S3Gen was made for up to %d s", wav.shape[1] / ref_sr, MAX_REF_SECONDS)
        wav_16 = resample_sinc(wav, ref_sr, S3_SR)
        mel = mel_spectrogram(resample_sinc(wav, ref_sr, S3GEN_SR), num_mels=self.config.flow.num_mels)
        feat = mel.transpose(1, 2).to(self.dtype)  # (B, frames, num_mels)
        embedding = self.speaker_encoder.inference(list(wav_16))
        tokens, lengths = self.tokenizer(wav_16)
        # A surplus mel frame stays, as upstream: the waveform of such a voice is 20 ms shorter, and otherwise the same.
        most = feat.shape[1] // FRAMES_PER_TOKEN
        if feat.shape[1] != FRAMES_PER_TOKEN * tokens.shape[1]:
            logger.debug("reference has %d mel frames and %d tokens; keeping %d", feat.shape[1], tokens.shape[1], most)
        out = self.device if device == "auto" else device
        return {
            "prompt_token": tokens[:, :most].to(out),
            "prompt_token_len": lengths.clamp(max=most).to(out),
            "prompt_feat": feat.to(out),
            "prompt_feat_len": None,
            "embedding": embedding.to(out, self.dtype),
        }

    def forward(
        self,
        speech_tokens: Tensor,
        ref_wav: Tensor | None,
        ref_sr: int | None,
        ref_dict: Mapping[str, Any] | None = None,
        n_cfm_timesteps: int | None = None,
        finalize: bool = False,
        speech_token_lens: Tensor | None = None,
        noised_mels: Tensor | None = None,
        *,
        z: Tensor | None = None,
        generator: torch.Generator | None = None,
        isolate_padding: bool = True,
    ) -> Tensor:
        """Mel (B, num_mels, frames) of the tokens; see :meth:`S3Token2Wav.flow_inference`. Differentiable."""
        ref = self._reference(ref_wav, ref_sr, ref_dict)
        speech_tokens = torch.atleast_2d(torch.as_tensor(speech_tokens))
        if self.meanflow and noised_mels is None and z is None:
            noised_mels = self._speech_noise(speech_tokens, generator)
        steps = {"finalize": finalize, "n_timesteps": n_cfm_timesteps or None, "noised_mels": noised_mels}
        ours = {"z": z, "generator": generator, "isolate_padding": isolate_padding}
        replaced = replacement(self.flow, "inference")
        if replaced is None:
            return self.flow(speech_tokens, speech_token_lens, **ref, **steps, **ours)
        if speech_token_lens is None:
            speech_token_lens = torch.tensor([speech_tokens.shape[1]], device=self.device)
        steps["n_timesteps"] = self.flow.decoder.num_steps(n_cfm_timesteps or None)
        tokens = {"token": speech_tokens, "token_len": speech_token_lens, "prompt_feat_len": None}
        return call(replaced, {**tokens, **ref, **steps, "meanflow": self.meanflow}, ours)[0]

    def _reference(
        self, ref_wav: Tensor | None, ref_sr: int | None, ref_dict: Mapping[str, Any] | None
    ) -> dict[str, Tensor | None]:
        """The flow's arguments that describe the voice, as tensors; ids keep their integer type."""
        if (ref_wav is None) == (ref_dict is None):
            raise ValueError(f"pass either ref_wav or ref_dict, got {'neither' if ref_wav is None else 'both'}")
        if ref_dict is None:
            if ref_wav is None or ref_sr is None:
                raise ValueError("ref_wav needs its sample rate; pass ref_sr in Hz")
            ref_dict = self.embed_ref(ref_wav, ref_sr)
        require_reference(ref_dict, self.config.flow)
        ref = {key: ref_dict.get(key) for key in _REF_KEYS}
        return {key: None if value is None else torch.as_tensor(value) for key, value in ref.items()}

    def _speech_noise(self, speech_tokens: Tensor, generator: torch.Generator | None) -> Tensor:
        """Noise (1, num_mels, 2n) of the new frames alone; upstream draws it before that of the whole sequence."""
        where = self.device if generator is None else generator.device
        shape = (1, self.config.flow.num_mels, FRAMES_PER_TOKEN * speech_tokens.shape[-1])
        return torch.randn(shape, generator=generator, device=where, dtype=self.dtype).to(self.device)


class S3Token2Wav(S3Token2Mel):
    """Speech tokens to waveform. Tokens are (n,) or (B, n); rows of a batch share the reference or bring one each."""

    ignore_state_dict_missing = ("tokenizer._mel_filters", "tokenizer.window")
    trim_fade: Tensor

    def __init__(self, meanflow: bool = False, *, config: S3GenConfig = S3GenConfig()) -> None:
        super().__init__(meanflow, config=config)
        self.mel2wav = HiFTGenerator(config.vocoder)
        rise = (torch.cos(torch.linspace(torch.pi, 0, FADE_SAMPLES, dtype=torch.float32)) + 1) / 2
        self.register_buffer("trim_fade", torch.cat([torch.zeros_like(rise), rise]), persistent=False)
        forking.register(self)

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy or a pickle
        super().__setstate__(state)
        forking.register(self)

    def forward(  # type: ignore[override]  # upstream's order, in both
        self,
        speech_tokens: Tensor,
        ref_wav: Tensor | None,
        ref_sr: int | None,
        ref_dict: Mapping[str, Any] | None = None,
        finalize: bool = False,
        speech_token_lens: Tensor | None = None,
        skip_vocoder: bool = False,
        n_cfm_timesteps: int | None = None,
        noised_mels: Tensor | None = None,
        *,
        z: Tensor | None = None,
        generator: torch.Generator | None = None,
        isolate_padding: bool = True,
    ) -> Tensor:
        """Waveform (B, samples), or mel if ``skip_vocoder``; faded in unless the module is in training mode."""
        mel = super().forward(
            speech_tokens, ref_wav, ref_sr, ref_dict, n_cfm_timesteps, finalize, speech_token_lens, noised_mels,
            z=z, generator=generator, isolate_padding=isolate_padding,
        )  # fmt: skip
        if skip_vocoder:
            return mel
        lengths = _frame_lens(mel, speech_tokens, speech_token_lens if isolate_padding else None)
        wav, _ = self.mel2wav(mel, lengths=lengths, generator=generator)
        return wav if self.training else self.fade_in(wav)

    @replaceable
    @torch.inference_mode()
    def flow_inference(
        self,
        speech_tokens: Tensor,
        ref_wav: Tensor | None = None,
        ref_sr: int | None = None,
        ref_dict: Mapping[str, Any] | None = None,
        n_cfm_timesteps: int | None = None,
        finalize: bool = False,
        speech_token_lens: Tensor | None = None,
        *,
        z: Tensor | None = None,
        generator: torch.Generator | None = None,
        isolate_padding: bool = True,
    ) -> Tensor:
        """Mel (B, num_mels, frames) of the tokens, two frames each.

        Args:
            speech_tokens: (n,) or (B, n) ids below the vocabulary size.
            ref_wav: reference samples,
            ref_sr: and their rate, or
            ref_dict: the result of :meth:`embed_ref`; it is not changed.
            n_cfm_timesteps: Euler steps; None is 10, or 2 for a mean-flow model.
            finalize: False when more tokens follow: the last 3 are then context only and give no frames.
            speech_token_lens: (B,) valid tokens per row of a padded batch. A row is what it is alone with the same
                noise; what stands behind it has no meaning.
            z: (B or 1, num_mels, frames of prompt and tokens, or more) noise per frame; the default is drawn from
            generator: the source of noise, torch's global one if None.
            isolate_padding: False is upstream: the padding of a shorter row changes it.

        Raises:
            ValueError: no token, an id outside the vocabulary, or both or neither of ``ref_wav`` and ``ref_dict``.
        """
        return S3Token2Mel.forward(
            self, speech_tokens, ref_wav, ref_sr, ref_dict, n_cfm_timesteps, finalize, speech_token_lens,
            z=z, generator=generator, isolate_padding=isolate_padding,
        )  # fmt: skip

    @replaceable
    @torch.inference_mode()
    def hift_inference(
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
        """Waveform (B, samples) and excitation (B, 1, samples) of a mel (B, num_mels, frames), without fade-in.

        ``cache_source`` (B or 1, 1, k) replaces the first k samples of the excitation, ``phase`` (B, H, 1) and
        ``noise`` (B, H, samples) its random parts, ``turns`` go before it, ``lengths`` (B,) are the valid frames of a
        padded batch, see :class:`chatterbox.models.s3gen.hifigan.HiFTGenerator`.
        """
        ours = {"lengths": lengths, "phase": phase, "noise": noise, "generator": generator, "turns": turns}
        replaced = replacement(self.mel2wav, "inference")
        if replaced is None:
            return self.mel2wav(speech_feat, cache_source, **ours)
        if cache_source is None:
            cache_source = speech_feat.new_zeros(1, 1, 0)
        return call(replaced, {"speech_feat": speech_feat, "cache_source": cache_source}, ours)

    @replaceable
    @torch.inference_mode()
    def inference(
        self,
        speech_tokens: Tensor,
        ref_wav: Tensor | None = None,
        ref_sr: int | None = None,
        ref_dict: Mapping[str, Any] | None = None,
        drop_invalid_tokens: bool = True,
        n_cfm_timesteps: int | None = None,
        speech_token_lens: Tensor | None = None,
        *,
        z: Tensor | None = None,
        phase: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        isolate_padding: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Waveform (B, samples), 960 samples a token, faded in over 40 ms, and its excitation (B, 1, samples).

        All tokens are rendered; behind the shorter rows of a padded batch stand zeros. ``drop_invalid_tokens`` has no
        effect, as in upstream: an id outside the vocabulary raises. See :meth:`flow_inference` and
        :meth:`hift_inference` for the other arguments.
        """
        voice = {"ref_wav": ref_wav, "ref_sr": ref_sr, "ref_dict": ref_dict}
        steps = {"n_cfm_timesteps": n_cfm_timesteps, "finalize": True, "speech_token_lens": speech_token_lens}
        ours = {"z": z, "generator": generator, "isolate_padding": isolate_padding}
        mel = call(self.flow_inference, {"speech_tokens": speech_tokens, **voice, **steps}, ours)
        lengths = _frame_lens(mel, speech_tokens, speech_token_lens if isolate_padding else None)
        ours = {"lengths": lengths, "phase": phase, "noise": noise, "generator": generator}
        wav, source = call(self.hift_inference, {"speech_feat": mel}, ours)
        return self.fade_in(wav), source

    def fade_in(self, wav: Tensor, start: int = 0) -> Tensor:
        """Mutes what of the reference spills into the first samples; ``wav`` (B, N) are those from ``start`` on."""
        fade = self.trim_fade[start : start + wav.shape[1]]
        return torch.cat([wav[:, : len(fade)] * fade, wav[:, len(fade) :]], dim=1)


def _frame_lens(mel: Tensor, speech_tokens: Tensor, speech_token_lens: Tensor | None) -> Tensor | None:
    """Frames (B,) of each row of ``mel``: what its missing tokens would have given is missing at the end."""
    if speech_token_lens is None:
        return None
    missing = torch.as_tensor(speech_tokens).shape[-1] - torch.atleast_1d(speech_token_lens).cpu()
    return (mel.shape[2] - FRAMES_PER_TOKEN * missing).clamp(min=0).expand(mel.shape[0])
