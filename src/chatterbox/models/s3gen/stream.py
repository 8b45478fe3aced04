"""One utterance's waveform, piece by piece while its speech tokens arrive.

Owns: what S3Gen must remember between pieces of one token stream: the last tokens, the noise of every mel frame, the
mel, excitation and phase where the vocoder goes on. Does not know: text, T3, how tokens are chosen, watermarks.

    tokens      [... context ...][ new tokens ][3 ahead]      the flow sees prompt, context, new and ahead
    mel         ..........[ blend ][ new frames        ]      frames of two calls blend where they overlap
    vocoder     ....[ past ][ held ][ new      ][ held ]      held frames wait until 6 more are known (8 with pulses)

The flow attends to all that it is given, so a frame changes a little with how much that is; its noise is fixed by the
frame's place in the stream, which keeps the change small, and the overlap of two calls is blended. What the flow's
estimator shall remember it does not integrate again: the prompt, or the frames before those that blend as well; the
prompt's noise is then the voice's, and the same for every stream. The vocoder sees
some 6 frames either way: it gets `PAST_FRAMES` of what it vocoded before and holds back `HELD_FRAMES`, so that each
sample is what one pass over the same mel gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.models.s3gen.cfm import DEFAULT_STEPS, Steps
from chatterbox.models.s3gen.estimator import ConditionalDecoder
from chatterbox.models.s3gen.flow import FRAMES_PER_TOKEN, Prompt
from chatterbox.models.s3gen.hifigan import draw_phase
from chatterbox.models.s3gen.memory import FlowMemory, FlowPass
from chatterbox.models.s3gen.s3gen import S3Token2Wav as S3Gen
from chatterbox.models.s3gen.s3gen import require_reference
from chatterbox.runtime.replaceable import call, has_functions_of_others, replacement

# Of the trained vocoder: one frame less and samples change by 1e-3 of their level, this many and by 1e-4 at most.
HELD_FRAMES = 6
FILTER_HELD_FRAMES = 8  # of one that filters pulses: its STFT is longer
PAST_FRAMES = 8
Voice = Callable[[], AbstractContextManager[FlowMemory]]  # lends what is remembered of a voice's prompt
TOKENS_PER_SECOND = 25
_SOURCE_SEED = 0x5EED  # makes the vocoder's generator another one than the flow's


class FrameNoise:
    """All random numbers of one stream, by place: the same ones however the stream is cut. Drawn on the CPU."""

    def __init__(self, s3gen: S3Gen, seed: int) -> None:
        vocoder = s3gen.config.vocoder
        self._num_mels, self._hop_len = s3gen.config.flow.num_mels, vocoder.hop_len
        self._mel = torch.Generator().manual_seed(seed)
        self._source = torch.Generator().manual_seed(seed ^ _SOURCE_SEED)
        self._device = s3gen.device
        self._num_harmonics = vocoder.num_harmonics + 1
        self.phase = draw_phase(vocoder, 1, self._source)

    def mel(self, num_frames: int) -> Tensor:
        """The next frames' (1, num_mels, num_frames)."""
        return self._normal(num_frames, self._num_mels, self._mel)

    def source(self, num_frames: int) -> Tensor:
        """The next frames' (1, harmonics, num_frames * hop)."""
        return self._normal(num_frames * self._hop_len, self._num_harmonics, self._source)

    def _normal(self, length: int, channels: int, generator: torch.Generator) -> Tensor:
        """(1, channels, length)."""
        return torch.randn(length, channels, generator=generator, dtype=torch.float32).T[None].to(self._device)


def prompt_len(reference: Mapping[str, Any]) -> int:
    """Speech tokens of a voice's recording, of `S3Gen.embed_ref`, that every piece sees."""
    tokens, given = torch.atleast_2d(torch.as_tensor(reference["prompt_token"])), reference.get("prompt_token_len")
    return tokens.shape[1] if given is None else min(tokens.shape[1], int(torch.as_tensor(given).max()))


def prompt_noise(s3gen: S3Gen, reference: Mapping[str, Any]) -> Tensor:
    """(1, num_mels, 2p) of a voice's prompt, where it is remembered: by its tokens alone, on every machine the same."""
    tokens = torch.atleast_2d(torch.as_tensor(reference["prompt_token"]))[:1, : prompt_len(reference)].long().cpu()
    seed = int.from_bytes(hashlib.sha256(tokens.numpy().tobytes()).digest()[:7], "big")
    return FrameNoise(s3gen, seed).mel(FRAMES_PER_TOKEN * tokens.shape[1])


def remember_prompt(s3gen: S3Gen, reference: Mapping[str, Any], steps: Steps = DEFAULT_STEPS) -> FlowMemory:
    """What the flow's estimator keeps of a voice, of `S3Gen.embed_ref`, for every stream in it of such steps."""
    return s3gen.flow.remember(_prompt_of(reference), z=prompt_noise(s3gen, reference), steps=steps)


def _prompt_of(reference: Mapping[str, Any]) -> Prompt:
    token, feat, embedding = (torch.as_tensor(reference[key]) for key in ("prompt_token", "prompt_feat", "embedding"))
    given = reference.get("prompt_token_len")
    return Prompt(torch.atleast_2d(token), None if given is None else torch.as_tensor(given), feat, embedding)


def with_prompt_seconds(reference: Mapping[str, Any], seconds: float | None) -> Mapping[str, Any]:
    """A voice, of `S3Gen.embed_ref`, with the first ``seconds`` of its recording as the prompt; its x-vector stays.

    The voice itself where that is no less than all of it, or None.
    """
    if seconds is None or (num_tokens := max(1, round(seconds * TOKENS_PER_SECOND))) >= prompt_len(reference):
        return reference
    token, feat = (torch.as_tensor(reference[key]) for key in ("prompt_token", "prompt_feat"))
    return {
        **reference,
        "prompt_token": torch.atleast_2d(token)[:, :num_tokens],
        "prompt_token_len": torch.tensor([num_tokens], device=token.device),
        "prompt_feat": feat[:, : FRAMES_PER_TOKEN * num_tokens],
    }


def waveform_len(s3gen: S3Gen, reference: Mapping[str, Any], num_tokens: int) -> int:
    """Samples of ``num_tokens`` speech tokens in a voice, of `S3Gen.embed_ref`."""
    surplus = reference["prompt_feat"].shape[1] - FRAMES_PER_TOKEN * prompt_len(reference)
    return (FRAMES_PER_TOKEN * num_tokens - surplus) * s3gen.config.vocoder.hop_len


class S3GenStream:
    """Waveform of speech tokens that arrive in pieces: `push` them, then `finish`.

    All pieces together are as long, to the sample, as the waveform of all tokens at once: 960 samples a token, less the
    480 that a reference with a surplus mel frame takes from the beginning.
    """

    def __init__(
        self,
        s3gen: S3Gen,
        reference: Mapping[str, Any],
        *,
        seed: int | None = None,
        context_len: int = 50,
        fade: float = 0.02,
        steps: Steps = DEFAULT_STEPS,
        memory: str = "none",
        voice: Voice | None = None,
    ) -> None:
        """Args:
        reference: the voice, of `S3Gen.embed_ref`.
        seed: of the stream's own noise. None draws it from torch's global generator in upstream's order and shapes,
            which only a stream of one piece, `finish` alone, can.
        context_len: tokens before a piece that the flow sees again.
        fade: seconds over which a piece takes over from the one before; at most 0.1.
        steps: of the solver.
        memory: what the flow's estimator does not integrate again: "none", "prompt", or "past" too. These, and steps
            without guidance, need a seed.
        voice: lends what `remember_prompt` makes of ``reference`` with the same steps; None makes it when needed.

        Raises:
            ValueError: the voice lacks something.
        """
        require_reference(reference, s3gen.config.flow)
        self._s3gen, self._reference = s3gen, reference
        self._noise = None if seed is None else FrameNoise(s3gen, seed)
        self.lookahead_len = s3gen.config.flow.encoder.lookahead_len  # tokens that `push` holds back: they see ahead
        self._hop_len = s3gen.config.vocoder.hop_len
        self._prompt_len = prompt_len(reference)
        self._surplus = reference["prompt_feat"].shape[1] - FRAMES_PER_TOKEN * self._prompt_len
        self._fade_len = round(fade * s3gen.config.vocoder.sample_rate)
        held = FILTER_HELD_FRAMES if s3gen.config.vocoder.excitation == "pulses" else HELD_FRAMES
        self._held = max(held, -(-self._fade_len // self._hop_len))
        # The flow must see again at least what blends.
        self._context_len = max(context_len, (self._held + self._surplus + 1) // FRAMES_PER_TOKEN)
        self._tokens = torch.zeros(0, dtype=torch.long)  # from token `_first` on
        self._first = 0
        self._num_rendered = 0  # tokens whose mel is known
        self._num_spoken = 0  # frames whose waveform was handed out
        self._turns = 0.0  # of the fundamental at that frame
        self._tail: Tensor | None = None  # (1, fade) samples beyond it, as the last piece would have gone on
        # (1, num_mels, frames) from frame `_mel_start` on, up to the last known
        self._mel = torch.zeros(1, s3gen.config.flow.num_mels, 0, dtype=torch.float32)
        self._mel_start = 0
        self._steps, self._remembers, self._voice = steps, memory, voice
        self._past: FlowMemory | None = None  # frames up to `_num_spoken`
        self._source: Tensor | None = None  # (1, C, samples) from `_mel_start` up to `_num_spoken`
        if self._noise is not None:
            self._prompt_noise = self._noise.mel(FRAMES_PER_TOKEN * self._prompt_len)
            if memory != "none":
                self._prompt_noise = prompt_noise(s3gen, reference)
            self._token_noise = self._noise.mel(0)  # from token `_first` on
            self._source_noise = self._noise.source(0)  # from frame `_num_spoken` on

    @property
    def num_waiting(self) -> int:
        """Tokens that were pushed and are not rendered yet, those ahead included."""
        return self._first + len(self._tokens) - self._num_rendered

    @property
    def num_seen_again(self) -> int:
        """Tokens that the flow integrates with the next piece although they are not new: the prompt's and context's."""
        num_context = min(self._context_len, self._num_rendered - self._first)
        if self._remembers == "past":
            return min(num_context, self._held // FRAMES_PER_TOKEN)
        return num_context if self._remembers == "prompt" else self._prompt_len + num_context

    @torch.inference_mode()
    def push(self, tokens: Tensor) -> Tensor:
        """Waveform (1, N) of what can be vocoded now that ``tokens`` (n,) follow; N may be 0.

        Raises:
            RuntimeError: the stream has no seed, or S3Gen computed NaN.
        """
        if self._noise is None:
            raise RuntimeError("a stream in pieces needs a seed of its own; finish(tokens) renders all at once")
        self._take(tokens)
        if self.num_waiting <= self.lookahead_len:
            return self._nothing()
        return self._render(self._noise, is_last=False)

    @torch.inference_mode()
    def finish(self, tokens: Tensor | None = None) -> Tensor:
        """Waveform (1, N) of all that is left, with ``tokens`` (n,) as the last. More may follow, unblended."""
        is_whole = not self._first and not len(self._tokens)
        if tokens is not None:
            self._take(tokens)
        if self._noise is None or (is_whole and replacement(self._s3gen, "inference") is not None):
            return self._checked(self._whole(), "S3Gen")
        if not self.num_waiting:
            return self._nothing()
        return self._render(self._noise, is_last=True)

    def _take(self, tokens: Tensor) -> None:
        tokens = tokens.reshape(-1).long().cpu()
        self._tokens = torch.cat([self._tokens, tokens])
        if self._noise is not None:
            noise = self._noise.mel(FRAMES_PER_TOKEN * len(tokens))
            self._token_noise = torch.cat([self._token_noise, noise], dim=2)

    def _whole(self) -> Tensor:
        """Waveform (1, N) of all tokens by `S3Gen.inference`."""
        arguments: dict[str, Any] = {"speech_tokens": self._tokens.to(self._s3gen.device), "ref_dict": self._reference}
        if self._s3gen.meanflow:
            arguments["n_cfm_timesteps"] = self._s3gen.flow.decoder.num_steps(self._steps.num)
        elif self._steps.num is not None:
            arguments["n_cfm_timesteps"] = self._steps.num
        ours = {}
        if self._noise is not None:
            z = torch.cat([self._prompt_noise, self._token_noise], dim=2)
            source_noise = self._noise.source(FRAMES_PER_TOKEN * len(self._tokens) - self._surplus)
            ours = {"z": z, "phase": self._noise.phase, "noise": source_noise}
        wav, _ = call(self._s3gen.inference, arguments, ours)
        return torch.atleast_2d(wav)

    def _nothing(self) -> Tensor:
        return torch.zeros(1, 0, dtype=torch.float32, device=self._s3gen.device)

    def _render(self, noise: FrameNoise, *, is_last: bool) -> Tensor:
        start = max(self._first, self._num_rendered - self._context_len)
        self._tokens = self._tokens[start - self._first :]
        self._token_noise = self._token_noise[..., FRAMES_PER_TOKEN * (start - self._first) :]
        self._first = start
        self._num_rendered = start + len(self._tokens) - (0 if is_last else self.lookahead_len)
        end = FRAMES_PER_TOKEN * self._num_rendered - self._surplus
        spoken_end = end if is_last else max(self._num_spoken, end - self._held)
        is_ours = self._remembers != "none" or self._steps.num_unguided > 0
        resumes = is_ours and can_remember(self._s3gen)
        mel = self._resumed(is_last, spoken_end) if resumes else self._flow(is_last)
        self._blend(self._checked(mel, "S3Gen's flow"), end)
        return self._vocode(noise, spoken_end, end)

    def _flow(self, is_last: bool) -> Tensor:
        """Mel (1, num_mels, frames) of context and new tokens."""
        noise = torch.cat([self._prompt_noise, self._token_noise], dim=2)
        arguments: dict[str, Any] = {
            "speech_tokens": self._tokens.to(self._s3gen.device),
            "ref_dict": self._reference,
        }
        if self._steps.num is not None:
            arguments["n_cfm_timesteps"] = self._steps.num
        return call(self._s3gen.flow_inference, {**arguments, "finalize": is_last}, {"z": noise})

    def _resumed(self, is_last: bool, spoken_end: int) -> Tensor:
        """Mel (1, num_mels, frames) behind what is remembered; with "past" the frames up to ``spoken_end`` are too."""
        if self._voice is None and self._remembers != "none":
            own = remember_prompt(self._s3gen, self._reference, self._steps)
            self._voice = lambda: nullcontext(own)
        with nullcontext() if self._voice is None else self._voice() as voice:
            known = [memory for memory in (voice, self._past) if memory is not None]
            # Places in the sequence of prompt and tokens: of the stream's frame 0, and of the first to be integrated.
            origin = FRAMES_PER_TOKEN * (self._prompt_len - self._first) + self._surplus
            start = 0 if voice is None else voice.num_frames
            if self._past is not None:
                start = origin + self._num_spoken
            keep = origin + spoken_end - start if self._remembers == "past" else 0
            frames = FlowPass(known, keep=keep)
            mel = self._s3gen.flow.resume(
                self._tokens[None],
                _prompt_of(self._reference),
                is_last,
                frames,
                z=torch.cat([self._prompt_noise, self._token_noise], dim=2)[..., start:],
                start=start,
                steps=self._steps,
            )
        if keep and spoken_end > self._num_spoken:
            whole = frames.kept if self._past is None else self._past.followed_by(frames.kept)
            self._past = whole.last(FRAMES_PER_TOKEN * self._context_len)
        return mel

    def _blend(self, mel: Tensor, end: int) -> None:
        """Take ``mel``, whose frames end before ``end``: what the last call knew of them turns into it by and by."""
        if not self._mel.shape[2]:
            self._mel, self._mel_start = mel, end - mel.shape[2]
            return
        known_end = self._mel_start + self._mel.shape[2]
        overlap = min(known_end - self._num_spoken, known_end - (end - mel.shape[2]))
        new = mel[..., mel.shape[2] - (end - known_end) :]
        if overlap:
            first = mel.shape[2] - (end - known_end) - overlap
            rise = torch.linspace(0, 1, overlap + 2, dtype=torch.float32, device=mel.device)[1:-1]
            old, again = self._mel[..., -overlap:], mel[..., first : first + overlap]
            new = torch.cat([old + rise * (again - old), new], dim=2)
        self._mel = torch.cat([self._mel[..., : self._mel.shape[2] - overlap], new], dim=2)

    def _vocode(self, noise: FrameNoise, spoken_end: int, end: int) -> Tensor:
        """Samples (1, N) of the frames from `_num_spoken` up to ``spoken_end``; the mel is known up to ``end``."""
        vocoder, spoken, hop_len = self._s3gen.mel2wav, self._num_spoken, self._hop_len
        start = max(self._mel_start, spoken - PAST_FRAMES)
        mel = self._mel[..., start - self._mel_start :].to(vocoder.dtype)
        past_f0, f0 = vocoder.f0_predictor(mel).tensor_split([spoken - start], dim=1)  # (1, frames) each
        lacking = end - spoken - self._source_noise.shape[2] // hop_len
        self._source_noise = torch.cat([self._source_noise, noise.source(lacking)], dim=2)
        past = None if self._source is None else self._source[..., (start - self._mel_start) * hop_len :]
        if replacement(self._s3gen, "hift_inference") or replacement(vocoder, "inference"):
            given = F.pad(self._source_noise, (past_f0.shape[1] * hop_len, 0))  # what is known needs none
            ours = {"phase": noise.phase, "noise": given, "turns": self._turns - self._turns_of(past_f0)}
            wav, source = call(self._s3gen.hift_inference, {"speech_feat": mel, "cache_source": past}, ours)
        else:
            source = vocoder.source(f0, noise.phase, self._source_noise, turns=self._turns)
            source = source if past is None else torch.cat([past, source], dim=2)
            wav = vocoder.decode(mel, source)
        wav = self._checked(wav, "S3Gen's vocoder").float()
        first, last = (spoken - start) * hop_len, (spoken_end - start) * hop_len
        new = self._faded(wav[:, first:last])
        num_new = spoken_end - spoken
        if num_new:
            self._tail = wav[:, last : last + self._fade_len]
            self._turns = (self._turns + self._turns_of(f0[:, :num_new])) % 1
            self._source_noise = self._source_noise[..., num_new * hop_len :]
        self._mel, self._mel_start = mel, start
        self._source = source[..., : (spoken_end - start) * hop_len]
        self._num_spoken = spoken_end
        return new

    def _turns_of(self, f0: Tensor) -> float:
        """Of the fundamental during frames (1, frames)."""
        return float(f0.double().sum()) * self._hop_len / self._s3gen.config.vocoder.sample_rate

    def _faded(self, wav: Tensor) -> Tensor:
        """``wav`` (1, N), the next samples, taking over from how the last piece would have gone on."""
        if self._tail is not None:
            length = min(wav.shape[1], self._tail.shape[1])
            rise = torch.linspace(0, 1, length + 2, dtype=torch.float32, device=wav.device)[1:-1]
            head = self._tail[:, :length] + rise * (wav[:, :length] - self._tail[:, :length])
            wav = torch.cat([head, wav[:, length:]], dim=1)
        return self._s3gen.fade_in(wav, self._num_spoken * self._hop_len)

    @staticmethod
    def _checked(values: Tensor, stage: str) -> Tensor:
        if not bool(torch.isfinite(values).all()):
            raise RuntimeError(f"{stage} computed NaN or infinite values; check the weights and their dtype")
        return values


def can_remember(s3gen: S3Gen) -> bool:
    """Whether mels are made by this package's own functions: a program's know nothing of memories, and are called."""
    flow = s3gen.flow
    estimator = flow.decoder.estimator
    if replacement(s3gen, "flow_inference") is not None or not isinstance(estimator, ConditionalDecoder):
        return False
    return not any(map(has_functions_of_others, (flow, flow.decoder, estimator)))
