"""What does a warm voice save before the first token? The published T3's size, with random weights.

``python -m benchmarks.kvcache.prefill -o build/results/prefill.json``: time until the first token can be drawn,
with guidance where the model has it, for a voice that is new, known with a new text, known with a text whose first half
was said before, and known with this text; beside them the same without a prefix cache. All in turns in one run; ratios
are to the new voice. ``--model turbo`` is Turbo, whose voice is 376 positions instead of 34.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.lib.harness import in_turns, report, summary
from chatterbox.config import SamplingConfig
from chatterbox.engine.decode import decoder_on
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request, allocate_cache, required_capacity
from chatterbox.kvcache import GlobalKVCacheManager
from chatterbox.models.config import T3Config
from chatterbox.models.t3 import T3
from chatterbox.models.t3.modules.cond_enc import T3Cond

BUDGET = 2**30
MODELS = {"english": T3Config.english_only, "turbo": T3Config.turbo, "nano": T3Config.nano}


def make_request(hp: T3Config, text_len: int) -> Request:
    cond = T3Cond(
        speaker_emb=torch.randn(1, hp.speaker_embed_size),
        cond_prompt_speech_tokens=torch.randint(0, 6561, (1, hp.speech_cond_prompt_len)),
        emotion_adv=0.5,
    )
    sampling = SamplingConfig(cfg_weight=0.5 if hp.has_guidance else 0.0)
    return Request(cond, new_text(hp, text_len), sampling, max_new_tokens=1, seed=0)


def new_text(hp: T3Config, text_len: int, prefix: torch.Tensor | None = None) -> torch.Tensor:
    text = torch.randint(2, hp.text_tokens_dict_size, (text_len,))
    if hp.mark_text:
        text[0], text[-1] = hp.start_text_token, hp.stop_text_token
        text[1:-1][text[1:-1] == hp.start_text_token] = 2
    if prefix is not None:
        text[: len(prefix)] = prefix
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--model", choices=MODELS, default="english")
    parser.add_argument("--text", type=int, default=60, help="text tokens, about a character or two each")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    t3 = T3(MODELS[arguments.model]()).eval().to(device)
    warm = Prefiller(t3, GlobalKVCacheManager(budget_bytes=BUDGET))
    known = make_request(t3.hp, arguments.text)
    cache = allocate_cache(t3, known.num_rows, required_capacity(t3, known))

    def join(request: Request, prefixes: Prefiller | None) -> None:
        engine = DecodeEngine(t3, decoder_on(t3, cache))
        if prefixes is None:
            engine.join(request)
            return
        with prefixes.acquire(request) as prefix:
            engine.join(request, prefix=prefix)

    half = known.text_tokens[: arguments.text // 2]
    times = in_turns(
        {
            "no prefix cache": lambda: join(make_request(t3.hp, arguments.text), None),
            "new voice": lambda: join(make_request(t3.hp, arguments.text), warm),
            "known voice, new text": lambda: join(replace(known, text_tokens=new_text(t3.hp, arguments.text)), warm),
            "known voice, half of the text known": lambda: join(
                replace(known, text_tokens=new_text(t3.hp, arguments.text, half)), warm
            ),
            "known voice and text": lambda: join(known, warm),
        },
        arguments.repeats,
    )
    cold = summary(times["new voice"])["median_ms"]
    rows = []
    for name, values in times.items():
        figures = summary(values)
        rows.append({"case": name, **figures, "ratio": round(figures["median_ms"] / cold, 3)})
    about = {"model": arguments.model, "text_tokens": arguments.text, "dtype": "float32"}
    report("prefill", rows, arguments.output, **about)


if __name__ == "__main__":
    main()
