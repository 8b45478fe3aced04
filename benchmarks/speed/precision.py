"""What does each precision buy and cost? T3's decode step and prefill at published size, and tokens on `tiny`.

``python -m benchmarks.speed.precision -o build/results/precision.json``: of each model all precisions in turn, random
weights, the median of the repeats; ratios are of float32 in the same run. A row of Turbo has the step of weights as
their files have them, (in, out), too. Then on the embedded voice: in how many of the seeded runs the tokens are
float32's, how often the likeliest token is where the tokens before it are given, and how far the logits are off.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lib.harness import report
from chatterbox.checkpoints import EMBEDDED_VOICES, LoadedModels, load_models
from chatterbox.config import PRECISIONS, PrecisionConfig
from chatterbox.engine.decode import generate
from chatterbox.engine.request import Request
from chatterbox.kvcache import cache_config, make_cache
from chatterbox.models.config import T3Config
from chatterbox.models.packed import MATRICES, PackedLinear
from chatterbox.models.precision import T3_LAYERS, Packing, has_bfloat16, is_conv1d, pack
from chatterbox.models.t3 import T3
from chatterbox.models.t3.modules.cond_enc import T3Cond

MODELS: dict[str, tuple[Callable[[], T3Config], tuple[int, ...]]] = {
    "english": (T3Config, (2, 1, 8)),
    "turbo": (T3Config.turbo, (1, 4)),
    "nano": (T3Config.nano, (1, 4)),
}
CONTEXT, PREFILL = 300, 150  # positions: those that a step looks back at, those of a prefill
AS_STORED = "float32, (in, out)"
TEXTS = (
    "Every machine in this room can talk.",
    "The little one here speaks without a network.",
    "A quick brown fox jumps over the lazy dog.",
    "She sells sea shells by the sea shore.",
    "They went to the market early in the morning.",
)


def networks(name: str, kinds: Iterable[str]) -> dict[str, T3]:
    """One network of random weights by precision."""
    made = {}
    for kind in kinds:
        torch.manual_seed(0)
        t3 = T3(MODELS[name][0]()).eval().requires_grad_(False)
        if kind == AS_STORED:
            layer: Any
            for layer in t3.modules():
                if is_conv1d(layer):
                    layer.weight = nn.Parameter(layer.weight.contiguous(), requires_grad=False)
        elif kind in MATRICES:
            pack(t3, Packing(T3_LAYERS, MATRICES[kind]))
        made[kind] = t3
    return made


def nbytes(t3: T3) -> int:
    """Of all weights; layers that share a matrix count it once."""
    packed = {id(one.matrix): one.matrix.nbytes for one in t3.modules() if isinstance(one, PackedLinear)}
    return sum(packed.values()) + sum(weight.nbytes for weight in t3.parameters())


@torch.inference_mode()
def time_steps(t3: T3, num_rows: int, num_new: int, repeats: int) -> tuple[list[float], Tensor]:
    """Seconds of runs over ``num_new`` positions behind CONTEXT, and the logits of the first."""
    sizes = t3.sizes
    shape = sizes.num_layers, num_rows, sizes.num_heads, sizes.head_dim, CONTEXT + num_new * (repeats + 1)
    cache = make_cache(cache_config("static"), *shape)
    generator = torch.Generator().manual_seed(1)
    new = torch.randn(num_rows, num_new, t3.dim, generator=generator) * 0.1
    cache.reserve(CONTEXT)
    before = num_rows, sizes.num_heads, CONTEXT, sizes.head_dim
    for layer in range(sizes.num_layers):  # any keys take as long as true ones
        cache.append(layer, *(torch.randn(before, generator=generator) for _ in range(2)))
    logits = t3.predict_speech(t3.tfmr(new, cache))  # which warms up, too
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        t3.predict_speech(t3.tfmr(new, cache))
        seconds.append(time.perf_counter() - started)
    return seconds, logits


def measure(name: str, kinds: list[str], turns: int) -> list[dict[str, Any]]:
    """Rows of one model."""
    kinds = [*kinds[:1], *([AS_STORED] if name != "english" else []), *kinds[1:]]
    made, rows = networks(name, kinds), []
    for num_rows, num_new in [*((rows, 1) for rows in MODELS[name][1]), (1, PREFILL)]:
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        logits: dict[str, Tensor] = {}
        for _ in range(turns):
            for kind, t3 in made.items():
                spent, logits[kind] = time_steps(t3, num_rows, num_new, 5 if num_new == 1 else 1)
                seconds[kind] += spent
        exact = logits["float32"]
        for kind in kinds:
            ratios = [a / b for a, b in zip(seconds["float32"], seconds[kind], strict=True)]
            rows.append(
                {
                    "table": "speed",
                    "model": name,
                    "what": "step" if num_new == 1 else f"prefill of {PREFILL}",
                    "rows": num_rows,
                    "precision": kind,
                    "ms": round(1000 * statistics.median(seconds[kind]), 2),
                    "times as fast": round(statistics.median(ratios), 2),
                    "error of logits": round(float((logits[kind] - exact).norm() / exact.norm()), 5),
                    "MiB of weights": round(nbytes(made[kind]) / 2**20),
                }
            )
            print(rows[-1], flush=True)
    return rows


def on_tiny(kinds: list[str], num_seeds: int) -> list[dict[str, Any]]:
    """What tokens of the embedded voice become."""
    models = {kind: load_models(EMBEDDED_VOICES / "tiny", "cpu", precision=PrecisionConfig(kind)) for kind in kinds}
    exact = models["float32"]
    requests = [request_of(exact, text, seed) for text in TEXTS for seed in range(num_seeds)]
    wanted = [generate(exact.t3, request) for request in requests]
    rows = []
    for kind, model in models.items():
        same, best, positions, errors = 0, 0, 0, []
        for request, tokens in zip(requests, wanted, strict=True):
            same += torch.equal(generate(model.t3, request), tokens)
            ours, theirs = forced(model.t3, request, tokens), forced(exact.t3, request, tokens)
            best += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            positions += len(tokens)
            errors.append(float((ours - theirs).norm() / theirs.norm()))
        rows.append(
            {
                "table": "tokens",
                "model": "tiny",
                "precision": kind,
                "runs": len(requests),
                "runs with float32's tokens": same,
                "positions": positions,
                "positions with float32's likeliest token": best,
                "error of logits": round(statistics.mean(errors), 5),
            }
        )
        print(rows[-1], flush=True)
    return rows


def request_of(models: LoadedModels, text: str, seed: int) -> Request:
    tokens = models.tokenizer.text_to_tokens(text)
    hp = models.config.t3
    marked = torch.cat([torch.tensor([[hp.start_text_token]]), tokens, torch.tensor([[hp.stop_text_token]])], dim=1)
    assert models.conds is not None
    return Request(models.conds.t3, marked[0].long(), models.config.sampling, max_new_tokens=300, seed=seed)


@torch.inference_mode()
def forced(t3: T3, request: Request, tokens: Tensor) -> Tensor:
    """Logits (T, vocabulary) where the tokens before each are given; without guidance."""
    voice: T3Cond = request.t3_cond
    speech = torch.cat([torch.tensor([t3.hp.start_speech_token]), tokens[:-1]])[None]
    parts = [t3.prepare_conditioning(voice), t3.embed_text(request.text_tokens[None]), t3.embed_speech(speech)]
    hidden = t3.tfmr(torch.cat(parts, dim=1))[:, -len(tokens) :]
    return t3.predict_speech(hidden)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=40, help="of each text on `tiny`")
    parser.add_argument("--models", nargs="+", default=[*MODELS, "tiny"], choices=[*MODELS, "tiny"])
    arguments = parser.parse_args()
    kinds = [kind for kind in PRECISIONS[1:] if kind != "bfloat16" or has_bfloat16()]
    rows = []
    for name in arguments.models:
        rows += on_tiny(kinds, arguments.seeds) if name == "tiny" else measure(name, kinds, arguments.turns)
    report("precision", rows, arguments.output, unit="milliseconds")


if __name__ == "__main__":
    main()
