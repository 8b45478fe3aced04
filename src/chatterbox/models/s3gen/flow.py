"""Speech tokens to mel spectrogram in the voice of a prompt.

Owns: token embedding, speaker projection, the encoder's projection, and how prompt and new tokens share one sequence.
Does not know: waveforms, T3, chunks of a stream.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox.models.config import FlowConfig
from chatterbox.models.linear import apply_linear
from chatterbox.models.s3gen.cfm import DEFAULT_STEPS, CausalConditionalCFM, Steps
from chatterbox.models.s3gen.encoder import UpsampleConformerEncoder, length_mask
from chatterbox.models.s3gen.memory import FlowMemory, FlowPass
from chatterbox.runtime.replaceable import replaceable

FRAMES_PER_TOKEN = 2


class Prompt(NamedTuple):
    """A voice's recording, of `S3Gen.embed_ref`, as :meth:`CausalMaskedDiffWithXvec.forward` has it."""

    token: Tensor
    token_len: Tensor | None
    feat: Tensor
    embedding: Tensor


class CausalMaskedDiffWithXvec(nn.Module):
    """The flow. For training: :meth:`encode`, :meth:`embed_speaker` and ``decoder.estimator``, all differentiable."""

    def __init__(self, config: FlowConfig = FlowConfig(), meanflow: bool = False) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.encoder.hidden_size)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_embed_size, config.num_mels)
        self.encoder = UpsampleConformerEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.hidden_size, config.num_mels)
        self.decoder = CausalConditionalCFM(config, meanflow)

    @property
    def dtype(self) -> torch.dtype:
        return self.input_embedding.weight.dtype

    def embed_speaker(self, embedding: Tensor) -> Tensor:
        """x-vectors (B, speaker_embed_size) of any length to the estimator's ``spks`` (B, num_mels)."""
        return apply_linear(self.spk_embed_affine_layer, F.normalize(embedding.float(), dim=1).to(self.dtype))

    def encode(
        self, token: Tensor, token_len: Tensor | None = None, *, isolate_padding: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Mean mel of the tokens and the mask of its valid frames.

        Args:
            token: (B, T) ids; what stands at padding does not matter.
            token_len: (B,) valid tokens per row; None when nothing is padded.
            isolate_padding: encode each row as if it were alone; False lets padding change a shorter row's end, as
                upstream does.

        Returns:
            ``mu`` (B, num_mels, 2T) and ``mask`` (B, 1, 2T), None if ``token_len`` is None.
        """
        if token_len is None:
            embedded, mask = self.input_embedding(token), None
        else:
            valid = length_mask(token_len, token.shape[1])
            embedded = self.input_embedding(token.masked_fill(~valid, 0)) * valid[..., None].to(self.dtype)
            mask = valid.repeat_interleave(FRAMES_PER_TOKEN, dim=1)[:, None].to(self.dtype)
        hidden = self.encoder(embedded, token_len, isolate_padding=isolate_padding)
        return apply_linear(self.encoder_proj, hidden).transpose(1, 2).contiguous(), mask

    def forward(
        self,
        token: Tensor,
        token_len: Tensor | None,
        prompt_token: Tensor,
        prompt_token_len: Tensor | None,
        prompt_feat: Tensor,
        embedding: Tensor,
        finalize: bool,
        n_timesteps: int | None = None,
        noised_mels: Tensor | None = None,
        *,
        z: Tensor | None = None,
        generator: torch.Generator | None = None,
        isolate_padding: bool = True,
    ) -> Tensor:
        """Mel (B, num_mels, T) of the new tokens.

        T is two frames a token, less those by which ``prompt_feat`` exceeds its tokens, less the lookahead if the
        tokens go on (``finalize`` False).

        Args:
            token: (B, n) ids of the new tokens.
            token_len: (B,) valid ones per row; None when nothing is padded.
            prompt_token: (B or 1, p) ids of the reference.
            prompt_token_len: (B or 1,), the same for all rows; None is p.
            prompt_feat: (B or 1, frames, num_mels), mel of the reference.
            embedding: (B or 1, speaker_embed_size) or (speaker_embed_size,), x-vector of the reference.
            finalize: False holds back the last ``lookahead_len`` tokens, whose future is not known yet.
            n_timesteps: see `CausalConditionalCFM`, as for ``noised_mels``, ``z`` and ``generator``; noise covers the
                prompt too.
            isolate_padding: see :meth:`encode`.

        Raises:
            ValueError: no token, an id outside the vocabulary, too few tokens to hold back, or shapes that do not fit.
        """
        device, batch = self.input_embedding.weight.device, token.shape[0]
        sequence, lengths = self._sequence(token, token_len, prompt_token, prompt_token_len)
        mu, mask = self.encode(
            sequence.to(device), None if lengths is None else lengths.to(device), isolate_padding=isolate_padding
        )
        if not finalize:
            held_back = FRAMES_PER_TOKEN * self.config.encoder.lookahead_len
            mu = mu[..., :-held_back]
            mask = None if mask is None else mask[..., held_back:]
            noised_mels = None if noised_mels is None else noised_mels[..., :-held_back]
        prompt_frames, num_frames = prompt_feat.shape[1], mu.shape[2]
        if prompt_frames >= num_frames:
            raise ValueError(
                f"{token.shape[1]} tokens leave no frame behind a prompt of {prompt_frames} frames "
                f"with finalize={finalize}; pass more tokens"
            )
        known = prompt_feat.to(mu).transpose(1, 2).expand(batch, -1, -1)
        cond = F.pad(known, (0, num_frames - prompt_frames))
        spks = self.embed_speaker(torch.atleast_2d(embedding).to(device)).expand(batch, -1)
        mel = self.decoder(mu, mask, spks, cond, n_timesteps, noised_mels, z=z, generator=generator)
        return mel[..., prompt_frames:]

    @replaceable
    @torch.inference_mode()
    def inference(
        self,
        token: Tensor,
        token_len: Tensor | None,
        prompt_token: Tensor,
        prompt_token_len: Tensor | None,
        prompt_feat: Tensor,
        prompt_feat_len: Tensor | None,
        embedding: Tensor,
        finalize: bool,
        n_timesteps: int | None = None,
        noised_mels: Tensor | None = None,
        meanflow: bool | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """:meth:`forward` without autograd, in upstream's argument order and with its second, empty result.

        ``prompt_feat_len`` is not used, as in upstream. ``meanflow`` may name the model's kind; it cannot change it.
        """
        if meanflow is not None and meanflow != self.decoder.meanflow:
            raise ValueError(f"meanflow={meanflow} does not fit these weights; build S3Gen(meanflow={meanflow})")
        mel = self.forward(
            token,
            token_len,
            prompt_token,
            prompt_token_len,
            prompt_feat,
            embedding,
            finalize,
            n_timesteps,
            noised_mels,
            **options,
        )
        return mel, None

    @torch.inference_mode()
    def remember(self, prompt: Prompt, *, z: Tensor, steps: Steps = DEFAULT_STEPS) -> FlowMemory:
        """What the estimator knows of a voice's prompt when nothing follows it: of the frames of its tokens.

        Args: see :meth:`forward`; ``z`` (1, num_mels, 2p or more) noise of the prompt's frames.
        """
        tokens, _ = self._sequence(prompt.token, prompt.token_len, prompt.token[:, :0], None)
        mu, _ = self.encode(tokens.to(self.input_embedding.weight.device))
        num_frames = min(mu.shape[2], prompt.feat.shape[1])
        frames = FlowPass(keep=num_frames)
        self._solve(mu[..., :num_frames], prompt, 0, frames, steps, z)
        return frames.kept

    @torch.inference_mode()
    def resume(
        self,
        token: Tensor,
        prompt: Prompt,
        finalize: bool,
        frames: FlowPass,
        *,
        z: Tensor,
        start: int,
        steps: Steps = DEFAULT_STEPS,
    ) -> Tensor:
        """Mel (1, num_mels, T) of :meth:`forward` from a frame on, after frames that are remembered.

        The encoder sees prompt and tokens; the estimator the frames from ``start`` on, and what ``frames`` knows. The
        prompt's own frames are left out of the mel.

        Args: see :meth:`forward`, and
            frames: of memories that :meth:`remember` and this made with as many steps.
            z: (1, num_mels, T or more), noise from ``start`` on.
            start: frame of prompt and tokens, two a token, from which on the mel is wanted.
        """
        sequence, _ = self._sequence(token, None, prompt.token, prompt.token_len)
        mu, _ = self.encode(sequence.to(self.input_embedding.weight.device))
        if not finalize:
            mu = mu[..., : -FRAMES_PER_TOKEN * self.config.encoder.lookahead_len]
        mel = self._solve(mu[..., start:], prompt, start, frames, steps, z)
        return mel[..., max(0, prompt.feat.shape[1] - start) :]

    def _solve(self, mu: Tensor, prompt: Prompt, start: int, frames: FlowPass, steps: Steps, z: Tensor) -> Tensor:
        """Mel (1, num_mels, T) of ``mu``, the frames from ``start`` on; of some of them the prompt knows it."""
        known = prompt.feat[:, start : start + mu.shape[2]].to(mu).transpose(1, 2)
        cond = F.pad(known, (0, mu.shape[2] - known.shape[2]))
        spks = self.embed_speaker(torch.atleast_2d(prompt.embedding).to(mu.device))
        return self.decoder(mu, None, spks, cond, steps.num, z=z, frames=frames, num_unguided=steps.num_unguided)

    def _sequence(
        self, token: Tensor, token_len: Tensor | None, prompt_token: Tensor, prompt_token_len: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Prompt and new ids (B, p + n) as integers on the CPU, and their lengths (B,), None when nothing is padded."""
        # Older voice files hold ids as floats.
        token, prompt_token = token.long().cpu(), torch.atleast_2d(prompt_token).long().cpu()
        if prompt_token_len is not None:
            prompt_lens = torch.atleast_1d(prompt_token_len).tolist()
            if len(set(prompt_lens)) > 1:
                raise ValueError(f"prompts of one call must be equally long, got {prompt_lens}; make one call each")
            prompt_token = prompt_token[:, : int(prompt_lens[0])]
        if token.dim() != 2 or not token.numel():
            raise ValueError(f"speech tokens must be (B, n) with n of at least 1, got shape {tuple(token.shape)}")
        batch, num_new = token.shape
        lengths = torch.atleast_1d(torch.tensor(num_new) if token_len is None else token_len).long().cpu().expand(batch)
        if lengths.min() < 1 or lengths.max() > num_new:
            raise ValueError(f"speech token lengths must lie in 1..{num_new}, got {lengths.tolist()}")
        sequence = torch.cat([prompt_token.expand(batch, -1), token], dim=1)
        lengths = lengths + prompt_token.shape[1]
        self._check_ids(sequence[length_mask(lengths, sequence.shape[1])])
        return sequence, None if bool((lengths == sequence.shape[1]).all()) else lengths

    def _check_ids(self, ids: Tensor) -> None:
        wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if wrong.numel():
            raise ValueError(
                f"speech token {int(wrong[0])} is outside the vocabulary of {self.config.vocab_size} speech tokens; "
                "drop start, stop and other special tokens first"
            )
