"""Stage `t3`: text to speech tokens, teacher-forced.

Owns: layouts of the training sequence, corruption, guidance dropout, the attention guide. Does not know: audio.

Layouts: one sentence; `history` (two or three sentences as one longer text and one longer speech); `append` (each
further text and its start tokens follow the speech before it). In all of them the stop token is learnt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.models.config import T3Config
from chatterbox.models.t3 import T3
from chatterbox.models.t3.backbone import Layer, LlamaBackbone, RotaryPass, rotate
from chatterbox.models.t3.modules.cond_enc import T3Cond
from tools.tiny_voice.loop import Schedule, Stage
from tools.tiny_voice.recordings import SpeakerBank, Utterances
from tools.tiny_voice.speech_tokens import SILENCE, SYMBOL_NAMES, to_symbols
from tools.tiny_voice.tables import factorize

NEUTRAL_EMOTION = 0.5
GUIDED_LAYERS = (1, 3)
EVEN_EMOTION = 2.0  # says so, beside the prompt: as lively as nobody asks for
LAYOUTS = ("single", "history", "append")
IGNORE = -100


@dataclass(frozen=True)
class T3Recipe:
    positions_per_batch: int = 1500
    max_batch: int = 16
    unconditional_share: float = 0.12  # text embedding zeroed, as guidance does at inference
    emotional_share: float = 0.5
    emotional_rhythm: float = 0.35  # so that what was heard does not tell the tempo, and emotion must
    even_share: float = 0.6  # batches whose phones last one token each: more words for the work, all of it spelling
    max_even_batch: int = 32
    corrupted_share: float = 0.06
    joined_share: float = 0.25  # batches of several sentences, half `history`, half `append`
    single_only_steps: int = 1500
    guide_weight: float = 0.5
    guide_steps: int = 6000
    guide_width: float = 3.0  # characters
    settled_from: int = 12_000  # steps after which speech keeps its own rhythm, and is mostly whole sentences

    def at(self, step: int) -> T3Recipe:
        """Of a step: with durations drawn anew to the end, a neutral text is said in an uneven rhythm, too."""
        if step < self.settled_from:
            return self
        return replace(self, emotional_rhythm=0.08, emotional_share=0.4, even_share=0.25)


def stretch_of(emotion: float) -> float:
    """Duration factor of an exaggeration: livelier is faster."""
    return 1.0 - 0.45 * (emotion - NEUTRAL_EMOTION)


def spread_of(emotion: float) -> float:
    """Factor on the pitch range of an exaggeration."""
    return emotion / NEUTRAL_EMOTION


@dataclass
class Sequence:
    """One training sequence without the conditioning prefix. All arrays have one entry per position."""

    ids: list[int]
    positions: list[int]
    is_text: list[bool]
    targets: list[int]
    guide: list[float]  # index in the sequence of the character being spoken; NaN where unknown

    def __len__(self) -> int:
        return len(self.ids)


def add_segment(
    sequence: Sequence, hp: T3Config, text: list[int], speech_tokens: np.ndarray, heard: np.ndarray
) -> None:
    """Append ``[start text stop][BOS BOS][speech]``: targets are speech and stop tokens, inputs are ``heard``."""
    text_start = len(sequence)
    tokens = [hp.start_text_token, *text, hp.stop_text_token]
    sequence.ids += tokens
    sequence.positions += range(len(tokens))
    sequence.is_text += [True] * len(tokens)
    sequence.targets += [IGNORE] * len(tokens)
    sequence.guide += [np.nan] * len(tokens)
    sequence.ids += [hp.start_speech_token] * 2 + heard.tolist()
    sequence.positions += [0, *range(len(speech_tokens) + 1)]
    sequence.is_text += [False] * (len(speech_tokens) + 2)
    sequence.targets += [IGNORE, *speech_tokens.tolist(), hp.stop_speech_token]
    sequence.guide += [np.nan, *(text_start + 1 + spoken_character(speech_tokens, len(text))), np.nan]


def spoken_character(speech_tokens: np.ndarray, num_characters: int) -> np.ndarray:
    """Rough index of the character each speech token speaks: phones spread evenly over the text, NaN in pauses."""
    symbols = to_symbols(speech_tokens)[::2]
    silent = np.array([SYMBOL_NAMES.get(s, SILENCE) == SILENCE for s in symbols])
    changes = np.cumsum(np.diff(symbols, prepend=symbols[0]) != 0)
    share = changes / max(1, changes[-1])
    return np.where(silent, np.nan, share * (num_characters - 1))


class TextToSpeechBatch(NamedTuple):
    """Sequences without the conditioning prefix, padded at the end."""

    ids: Tensor  # (B, T)
    positions: Tensor  # (B, T)
    is_text: Tensor  # (B, T)
    targets: Tensor  # (B, T), IGNORE where nothing is to be learnt
    guide: Tensor  # (B, T), see Sequence
    dropped: Tensor  # (B,), rows without text
    speakers: Tensor  # (B, speaker_embed_size)
    prompts: Tensor  # (B, speech_cond_prompt_len)
    emotions: Tensor  # (B,)
    guide_weight: float


class TextToSpeechStage(Stage[TextToSpeechBatch]):
    name = "t3"
    module: T3

    def __init__(
        self,
        config: T3Config,
        utterances: Utterances,
        held_out: Utterances,
        speakers: SpeakerBank,
        schedule: Schedule,
        recipe: T3Recipe = T3Recipe(),
    ) -> None:
        self.utterances, self.held_out_utterances, self.speakers = utterances, held_out, speakers
        self.schedule, self.recipe = schedule, recipe
        self.module = T3(config)
        initialize(self.module)

    def draw(self, rng: np.random.Generator, step: int) -> TextToSpeechBatch:
        recipe = self.recipe.at(step)
        joined = step >= recipe.single_only_steps and rng.random() < recipe.joined_share
        layout = ("history" if rng.random() < 0.5 else "append") if joined else "single"
        guide_left = max(0.0, 1.0 - step / recipe.guide_steps)
        even = layout == "single" and rng.random() < recipe.even_share
        guide_weight = recipe.guide_weight * guide_left
        return self._draw(self.utterances, rng, layout, recipe=recipe, guide_weight=guide_weight, even=even)

    def held_out(self) -> Iterator[tuple[str, TextToSpeechBatch]]:
        for layout in LAYOUTS:
            rng = np.random.default_rng(1)
            for _ in range(4):
                yield f"{layout}_", self._draw(self.held_out_utterances, rng, layout, plain=True)
        rng = np.random.default_rng(1)
        for _ in range(4):
            yield "even_", self._draw(self.held_out_utterances, rng, "single", plain=True, even=True)

    def loss(self, batch: TextToSpeechBatch) -> tuple[Tensor, dict[str, float]]:
        x, offset = self._embed(batch)
        hidden, guide_loss = self._run(x, offset, batch)
        wanted = batch.targets != IGNORE
        logits = self.module.speech_head(hidden[:, offset:][wanted])
        cross_entropy = F.cross_entropy(logits, batch.targets[wanted])
        accuracy = (logits.argmax(-1) == batch.targets[wanted]).float().mean()
        figures = {"cross_entropy": float(cross_entropy.detach()), "accuracy": float(accuracy)}
        if batch.guide_weight > 0.0:
            figures["guide"] = float(guide_loss.detach())
        return cross_entropy + batch.guide_weight * guide_loss, figures

    def _draw(
        self,
        source: Utterances,
        rng: np.random.Generator,
        layout: str,
        *,
        recipe: T3Recipe | None = None,
        guide_weight: float = 0.0,
        plain: bool = False,
        even: bool = False,
    ) -> TextToSpeechBatch:
        """A batch of one layout; ``plain`` leaves out emotion, corruption and guidance dropout.

        ``even``: all phones are one token long.
        """
        recipe, parts = recipe or self.recipe, 1 if layout == "single" else int(rng.integers(2, 4))
        anchor = int(rng.integers(len(source)))
        length = source.approximate_len(anchor, even=even) * parts
        most = recipe.max_even_batch if even else recipe.max_batch
        size = int(np.clip(recipe.positions_per_batch // length, 2, most))
        sequences, voices, emotions = [], [], []
        for index in source.near(anchor, size, rng):
            voice = source.voice(index)
            emotion = EVEN_EMOTION if even else NEUTRAL_EMOTION
            changes: dict[str, Any] = {"even": even}
            if not (plain or even) and rng.random() < recipe.emotional_share:
                emotion = float(rng.uniform(0.25, 1.25))
                changes = {
                    "stretch": stretch_of(emotion),
                    "spread": spread_of(emotion),
                    "rhythm": recipe.emotional_rhythm,
                    "rng": rng,
                }
            chosen = [index, *source.same_voice(voice, parts - 1, rng)]
            texts = [source.text_ids(i) for i in chosen]
            speech_tokens = [source.speech_tokens(i, **changes) for i in chosen]
            if layout == "history":
                texts, speech_tokens = [source.join_texts(texts)], [np.concatenate(speech_tokens)]
            sequence = Sequence([], [], [], [], [])
            for text, spoken in zip(texts, speech_tokens, strict=True):
                heard = spoken.copy()
                wrong = rng.random(len(heard)) < (0.0 if plain else recipe.corrupted_share)
                heard[wrong] = rng.choice(spoken, size=int(wrong.sum()))
                add_segment(sequence, self.module.hp, text, spoken, heard)
            sequences.append(sequence)
            voices.append(voice)
            emotions.append(emotion)
        prompt_len = self.module.hp.speech_cond_prompt_len
        prompts = [source.prompt(voice, prompt_len, rng, even=even) for voice in voices]
        embeddings = torch.stack([self.speakers.draw(voice, rng) for voice in voices])
        dropped = torch.from_numpy(rng.random(len(sequences)) < (0.0 if plain else recipe.unconditional_share))
        longest = max(len(s) for s in sequences)

        def padded(rows: list[list[Any]], fill: float) -> Tensor:
            return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

        guide = padded([s.guide for s in sequences], np.nan).float()
        guide[dropped] = np.nan
        return TextToSpeechBatch(
            padded([s.ids for s in sequences], 0),
            padded([s.positions for s in sequences], 0),
            padded([s.is_text for s in sequences], False),
            padded([s.targets for s in sequences], IGNORE),
            guide,
            dropped,
            embeddings,
            torch.from_numpy(np.stack(prompts)),
            torch.tensor(emotions, dtype=torch.float32),
            guide_weight,
        )

    def _embed(self, batch: TextToSpeechBatch) -> tuple[Tensor, int]:
        """Inputs (B, prefix + T, dim) of the backbone and the length of the conditioning prefix."""
        t3, is_text = self.module, batch.is_text[..., None]
        assert t3.text_pos_emb is not None and t3.speech_pos_emb is not None
        text = t3.text_emb(batch.ids.where(batch.is_text, 0)) * (~batch.dropped)[:, None, None] + t3.text_pos_emb.emb(
            batch.positions.clamp(max=t3.text_pos_emb.emb.num_embeddings - 1)
        )
        speech = t3.speech_emb(batch.ids.where(~batch.is_text, 0)) + t3.speech_pos_emb.emb(batch.positions)
        cond = t3.prepare_conditioning(
            T3Cond(
                speaker_emb=batch.speakers,
                cond_prompt_speech_tokens=batch.prompts,
                emotion_adv=batch.emotions.view(-1, 1, 1),
            )
        )
        return torch.cat([cond, torch.where(is_text, text, speech)], dim=1), cond.shape[1]

    def _run(self, x: Tensor, offset: int, batch: TextToSpeechBatch) -> tuple[Tensor, Tensor]:
        """The backbone's forward with the attention guide on one head of two layers."""
        backbone = self.module.tfmr
        assert isinstance(backbone, LlamaBackbone)
        run = backbone.start(torch.arange(x.shape[1], device=x.device))
        guide_loss = x.new_zeros(())
        for index, layer in enumerate(backbone.layers):
            assert isinstance(layer, Layer)
            if batch.guide_weight > 0.0 and index in GUIDED_LAYERS:
                guide_loss = guide_loss + self._guide_loss(layer, x, run, batch.guide, offset)
            x = layer(x, run, index)
        return backbone.norm(x), guide_loss

    def _guide_loss(self, layer: Layer, x: Tensor, run: RotaryPass, guide: Tensor, offset: int) -> Tensor:
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        size = attention.head_dim
        query = rotate((normed @ attention.q_proj.weight[:size].T)[:, None], run.cos, run.sin)[:, 0]
        key = rotate((normed @ attention.k_proj.weight[:size].T)[:, None], run.cos, run.sin)[:, 0]
        scores = query @ key.transpose(1, 2) / size**0.5  # (B, T, T)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)[:, offset:, offset:]
        distance = torch.arange(weights.shape[1], device=x.device) - guide[..., None]  # (B, T, T)
        far = 1.0 - torch.exp(-0.5 * (distance / self.recipe.guide_width) ** 2)
        known = ~guide.isnan()
        # What goes to the conditioning prefix counts as far too.
        miss = (weights * far.nan_to_num(0.0)).sum(-1) + 1.0 - weights.sum(-1)
        return (miss * known).sum() / known.sum().clamp_min(1)


def initialize(t3: T3) -> None:
    """Small embeddings, residual branches that start near zero, and speech token tables by symbol."""
    width = t3.dim
    for name, parameter in t3.named_parameters():
        if parameter.ndim >= 2 and "pre_attention_query" not in name:
            torch.nn.init.normal_(parameter, std=0.02 if "emb" in name else width**-0.5)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.mul_((2 * t3.hp.backbone.num_layers) ** -0.5)
    torch.nn.init.normal_(t3.text_emb.weight, std=0.3)
    factorize(t3.speech_emb, std=0.2)
    factorize(t3.speech_head, std=0.04)
