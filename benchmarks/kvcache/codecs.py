"""What do eight and four bits cost? Errors on the embedded voice, bytes and time of a step at the published size.

``python -m benchmarks.kvcache.codecs -o build/results/codecs.json``. Three tables in one:

``codecs``: root mean square error of keys and values that the embedded voice made, over their own root mean square.
``int4 symmetric`` is what `Int4Codec` would be with levels around zero, one scale for a group.
``decode``: the voice's own utterances given to it again, token by token: the error of a logit in standard deviations of
the logits of `static`, and how often the most likely token is the same. A step's time, all policies in turns, is of T3
at the published size, random weights, two rows at position 1,000.
``heads``: of what all heads' outputs lose when they see no more than prefix and window (their real queries), the share
that those heads lose which `identify_important_heads` finds, beside as many at random.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.lib.harness import in_turns, report, summary
from chatterbox.config import KVCacheConfig
from chatterbox.engine.decode import generate
from chatterbox.engine.request import Request, allocate_cache, prefill_embeds
from chatterbox.kvcache import KVCache, Segment, identify_important_heads
from chatterbox.kvcache.compression import codec
from chatterbox.models.t3 import T3
from chatterbox.synthesis.request import SynthesisRequest
from chatterbox.tts import ChatterboxTTS

SENTENCES = (
    "The train to the coast leaves at nine, and the platform is at the other end of the station.",
    "She wrote the address on a small piece of paper, folded it twice and put it into her pocket.",
    "If the weather holds until Sunday, we could walk along the river and have lunch at the mill.",
    "Nobody had told him that the meeting was cancelled, so he waited in the empty room for an hour.",
)
POLICIES = {
    "static": KVCacheConfig(),
    "compressed int8": KVCacheConfig("compressed"),
    "compressed int4": KVCacheConfig("compressed", decode_codec="int4"),
    "headwindow": KVCacheConfig("headwindow", max_cache_size=512, window_size=256),
}
WINDOW = 64


class QueryNote:
    """Stands in for a cache to the backbone, and keeps the queries that `KVCache.observe` is shown."""

    def __init__(self, cache: KVCache) -> None:
        self.cache, self.wants_queries, self.queries = cache, True, [[] for _ in range(cache.num_layers)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def observe(self, layer: int, queries: Tensor) -> None:
        self.queries[layer].append(queries[0].clone())


def spoken(tts: ChatterboxTTS) -> Iterator[tuple[Request, Tensor]]:
    """Requests of the built-in voice and the tokens that it draws for them."""
    for seed, text in enumerate(SENTENCES):
        [request] = tts.synthesizer.decode_requests(SynthesisRequest(text, tts.conds, tts.sampling, seed=seed))
        yield request, generate(tts.t3, request)


@torch.inference_mode()
def forced(t3: T3, request: Request, tokens: Tensor, cache: KVCache | QueryNote) -> Tensor:
    """Logits (rows, tokens, V) where ``tokens`` follow the request's prefix one by one."""
    embeds = prefill_embeds(t3, request)
    logits = [t3.predict_speech(t3.tfmr(embeds, cache)[:, -1:])]
    for place, token in enumerate(tokens[:-1], 1):
        one = t3.embed_speech(token.expand(len(embeds), 1), torch.full((len(embeds), 1), place))
        logits.append(t3.predict_speech(t3.tfmr(one, cache)))
    return torch.cat(logits, dim=1).float()


def cache_for(t3: T3, request: Request, tokens: Tensor, config: KVCacheConfig) -> KVCache:
    prefix_len = prefill_embeds(t3, request).shape[1]
    cache = allocate_cache(t3, request.num_rows, prefix_len + len(tokens), config)
    for row in range(cache.num_rows):
        cache.begin(row, range(prefix_len))
    return cache


def relative(error: Tensor, of: Tensor) -> float:
    return float(error.square().mean().sqrt() / of.square().mean().sqrt())


def symmetric(x: Tensor, dim: int) -> Tensor:
    """Four bits around zero in groups of 32 along ``dim``, there and back."""
    parts = []
    for part in x.split(32, dim):
        scale = part.abs().amax(dim, keepdim=True) / 7
        parts.append((part / scale).round().clamp(-7, 7) * scale)
    return torch.cat(parts, dim)


def codec_rows(segments: list[Segment]) -> Iterator[dict[str, object]]:
    def row(name: str, back: list[Segment], share: float) -> dict[str, object]:
        pairs = list(zip(back, segments, strict=True))
        return {
            "table": "codecs",
            "name": name,
            "share_of_bytes": round(share, 3),
            "key_error": round(max(relative(b.keys - s.keys, s.keys) for b, s in pairs), 4),
            "value_error": round(max(relative(b.values - s.values, s.values) for b, s in pairs), 4),
        }

    for name in ("int8", "int4"):
        packed = [codec(name).pack(segment) for segment in segments]
        share = sum(one.nbytes for one in packed) / sum(segment.nbytes for segment in segments)
        yield row(name, [codec(name).unpack(one) for one in packed], share)
    back = [Segment(symmetric(one.keys, 2), symmetric(one.values, 3), 0) for one in segments]
    yield row("int4 symmetric", back, 0.125 + 1 / 32)


def decode_rows(tts: ChatterboxTTS, cases: list[tuple[Request, Tensor]], times: dict[str, list[float]], nbytes):
    exact = [forced(tts.t3, *case, cache_for(tts.t3, *case, POLICIES["static"])) for case in cases]
    for name, config in POLICIES.items():
        result = {"table": "decode", "name": name, **summary(times[name]), "share_of_bytes": round(nbytes[name], 3)}
        if name.startswith("compressed"):
            pairs = [
                (forced(tts.t3, *case, cache_for(tts.t3, *case, config)), one)
                for case, one in zip(cases, exact, strict=True)
            ]
            errors = torch.cat([((got - one) / one.std()).flatten() for got, one in pairs])
            result["logit_error_rms"] = round(float(errors.square().mean().sqrt()), 4)
            result["logit_error_max"] = round(float(errors.abs().max()), 4)
            same = torch.cat([(got.argmax(-1) == one.argmax(-1)).flatten() for got, one in pairs])
            result["same_best_token"] = round(float(same.float().mean()), 4)
        yield result


def loss_of_heads(queries: Tensor, segment: Segment, layer: int, prefix_len: int) -> Tensor:
    """What each head's output loses without the middle, per length of the output, (heads,): the real queries."""
    keys, values = segment.keys[layer], segment.values[layer]
    positions = torch.arange(len(segment))
    scores = queries[:, : len(segment)] @ keys.mT * keys.shape[-1] ** -0.5
    reached = positions <= positions[:, None]
    kept = reached & ((positions < prefix_len) | (positions > positions[:, None] - WINDOW))
    whole, cut = (F.softmax(scores.masked_fill(~seen, float("-inf")), -1) @ values for seen in (reached, kept))
    speech = slice(prefix_len + WINDOW, None)
    return ((whole - cut).norm(dim=-1) / whole.norm(dim=-1))[:, speech].mean(-1)


def head_row(tts: ChatterboxTTS, cases: list[tuple[Request, Tensor]]) -> dict[str, object]:
    found, best, by_chance = 0.0, 0.0, 0.0
    for request, tokens in cases:
        note = QueryNote(cache_for(tts.t3, request, tokens, POLICIES["static"]))
        forced(tts.t3, request, tokens, note)
        length = note.cache.row_lens[0]
        segment, prefix_len = note.cache.segment(0, 0, length), length - len(tokens) + 1
        queries = [torch.cat(parts, dim=1) for parts in note.queries]
        loss = torch.stack([loss_of_heads(q, segment, layer, prefix_len) for layer, q in enumerate(queries)]).flatten()
        scores = identify_important_heads(segment.keys, segment.values, prefix_len=prefix_len, window=WINDOW).flatten()
        half = len(loss) // 2
        found += float(loss[scores.topk(half).indices].sum() / loss.sum())
        best += float(loss.topk(half).values.sum() / loss.sum())
        by_chance += half / len(loss)
    shares = {"found": found, "best_possible": best, "at_random": by_chance}
    return {"table": "heads", "name": "half of all"} | {k: round(v / len(cases), 3) for k, v in shares.items()}


@torch.inference_mode()
def step_times(repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of steps at position 1,000 of the published size, and the bytes of each policy over static's."""
    torch.manual_seed(0)
    t3 = T3().eval()
    backbone, rows, position = t3.hp.backbone, 2, 1000
    shape = (backbone.num_layers, backbone.num_heads, position, backbone.head_dim)
    segment = Segment(torch.randn(shape), torch.randn(shape), 0)
    caches = {name: allocate_cache(t3, rows, 1200, config) for name, config in POLICIES.items()}
    for cache in caches.values():
        for row in range(rows):
            fill(cache, row, segment)
    embeds = torch.randn(rows, 1, backbone.hidden_size)
    times = in_turns({name: lambda c=cache: t3.tfmr(embeds, c) for name, cache in caches.items()}, repeats)
    whole = caches["static"].nbytes
    return times, {name: cache.nbytes / whole for name, cache in caches.items()}


def fill(cache: KVCache, row: int, segment: Segment) -> None:
    """Give a row the positions of ``segment``; where they are too many to load, the rest as passes."""
    first = min(len(segment), getattr(cache, "bound", len(segment)))
    cache.load(row, segment[:first])
    for start in range(first, len(segment), 128):
        part = segment[start : start + 128]
        cache.reserve(len(part), slice(row, row + 1))
        for layer in range(cache.num_layers):
            cache.append(layer, part.keys[layer, None], part.values[layer, None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    times, nbytes = step_times(arguments.repeats)
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
    cases = list(spoken(tts))
    segments = []
    for request, tokens in cases:
        cache = cache_for(tts.t3, request, tokens, POLICIES["static"])
        forced(tts.t3, request, tokens, cache)
        segments.append(cache.segment(0, 0, cache.row_lens[0]))
    rows = [*codec_rows(segments), *decode_rows(tts, cases, times, nbytes), head_row(tts, cases)]
    report("codecs", rows, arguments.output, sentences=len(cases), window=WINDOW)


if __name__ == "__main__":
    main()
