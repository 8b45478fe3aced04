"""A baseline's process without a model, for tests of what is asked of one: `benchmarks.baselines.client` starts it."""

from __future__ import annotations

import os
import sys

import torch

from benchmarks.baselines.system import System, serve


class Fake(System):
    def __init__(self, folder):
        print("a package that prints while it loads", folder)
        super().__init__(None, streams=False)
        self.kept = []

    def speak(self, texts):
        # Through an S3Gen that is watched; texts are numbers of a voice.
        class Speech:
            s3gen = type("S3Gen", (), {"inference": lambda self, speech_tokens, ref_dict: (speech_tokens, None)})()

            def generate(self, text):
                ref = {"embedding": torch.full((2,), float(text)), "lens": None}
                return self.s3gen.inference(speech_tokens=torch.ones(1, 4), ref_dict=ref)[0]

        self.tts = Speech()
        self.watch_s3gen()
        return self.calls(texts, concurrently=True)

    def draw(self, count):
        return {"drawn": torch.randint(0, 1000, (count,)).tolist()}

    def keep(self, mib):
        self.kept.append(torch.ones(mib * 2**18))
        return {}

    def hold(self, mib):
        torch.ones(mib * 2**18).sum()
        return {}

    def die(self):
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)


if __name__ == "__main__":
    serve(Fake)
