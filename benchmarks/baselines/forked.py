"""chatterbox-streaming 0.1.2 as a `System`; run by `client.py` with that package's Python (``make streaming-env``).

It loads pickled weights (`.pt`), which the folder has beside the others. Wrapped from outside, on the one instance:
`inference_stream`, to lower the 1,000 tokens that random weights never end, and to leave out of each chunk the ids that
are no speech: the package hands them on to S3Gen, whose table they are not in, and trained weights hardly draw them. So
its chunks hold as many speech tokens as ours. What S3Gen is given is noted. Untouched: it yields chunks of full size
only, so the number of tokens must be a multiple of the chunk's or the last ones are lost; it crops, fades and
watermarks every chunk by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.baselines.system import STOP_SPEECH_TOKEN, System, serve
from chatterbox.tts import ChatterboxTTS


class Forked(System):
    def __init__(self, folder: str) -> None:
        super().__init__(ChatterboxTTS.from_local(folder, "cpu"), streams=True)
        self._draw = self.tts.inference_stream
        self.watch_s3gen()

    def bound(self, max_new_tokens: int) -> None:
        def draw_fewer(**asked: Any) -> Iterator[torch.Tensor]:
            for chunk in self._draw(**{**asked, "max_new_tokens": max_new_tokens}):
                yield chunk[:, chunk[0] <= STOP_SPEECH_TOKEN]

        self.tts.inference_stream = draw_fewer


if __name__ == "__main__":
    serve(Forked)
