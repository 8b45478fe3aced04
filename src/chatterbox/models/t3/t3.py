"""T3: text tokens to speech tokens.

Owns: embeddings, heads and the order of the input sequence, ``[conditioning][text][speech]``. Does not know: how
tokens are decoded (`chatterbox.engine`), which cache is used, what a voice is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox.config import SamplingConfig
from chatterbox.kvcache import KVCache
from chatterbox.models.config import GPT2Config, T3Config
from chatterbox.models.linear import apply_linear
from chatterbox.models.t3.backbone import LlamaBackbone
from chatterbox.models.t3.batch_invariant import in_blocks
from chatterbox.models.t3.gpt2 import GPT2Backbone
from chatterbox.models.t3.modules.cond_enc import T3Cond, T3CondEnc
from chatterbox.models.t3.modules.learned_pos_emb import LearnedPositionEmbeddings
from chatterbox.models.t3.modules.t3_config import assignable
from chatterbox.models.t3.uncompiled import uncompiled
from chatterbox.models.weights_watch import WeightsWatch
from chatterbox.runtime import forking
from chatterbox.runtime.replaceable import replaceable
from chatterbox.runtime.torch_context import own_context
from chatterbox.upstream_names import names_of
from chatterbox.values import number_of, shown, switch

__getattr__ = names_of(__name__)

# The stop position and the doubled start token need room beyond the longest text and speech.
EXTRA_TEXT_POSITIONS = 2
EXTRA_SPEECH_POSITIONS = 4


class _Lens(NamedTuple):
    """As a model was built, whatever a program does to its ``hp`` afterwards."""

    num_text_tokens: int
    num_speech_tokens: int
    max_text_tokens: int
    cond_len: int


@dataclass(frozen=True)
class T3Output:
    """Teacher-forced outputs. Logits are (B, T, vocabulary), latents (B, T, hidden)."""

    text_logits: Tensor
    text_latents: Tensor
    speech_logits: Tensor
    speech_latents: Tensor
    hidden_states: Tensor


class T3(nn.Module):
    compiled = deepspeed_patch_applied = False  # upstream's; nothing here depends on them

    def __init__(self, hp: T3Config | None = None) -> None:
        super().__init__()
        forking.register(self)
        hp = T3Config() if hp is None else hp
        self.hp = assignable(hp)  # for programs; what it says of sizes is of a T3 that is built of it
        self.watch = WeightsWatch()
        self.sizes = backbone = hp.backbone
        self.dim = backbone.hidden_size
        self.is_gpt = isinstance(backbone, GPT2Config)
        self.tfmr = GPT2Backbone(backbone) if isinstance(backbone, GPT2Config) else LlamaBackbone(backbone)
        self.cfg = self.tfmr.config
        self.cond_enc = T3CondEnc(hp)
        self._built = _Lens(hp.text_tokens_dict_size, hp.speech_tokens_dict_size, hp.max_text_tokens, hp.cond_len)
        self.text_emb = nn.Embedding(hp.text_tokens_dict_size, self.dim)
        self.speech_emb = nn.Embedding(hp.speech_tokens_dict_size, self.dim)
        self.text_pos_emb = self.speech_pos_emb = None
        if hp.input_pos_emb == "learned":
            self.text_pos_emb = LearnedPositionEmbeddings(hp.max_text_tokens + EXTRA_TEXT_POSITIONS, self.dim)
            self.speech_pos_emb = LearnedPositionEmbeddings(hp.max_speech_tokens + EXTRA_SPEECH_POSITIONS, self.dim)
        self.text_head = nn.Linear(self.dim, hp.text_tokens_dict_size, bias=False)
        self.speech_head = nn.Linear(self.dim, hp.speech_tokens_dict_size, bias=hp.speech_head_bias)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings and hidden states, and so of a cache."""
        return next(self.parameters()).dtype

    @property
    def num_text_tokens(self) -> int:
        """Rows of the table of text tokens, as it is now: programs put larger ones in its place."""
        return _rows_of(self.text_emb, self._built.num_text_tokens)

    @property
    def num_speech_tokens(self) -> int:
        """Rows of the table of speech tokens, as it is now."""
        return _rows_of(self.speech_emb, self._built.num_speech_tokens)

    @property
    def max_speech_len(self) -> int:
        """Speech tokens of one utterance at most: what ``hp`` says, as far as there are positions."""
        wanted = self.hp.max_speech_tokens
        if self.speech_pos_emb is None:
            return wanted
        return min(wanted, _rows_of(self.speech_pos_emb.emb, wanted + EXTRA_SPEECH_POSITIONS) - EXTRA_SPEECH_POSITIONS)

    @property
    def has_emotion(self) -> bool:
        """Whether the emotion is a position of the conditioning."""
        return self.cond_enc.emotion_adv_fc is not None

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy or a pickle
        super().__setstate__(state)
        forking.register(self)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, uncompiled(value))

    def _apply(self, *args: Any, **kwargs: Any) -> T3:  # what .to(), .half() and .cuda() go through
        self.watch.forget()  # it holds the weights that are given up here
        return super()._apply(*args, **kwargs)

    def weights_changed(self) -> None:
        """Use nothing any more that was computed before this call, in any cache.

        Replaced and hooked layers, what torch counts, and changes of whole matrices are noticed without it; it is for
        changes of a few values through ``weight.data``, and of what a layer of one's own computes.
        """
        self.watch.taint()

    def cond_len_of(self, t3_cond: T3Cond) -> int:
        """Positions of the conditioning prefix of one voice."""
        return 1 + _prompt(t3_cond).shape[1] if self.cond_enc.perceiver is None else self._built.cond_len

    def prepare_conditioning(self, t3_cond: T3Cond) -> Tensor:
        """Conditioning prefix, (B, cond_len, hidden). The prompt is embedded here unless it comes embedded.

        Raises:
            ValueError: the voice is of another model.
        """
        prompt = _prompt(t3_cond)
        if t3_cond.cond_prompt_speech_emb is None:
            self._check_prompt(prompt)
            prompt = self.embed_speech(prompt.to(self.device).long())  # older voice files hold ids as floats
        return self.cond_enc(t3_cond, prompt)

    def _check_prompt(self, tokens: Tensor) -> None:
        """Raise ValueError for what the tables of speech tokens and positions do not have; on a GPU they would not."""
        low, high = (int(tokens.min()), int(tokens.max())) if tokens.numel() else (0, 0)
        if low < 0 or high >= self.num_speech_tokens:
            found = low if low < 0 else high
            raise ValueError(
                f"the voice's prompt has speech token {found}, outside the {self.num_speech_tokens} of this model; "
                "make the voice with this model"
            )
        if self.speech_pos_emb is not None and tokens.shape[-1] > (limit := _rows_of(self.speech_pos_emb.emb, 1 << 62)):
            raise ValueError(
                f"the voice's prompt has {tokens.shape[-1]} speech tokens, and this model {limit} positions; make the "
                "voice with this model"
            )

    def check_lens(self, num_before: int, num_text: int, num_speech: int) -> None:
        """Raise ValueError when the model has no positions for so much text, or for the whole."""
        limit = self._built.max_text_tokens + EXTRA_TEXT_POSITIONS
        if self.text_pos_emb is not None:
            limit = _rows_of(self.text_pos_emb.emb, limit)
        if self.text_pos_emb is not None and num_text > limit:
            raise ValueError(
                f"text of {num_text} tokens is longer than the model's {limit} positions; split it into sentences"
            )
        total, backbone = num_before + num_text + num_speech, self.sizes
        if isinstance(backbone, GPT2Config) and total > (limit := backbone.max_positions):
            raise ValueError(
                f"{num_before} positions of voice, {num_text} of text and {num_speech} of speech are more than the "
                f"model's {limit}; split the text into sentences"
            )

    def predict_speech(self, hidden: Tensor, *, batch_invariant: bool = False) -> Tensor:
        """(..., hidden) to logits (..., speech vocabulary); ``batch_invariant`` as the backbone takes it."""
        head = partial(apply_linear, self.speech_head)
        return in_blocks(head, hidden) if batch_invariant else head(hidden)

    def embed_text(self, text_tokens: Tensor) -> Tensor:
        """(B, S) ids to (B, S, hidden), learned positions added where the model has them.

        Raises:
            ValueError: more tokens than learned text positions.
        """
        self.check_lens(0, text_tokens.shape[1], 0)
        embeds = self.text_emb(text_tokens)
        return embeds if self.text_pos_emb is None else embeds + self.text_pos_emb(text_tokens)

    def embed_no_text(self, text_tokens: Tensor) -> Tensor:
        """What stands for (B, S) ids in the unconditional row, (1, S, hidden): nothing but their positions.

        They stay although the text is gone: the published weights are driven this way.
        """
        assert self.text_pos_emb is not None  # models that are guided have learned positions
        return self.text_pos_emb(text_tokens)[None]

    def embed_speech(self, speech_tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B, T) ids to (B, T, hidden), learned positions added where the model has them: 0.. or ``positions``."""
        embeds = self.speech_emb(speech_tokens)
        if self.speech_pos_emb is None:
            return embeds
        learned = self.speech_pos_emb(speech_tokens) if positions is None else self.speech_pos_emb.emb(positions)
        return embeds + learned

    def prepare_input_embeds(
        self, *, t3_cond: T3Cond, text_tokens: Tensor, speech_tokens: Tensor, cfg_weight: float = 0.0
    ) -> tuple[Tensor, int]:
        """Input sequence ``[conditioning][text][speech]``.

        Args:
            text_tokens: (B, S) ids with start and stop.
            speech_tokens: (B, T) ids.
            cfg_weight: above 0, row 1 becomes the unconditional row: text embedding zero, text positions kept.

        Returns:
            (B, cond_len + S + T, hidden) and cond_len.
        """
        cond_emb = self.prepare_conditioning(t3_cond)
        text_emb = self.embed_text(text_tokens)
        if cfg_weight > 0.0:
            if text_emb.shape[0] < 2:
                raise ValueError(f"cfg_weight {cfg_weight} needs two rows of text tokens, got {text_emb.shape[0]}")
            text_emb = torch.stack([text_emb[0], *self.embed_no_text(text_tokens), *text_emb[2:]])
        speech_emb = self.embed_speech(speech_tokens)
        cond_emb = cond_emb.expand(text_emb.shape[0], -1, -1)
        return torch.cat([cond_emb, text_emb, speech_emb], dim=1), cond_emb.shape[1]

    def forward(
        self,
        *,
        t3_cond: T3Cond,
        text_tokens: Tensor,
        text_token_lens: Tensor,
        speech_tokens: Tensor,
        speech_token_lens: Tensor,
        training: bool = False,
    ) -> T3Output:
        """Teacher-forced pass over padded (B, S) text and (B, T) speech ids; latents beyond a row's length are zero.

        ``training`` is accepted for compatibility: nothing here depends on it.
        """
        embeds, cond_len = self.prepare_input_embeds(
            t3_cond=t3_cond, text_tokens=text_tokens, speech_tokens=speech_tokens
        )
        hidden = self.tfmr(embeds)
        text_latents = _keep(hidden[:, cond_len : cond_len + text_tokens.shape[1]], text_token_lens)
        speech_latents = _keep(hidden[:, cond_len + text_tokens.shape[1] :], speech_token_lens)
        return T3Output(
            text_logits=apply_linear(self.text_head, text_latents),
            text_latents=text_latents,
            speech_logits=apply_linear(self.speech_head, speech_latents),
            speech_latents=speech_latents,
            hidden_states=hidden,
        )

    def loss(
        self,
        *,
        t3_cond: T3Cond,
        text_tokens: Tensor,
        text_token_lens: Tensor,
        speech_tokens: Tensor,
        speech_token_lens: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mean next-token cross-entropy, in nats, of the text and of the speech of a teacher-forced batch."""
        out = self.forward(
            t3_cond=t3_cond,
            text_tokens=text_tokens,
            text_token_lens=text_token_lens,
            speech_tokens=speech_tokens,
            speech_token_lens=speech_token_lens,
        )
        return (
            _next_token_loss(out.text_logits, text_tokens, text_token_lens),
            _next_token_loss(out.speech_logits, speech_tokens, speech_token_lens),
        )

    @replaceable
    @own_context()
    @torch.inference_mode()
    def inference(
        self,
        *,
        t3_cond: T3Cond,
        text_tokens: Tensor,
        initial_speech_tokens: Tensor | None = None,
        prepend_prompt_speech_tokens: Tensor | None = None,
        num_return_sequences: int = 1,
        max_new_tokens: int | None = None,
        stop_on_eos: bool = True,
        do_sample: bool = True,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.2,
        cfg_weight: float = 0.5,
        past_key_values: KVCache | None = None,
        use_cache: bool = True,
        cache_offset: int | None = None,
        return_cache: bool = False,
        seed: int | None = None,
        guard: str | None = None,
    ) -> Tensor | tuple[Tensor, KVCache]:
        """Draw speech tokens for one text. Upstream's signature, plus the cache, ``seed`` and ``guard``.

        Args:
            text_tokens: (S,) or (rows, S) ids of one text, with start and stop; further rows are ignored, guidance
                makes its own.
            max_new_tokens: at most this many tokens (default: the speech position table's length).
            stop_on_eos: stop at the stop token, which is part of the result.
            do_sample: False is greedy, like ``temperature=0``.
            past_key_values: what an earlier call returned: the text continues that sequence, and nothing of it is
                computed again. It is written to; where it is too small, a larger copy takes its place.
            use_cache: False recomputes the whole sequence at every step: slow, what all else is checked against.
            cache_offset: keep this many positions of ``past_key_values``, at least the conditioning prefix
                (``hp.cond_len``); None keeps all.
            return_cache: return the cache too.
            seed: draw from a generator of this call's own; None and -1 draw from torch's global one, as upstream.
            guard: ends an utterance that goes wrong: "light", "alignment", or None, upstream's plain loop
                (docs/guards.md).

        Returns:
            (1, N) ids; with ``return_cache`` also the cache, which holds all but the last of them.

        Raises:
            ValueError: a setting out of range, text without start or stop token, or longer than the position tables, or
                a guard that does not exist or has no alignment heads to read.
        """
        # On the model because callers know it there; the loop itself is one layer up.
        from chatterbox.engine.decode import decode
        from chatterbox.engine.request import Request

        for name, value, supported in (
            ("prepend_prompt_speech_tokens", prepend_prompt_speech_tokens, None),
            ("initial_speech_tokens", initial_speech_tokens, None),
            ("num_return_sequences", num_return_sequences, 1),
            ("length_penalty", length_penalty, 1.0),
        ):
            if value is not None if supported is None else number_of(value) != supported:
                raise ValueError(f"{name} must be {supported}, got {shown(value)}; no published model uses it")
        do_sample, use_cache = switch("do_sample", do_sample), switch("use_cache", use_cache)
        return_cache = switch("return_cache", return_cache)
        if return_cache and not use_cache:
            raise ValueError("return_cache needs use_cache=True; without a cache there is none to return")
        request = Request(
            t3_cond=t3_cond,
            text_tokens=text_tokens,
            sampling=SamplingConfig(
                temperature=temperature if do_sample else 0.0,
                cfg_weight=cfg_weight,
                repetition_penalty=repetition_penalty,
                min_p=min_p,
                top_p=top_p,
            ),
            max_new_tokens=max_new_tokens,
            stop_on_eos=stop_on_eos,
            seed=seed,
            guard=guard,
        )
        tokens, cache = decode(self, request, use_cache=use_cache, past=past_key_values, kept_len=cache_offset)
        if not return_cache:
            return tokens[None]
        assert cache is not None  # as use_cache is True
        return tokens[None], cache

    @replaceable
    @own_context()
    @torch.inference_mode()
    def inference_turbo(
        self,
        t3_cond: T3Cond,
        text_tokens: Tensor,
        temperature: float = 0.8,
        top_k: int = 1000,
        top_p: float = 0.95,
        repetition_penalty: float = 1.2,
        max_gen_len: int = 1000,
        *,
        use_cache: bool = True,
        seed: int | None = None,
    ) -> Tensor:
        """Draw speech tokens for one text with Turbo's or Nano's weights. Upstream's signature, and ``seed``.

        Args:
            text_tokens: (S,) or (1, S) ids of one text, without marks.
            max_gen_len: at most this many tokens (upstream decodes one more).
            use_cache: as `inference`; so is ``seed``.

        Returns:
            (1, N) ids, without the stop token.

        Raises:
            ValueError: a setting out of range, or text or speech longer than the backbone's positions.
        """
        from chatterbox.engine.decode import generate
        from chatterbox.engine.request import Request

        sampling = SamplingConfig(
            temperature=temperature,
            cfg_weight=0.0,
            repetition_penalty=repetition_penalty,
            min_p=0.0,
            top_p=top_p,
            top_k=top_k,
        )
        request = Request(t3_cond, text_tokens, sampling, max_gen_len, seed=seed)
        tokens = generate(self, request, use_cache=switch("use_cache", use_cache))
        return tokens[tokens != self.hp.stop_speech_token][None]


def _rows_of(table: nn.Module, built: int) -> int:
    """Of a table of embeddings, or of what a program has put in its place; ``built`` where that does not say."""
    weight = getattr(table, "weight", None)
    return weight.shape[0] if isinstance(weight, Tensor) else built


def _prompt(t3_cond: T3Cond) -> Tensor:
    """The speech prompt: embedded, (B, T, hidden), where that is given, else its speech tokens (B, T)."""
    tokens, embeds = t3_cond.cond_prompt_speech_tokens, t3_cond.cond_prompt_speech_emb
    prompt = tokens if embeds is None else embeds
    if prompt is None:
        raise ValueError("T3Cond needs cond_prompt_speech_tokens or cond_prompt_speech_emb; both are None")
    return prompt


def _keep(latents: Tensor, lens: Tensor) -> Tensor:
    """Zero the positions of (B, T, hidden) that lie beyond each row's length."""
    inside = torch.arange(latents.shape[1], device=latents.device) < lens[:, None].to(latents.device)
    return latents * inside[..., None].to(latents.dtype)


def _next_token_loss(logits: Tensor, tokens: Tensor, lens: Tensor) -> Tensor:
    targets = tokens[:, 1:].to(logits.device)
    outside = torch.arange(1, tokens.shape[1], device=logits.device) >= lens[:, None].to(logits.device)
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets.masked_fill(outside, -100).flatten(), ignore_index=-100
    )
