"""Is streamed speech the speech that is made at once, and does it hold together? Sections of `streaming.py`.

Owns: the equivalence of tokens and audio, the seams of chunks, the three continuities. Does not know: times, memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from benchmarks.lib.measures import Utterance, interval, log_mel_distance
from benchmarks.streaming.texts import paragraphs, single_texts
from chatterbox import ChatterboxTTS, verify_prosody_continuity
from chatterbox.config import StreamingConfig
from chatterbox.evaluation.prosody import levels, loud_level, pitch
from chatterbox.evaluation.recognition import edit_distance, recognize, words_of
from chatterbox.synthesis.render import SpeechRenderer
from chatterbox.synthesis.request import SynthesisRequest, utterance_seed
from chatterbox.synthesis.synthesizer import render_speech_tokens
from chatterbox.synthesis.utterances import TokenChunk

Row = dict[str, Any]
SEED = 1
CHUNK_SIZES, CONTEXTS = (10, 25, 50), (0, 25, 50, 100)
SAMPLES_PER_TOKEN = 960
F0_LIMITS = (60.0, 500.0)  # Hz
EDGE_SECONDS = 0.6  # of a sentence, at its end and at the next one's beginning
ODD_RATIO, ODD_ERRORS = 1.5, 0.75  # of the isolated reading's seconds; of the words


def equivalence(tts: ChatterboxTTS, num_texts: int) -> list[Row]:
    """Through the façade's own path: as many texts as asked, and all paragraphs, streamed and at once."""
    rows: list[Row] = []
    for name, texts in (
        ("one utterance", single_texts(num_texts)),
        ("several", paragraphs()[: max(1, num_texts // 4)]),
    ):
        same = lengths = pieces = speech_tokens = 0
        for text in texts:
            request = SynthesisRequest(text, tts.conds, tts.sampling, seed=SEED, watermark=False)
            whole = tts.synthesizer.speak(request)
            chunks = list(tts.synthesizer.stream(request))
            decoded = [token for chunk in chunks for token in chunk.speech_tokens]
            same += decoded == whole.speech_tokens.tolist()
            lengths += sum(chunk.audio.shape[1] for chunk in chunks) == whole.audio.shape[1]
            pieces += len(chunks)
            speech_tokens += len(decoded)
        rows.append(
            {
                "table": "tokens",
                "texts": f"{len(texts)} of {name}",
                "chunks": pieces,
                "speech_tokens": speech_tokens,
                "same_tokens": f"{same} of {len(texts)}",
                "same_length_to_the_sample": f"{lengths} of {len(texts)}",
            }
        )
    return rows


def audio_equivalence(tts: ChatterboxTTS, num_texts: int) -> list[Row]:
    """Streamed against whole audio of the same speech tokens and noise, and whole against whole of another noise."""
    speech_tokens = [_speech_tokens(tts, text) for text in single_texts(num_texts)]
    whole, other = (
        [
            render_speech_tokens(tts.s3gen, one, tts.conds.gen, seed=seed, watermarker=None)[0].numpy()
            for one in speech_tokens
        ]
        for seed in (SEED, SEED + 1)
    )
    heard = [Utterance.of(wav, tts.sr) for wav in whole]
    floor = [_distance(a, Utterance.of(b, tts.sr)) for a, b in zip(heard, other, strict=True)]
    rows = [{"table": "audio", "chunk_size": "whole", "context_window": "other noise", **_spread(floor)}]
    for size in CHUNK_SIZES:
        for context in CONTEXTS:
            config = StreamingConfig(chunk_size=size, context_window=context)
            pieces = [_rendered(tts, one, config) for one in speech_tokens]
            joined = [np.concatenate(one) for one in pieces]
            if [len(wav) for wav in joined] != [len(wav) for wav in whole]:
                raise RuntimeError(f"streamed audio of chunk_size {size} is not as long as the whole")
            far = [_distance(a, Utterance.of(b, tts.sr)) for a, b in zip(heard, joined, strict=True)]
            row = {"table": "audio", "chunk_size": size, "context_window": context, **_spread(far)}
            rows.append(row | _clicks(pieces, whole, tts.sr))
    return rows


def _speech_tokens(tts: ChatterboxTTS, text: str) -> torch.Tensor:
    request = SynthesisRequest(text, tts.conds, tts.sampling, seed=SEED, watermark=False)
    return torch.tensor([token for chunk in tts.synthesizer.decode(request) for token in chunk.tokens])


def _rendered(tts: ChatterboxTTS, speech_tokens: torch.Tensor, config: StreamingConfig) -> list[np.ndarray]:
    """Chunks, of speech tokens that come one by one."""
    renderer = SpeechRenderer(tts.s3gen, tts.conds.gen, config, None)
    renderer.begin(SEED)
    pieces = [piece for token in speech_tokens.tolist() if (piece := renderer.push([token])) is not None]
    return [piece[0].numpy() for piece in (*pieces, renderer.close()) if piece.shape[1]]


def _distance(one: Utterance, other: Utterance) -> float:
    """Log-mel distance in dB of two of the same length, frame by frame."""
    return log_mel_distance(one, other, np.repeat(np.arange(len(one.log_mel))[:, None], 2, axis=1))


def _spread(distances: Sequence[float]) -> Row:
    return {"log_mel_db": round(float(np.median(distances)), 3), "log_mel_db_most": round(max(distances), 3)}


def _clicks(pieces: Sequence[Sequence[np.ndarray]], whole: Sequence[np.ndarray], rate: int) -> Row:
    """The click measure at the seams of all texts' chunks and inside them; and where whole audio has no seams."""
    cuts = [np.cumsum([len(piece) for piece in one])[:-1] for one in pieces]
    streamed = verify_prosody_continuity(_without_text_ends(pieces), rate).click
    same = verify_prosody_continuity(
        _without_text_ends([np.split(wav, cut) for wav, cut in zip(whole, cuts, strict=True)]), rate
    ).click
    return {
        "seams": streamed.seams.count,
        "click_p95_seams": round(streamed.seams.p95, 3),
        "click_p95_inside": round(streamed.inside.p95, 3),
        "click_p95_same_places_of_whole": round(same.seams.p95, 3),
        "seams_above": streamed.above,
        "seams_above_of_whole": same.above,
    }


def _without_text_ends(texts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Pieces of all texts, the last of one and the first of the next in one, for there is no seam that matters."""
    joined: list[np.ndarray] = []
    for pieces in texts:
        first, *rest = pieces
        joined[-1:] = [np.concatenate([*joined[-1:], first])]
        joined += rest
    return joined


@dataclass(frozen=True)
class Reading:
    """A paragraph as it was spoken. sentences: audio (N,) of each; cut: those that the token limit ended."""

    texts: list[str]
    sentences: list[np.ndarray]
    cut: int

    @property
    def wav(self) -> np.ndarray:
        return np.concatenate(self.sentences)

    def errors(self, rate: int) -> int:
        """Words that an independent recogniser gets wrong, sentence by sentence."""
        pairs = zip(self.texts, self.sentences, strict=True)
        return sum(edit_distance(words_of(text), recognize(wav, rate)) for text, wav in pairs)


def continuity(tts: ChatterboxTTS, num_paragraphs: int) -> list[Row]:
    """One row for each mode, sentence by sentence; measures at the seams between sentences.

    Most such seams lie in pauses, where no F0 and no level is: so register and level of what is voiced in the 0.6 s
    before and after are compared as well, and with them those of neighbouring stretches inside sentences.
    """
    texts = paragraphs()[:num_paragraphs]
    by_mode = {mode: [read(tts, text, mode) for text in texts] for mode in ("isolated", "history", "append")}
    rows = []
    for mode, readings in by_mode.items():
        seconds = [len(reading.wav) / tts.sr for reading in readings]
        alone = [len(reading.wav) / tts.sr for reading in by_mode["isolated"]]
        words = [words_of(text) for text in texts]
        errors = [reading.errors(tts.sr) for reading in readings]
        ratios = [a / b for a, b in zip(seconds, alone, strict=True)]
        report = verify_prosody_continuity(_without_text_ends([r.sentences for r in readings]), tts.sr)
        odd = sum(
            not 1 / ODD_RATIO <= ratio <= ODD_RATIO or wrong > ODD_ERRORS * len(said)
            for ratio, wrong, said in zip(ratios, errors, words, strict=True)
        )
        rows.append(
            {
                "table": "continuity",
                "mode": mode,
                "paragraphs": len(texts),
                "seams": report.num_seams,
                "silent_seams": report.silent_seams,
                **_jumps(readings, tts.sr),
                "rate_jump_per_s": round(report.rate.seams.median, 3),
                "rate_jump_inside": round(report.rate.inside.median, 3),
                "click_p95_seams": round(report.click.seams.p95, 3),
                "click_p95_inside": round(report.click.inside.p95, 3),
                "word_error_rate": _rate(errors, words),
                "duration_ratio": round(sum(seconds) / sum(alone), 4),
                "odd_paragraphs": odd,
                "cut_sentences": sum(reading.cut for reading in readings),
            }
        )
    return rows


def _rate(errors: Sequence[int], words: Sequence[list[str]]) -> Row:
    """Errors a word, with its 95% interval over paragraphs."""
    groups = [np.array([[wrong, len(said)]], float) for wrong, said in zip(errors, words, strict=True)]

    def figure(rows: np.ndarray) -> float:
        return float(rows[:, 0].sum() / rows[:, 1].sum())

    bounds = interval(groups, figure) if len(groups) > 1 else (0.0, 1.0)
    return {"value": round(figure(np.concatenate(groups)), 4), "interval": [round(bound, 4) for bound in bounds]}


def read(tts: ChatterboxTTS, text: str, mode: str) -> Reading:
    """A paragraph in ``mode``, cut where its sentences' speech tokens end."""
    plan = StreamingConfig(continuity=mode)
    request = SynthesisRequest(text, tts.conds, tts.sampling, seed=SEED, watermark=False)
    texts = tts.synthesizer.utterances(request, by_sentence=True)
    lens, most = [0] * len(texts), [0] * len(texts)
    is_isolated = mode == "isolated"
    renderer = SpeechRenderer(tts.s3gen, tts.conds.gen, plan, None)
    audio = []
    for chunk in _by_sentence(tts, request, texts) if is_isolated else tts.synthesizer.decode(request, plan):
        lens[chunk.utterance] += len(chunk.tokens)
        most[chunk.utterance] += not chunk.ends
        if chunk.tokens and not renderer.is_open:
            renderer.begin(utterance_seed(SEED, chunk.utterance))
        audio.append(renderer.push(chunk.tokens))
        if renderer.is_open and chunk.ends and (is_isolated or chunk.utterance == len(texts) - 1):
            audio.append(renderer.close())
    wav = np.concatenate([piece[0].numpy() for piece in audio if piece is not None])
    streams = len(texts) if is_isolated else 1
    surplus = (SAMPLES_PER_TOKEN * sum(lens) - len(wav)) // streams  # that a stream's beginning is shorter by
    ends = np.cumsum([SAMPLES_PER_TOKEN * n for n in lens]) - surplus * np.minimum(np.arange(1, len(lens) + 1), streams)
    cut = sum(number >= tts.sampling.max_new_tokens for number in most)
    return Reading(texts, np.split(wav, ends[:-1]), cut)


def _by_sentence(tts: ChatterboxTTS, request: SynthesisRequest, texts: Sequence[str]) -> Iterator[TokenChunk]:
    """Tokens of sentences of which none knows another; as a text they would be fewer and longer utterances."""
    for index, text in enumerate(texts):
        alone = replace(request, text=text, seed=utterance_seed(request.seed, index))
        for chunk in tts.synthesizer.decode(alone):
            yield replace(chunk, utterance=index)


def _jumps(readings: Sequence[Reading], rate: int) -> Row:
    """Medians of register and level jumps from sentence to sentence, and inside sentences."""
    between, inside = [], []
    for reading in readings:
        quiet = loud_level(reading.wav, rate) - 30
        between += [_jump(a, b, rate, quiet) for a, b in pairwise(reading.sentences)]
        inside += [_jump(*np.split(wav, [len(wav) // 2]), rate, quiet) for wav in reading.sentences]
    row: Row = {}
    for column, name in enumerate(("f0_jump_semitones", "level_jump_db")):
        for where, jumps in (("", between), ("_inside", inside)):
            values = np.array([jump[column] for jump in jumps])
            row[name + where] = round(float(np.nanmedian(values)), 3)
    return row


def _jump(before: np.ndarray, after: np.ndarray, rate: int, quiet: float) -> tuple[float, float]:
    """Semitones and dB between the last voiced `EDGE_SECONDS` of one and the first of the other."""
    (f0, level), (f0_after, level_after) = (_edge(before, rate, quiet, -1), _edge(after, rate, quiet, 1))
    return abs(12 * float(np.log2(f0_after / f0))), abs(level_after - level)


def _edge(wav: np.ndarray, rate: int, quiet: float, side: int) -> tuple[float, float]:
    """Median F0 and level of the voiced stretch at the end (``side`` -1) or beginning; NaN without any."""
    starts = np.arange(0, max(1, len(wav) - rate // 25), rate // 100)
    level, f0 = levels(wav, starts, rate, 1), pitch(wav, starts, rate, F0_LIMITS)
    voiced = np.flatnonzero((level > quiet) & ~np.isnan(f0))[::side][: round(100 * EDGE_SECONDS)]
    if not len(voiced):
        return np.nan, np.nan
    return float(np.median(f0[voiced])), float(np.median(level[voiced]))
