"""chatterbox-tts 0.1.7's own T3 loop, timed step by step; run by `t3_decode.py` with that package's Python.

One JSON line in, ``{"position": P, "steps": K}``, one out: the milliseconds of K steps after a prefill of P positions,
with guidance. Random weights of the published size. The loop is the package's; time is taken around its backbone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time

import torch
from chatterbox.models.t3.inference.t3_hf_backend import T3HuggingfaceBackend

from chatterbox.models.t3 import T3
from chatterbox.models.t3.modules.cond_enc import T3Cond
from chatterbox.models.t3.modules.t3_config import T3Config

COND_LEN, NUM_STARTS = 34, 2


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # the package prints to stdout
    os.dup2(2, 1)
    torch.manual_seed(0)
    hp = T3Config.english_only()
    t3 = T3(hp).eval()
    entered: list[float] = []
    forward = T3HuggingfaceBackend.forward

    def timed(self, *args, **kwargs):
        entered.append(time.perf_counter())
        return forward(self, *args, **kwargs)

    T3HuggingfaceBackend.forward = timed
    cond = T3Cond(
        speaker_emb=torch.randn(1, hp.speaker_embed_size),
        cond_prompt_speech_tokens=torch.randint(0, 6561, (1, hp.speech_cond_prompt_len)),
        emotion_adv=0.5 * torch.ones(1, 1, 1),
    )
    for line in sys.stdin:
        asked = json.loads(line)
        text = torch.full((2, asked["position"] - COND_LEN - NUM_STARTS), 7)
        text[:, 0], text[:, -1] = hp.start_text_token, hp.stop_text_token
        while True:  # until no stop token is drawn too early
            entered.clear()
            with contextlib.redirect_stdout(sys.stderr), torch.inference_mode():
                t3.inference(t3_cond=cond, text_tokens=text, max_new_tokens=asked["steps"] + 2)
            # The prefill, then one entry a step: a step is the time between two entries.
            steps = [1000 * (after - before) for before, after in itertools.pairwise(entered[1:])]
            if len(steps) >= asked["steps"]:
                break
        print(json.dumps(steps[: asked["steps"]]), file=answers, flush=True)


if __name__ == "__main__":
    main()
