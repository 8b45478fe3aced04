"""chatterbox-tts 0.1.7 as a `System`; run by `client.py` with that package's Python (``make peer-env``).

Its `generate` asks T3 for up to 1,000 tokens, which random weights never end: T3's method of the one instance is
wrapped to lower that number. T3's steps are timed around its backbone's `forward`, and what S3Gen is
given is noted. The rest is the installed package, untouched.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch
import torch.nn.functional as F
from chatterbox.models.t3.inference.t3_hf_backend import T3HuggingfaceBackend

from benchmarks.baselines.system import System, serve
from chatterbox.tts import ChatterboxTTS, punc_norm


class Upstream(System):
    def __init__(self, folder: str) -> None:
        super().__init__(ChatterboxTTS.from_local(folder, "cpu"), streams=hasattr(ChatterboxTTS, "generate_stream"))
        self._entered: list[float] = []
        self._draw = self.tts.t3.inference
        self.watch_s3gen()
        forward = T3HuggingfaceBackend.forward

        def timed(backend: Any, *args: Any, **kwargs: Any) -> Any:
            self._entered.append(time.perf_counter())
            return forward(backend, *args, **kwargs)

        T3HuggingfaceBackend.forward = timed

    def bound(self, max_new_tokens: int) -> None:
        self.tts.t3.inference = lambda **asked: self._draw(**{**asked, "max_new_tokens": max_new_tokens})

    def t3(self, text: str, tokens: int) -> dict[str, Any]:
        hp = self.tts.t3.hp
        ids = F.pad(self.tts.tokenizer.text_to_tokens(punc_norm(text)), (1, 0), value=hp.start_text_token)
        ids = F.pad(ids, (0, 1), value=hp.stop_text_token)
        asked = {"t3_cond": self.tts.conds.t3, "text_tokens": torch.cat([ids, ids]), "cfg_weight": 0.5}
        for _ in range(20):  # until no stop token is drawn too early
            self._entered.clear()
            started = time.perf_counter()
            self._draw(**asked, max_new_tokens=tokens)
            # The prefill enters first; each later entry has one more token drawn.
            drawn = self._entered[1 : tokens + 1]
            if len(drawn) == tokens:
                steps = [1000 * (after - before) for before, after in itertools.pairwise(drawn)]
                return {"first_ms": 1000 * (drawn[0] - started), "steps_ms": steps}
        raise RuntimeError(f"T3 stopped before {tokens} tokens 20 times")


if __name__ == "__main__":
    serve(Upstream)
