"""This package as a `System`; run by `client.py`.

Loading it includes `warm`: the fingerprint of the weights is read once in a process's life, and by no measured call.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import torch.nn.functional as F

from benchmarks.baselines.system import System, serve
from chatterbox.config import KVCacheConfig, SamplingConfig
from chatterbox.engine.request import Request
from chatterbox.text.normalize import punc_norm
from chatterbox.tts import ChatterboxTTS


class Ours(System):
    def __init__(self, folder: str) -> None:
        super().__init__(ChatterboxTTS.from_local(folder, "cpu"), streams=hasattr(ChatterboxTTS, "generate_stream"))
        self.tts.warm()

    def bound(self, max_new_tokens: int) -> None:
        self.tts.sampling = dataclasses.replace(self.tts.sampling, max_new_tokens=max_new_tokens)

    def t3(self, text: str, tokens: int) -> dict[str, Any]:
        hp = self.tts.t3.hp
        ids = F.pad(self.tts.tokenizer.text_to_tokens(punc_norm(text))[0], (1, 0), value=hp.start_text_token)
        ids = F.pad(ids, (0, 1), value=hp.stop_text_token)
        sampling = SamplingConfig(cfg_weight=0.5)
        started = time.perf_counter()
        request = Request(self.tts.conds.t3, ids, sampling, max_new_tokens=tokens, stop_on_eos=False)
        tokens_of = self.tts.synthesizer.scheduler.stream(request, policy=KVCacheConfig())
        drawn = [time.perf_counter() for _ in tokens_of]
        steps = [1000 * (after - before) for before, after in itertools.pairwise(drawn)]
        return {"first_ms": 1000 * (drawn[0] - started), "steps_ms": steps}


if __name__ == "__main__":
    serve(Ours)
