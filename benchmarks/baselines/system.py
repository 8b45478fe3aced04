"""One package in a process of its own that answers questions about itself: the half of it that all packages share.

Owns: JSON lines in and out, what a question costs in time and memory, and the questions that every chatterbox package
answers by the same calls. Does not know: how a package's T3 is bounded and timed; `ours`, `upstream` and `forked` do.

Started by `client.py` as ``PYTHON SCRIPT FOLDER``. A question is ``{"ask": NAME, "seed": S, ...}``, the rest being the
arguments of the method NAME; the answer is what the method returns with ``ms``, the time it took, and resident memory
before it, at its peak and after it. Imports nothing but torch, the standard library and `calls`. Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines.calls import in_real_time, run_calls

STOP_SPEECH_TOKEN, NUM_SPEECH_TOKENS = 6562, 6561


class System:
    """A loaded ``ChatterboxTTS`` with the synthetic voice of its folder. Answers are plain dictionaries."""

    def __init__(self, tts: Any, streams: bool) -> None:
        self.tts, self.streams = tts, streams
        self.loading: dict[str, float] = {}
        self._given = threading.local()  # to S3Gen, in the call that this thread makes: tokens and voice

    def about(self) -> dict[str, Any]:
        about = {"threads": torch.get_num_threads(), "streams": self.streams, "torch": torch.__version__}
        return {**about, "transformers": version("transformers"), "numpy": version("numpy"), **self.loading}

    def bound(self, max_new_tokens: int) -> None:
        """Let `generate` and `generate_stream` draw no more tokens than this: random weights never stop."""
        raise NotImplementedError

    def conditioning(self, reference: str) -> dict[str, Any]:
        self.tts.prepare_conditionals(reference)
        return {}

    def t3(self, text: str, tokens: int) -> dict[str, Any]:
        """``first_ms``, from the text to the first token drawn, and ``steps_ms`` between tokens after it."""
        raise NotImplementedError

    def s3gen(self, speech_tokens: int) -> dict[str, Any]:
        drawn = torch.randint(0, NUM_SPEECH_TOKENS, (speech_tokens,), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            wav, _ = self.tts.s3gen.inference(speech_tokens=drawn, ref_dict=self.tts.conds.gen)
        return {"samples": wav.shape[-1]}

    def generate(self, texts: list[str], tokens: int, reference: str | None = None) -> dict[str, Any]:
        """Whole texts in a row, each from a seed of its own; with ``reference``, every call names the recording."""
        self.bound(tokens)
        samples = []
        for seed, text in enumerate(texts):
            torch.manual_seed(seed)
            samples.append(self.tts.generate(text, audio_prompt_path=reference).shape[-1])
        return {"samples": samples}

    def stream(self, text: str, tokens: int, chunk_size: int) -> dict[str, Any]:
        """``arrived_ms`` of every chunk since the call, and its ``samples``."""
        self.bound(tokens)
        arrived, samples, started = [], [], time.perf_counter()
        for chunk, _ in self.tts.generate_stream(text, chunk_size=chunk_size, print_metrics=False):
            arrived.append(1000 * (time.perf_counter() - started))
            samples.append(chunk.shape[-1])
        return {"arrived_ms": arrived, "samples": samples}

    def seeded(self, seed: int) -> dict[str, Any]:
        """Arguments that give a call its seed. Without such, torch's global generator, which all threads share."""
        torch.manual_seed(seed)
        return {}

    def calls(
        self,
        texts: list[str],
        *,
        concurrently: bool = False,
        whole: bool = False,
        references: list[str] | None = None,
        tokens: int | None = None,
        options: dict[str, Any] | None = None,
        late_after: int | None = None,
        plays: bool = False,
        wavs: str | None = None,
    ) -> dict[str, Any]:
        """A call for each text, in a thread of its own (``concurrently``) or one after another: what came when.

        Args:
            whole: by `generate`, as a package that has no streams does anyway.
            references: the recording that each call names.
            tokens: of each call at most.
            options: further arguments of every call.
            late_after: at once, the last text is called for when all others have had this many chunks, or ended.
            plays: chunks are taken as a player takes them, not as soon as they are there.
            wavs: where each call's audio (N,) is saved, a list for `torch.load`.

        Returns:
            ``seconds``, from the first call's start to the last one's end, and ``calls``, by text: ``began``, ``ended``
            and ``arrived``, seconds since that start, ``samples`` of each chunk that arrived, ``error``, and
            ``given``, the ``tokens`` and ``voice`` embeddings that S3Gen got, where `watch_s3gen` was called.
        """
        if tokens is not None:
            self.bound(tokens)

        given: list[dict[str, list[float]]] = [{"tokens": [], "voice": []} for _ in texts]

        def audio(index: int) -> Iterator[torch.Tensor]:
            named = {} if references is None else {"audio_prompt_path": references[index]}
            self._given.call = given[index]
            chunks = self._audio(texts[index], whole, {**named, **self.seeded(index), **(options or {})})
            yield from in_real_time(chunks) if plays else chunks

        seconds, calls = run_calls(audio, len(texts), concurrently=concurrently, late_after=late_after)
        if wavs is not None:
            torch.save([call.audio() for call in calls], wavs)
        told = [{**call.as_json(), "given": one} for call, one in zip(calls, given, strict=True)]
        return {"seconds": seconds, "calls": told}

    def watch_s3gen(self) -> None:
        """Note the tokens and the voice of each call to S3Gen, for packages whose calls have no seed of their own.

        Their audio differs from call to call by the vocoder's noise, which is loud with random weights.
        """
        inference = self.tts.s3gen.inference

        def noted(speech_tokens: torch.Tensor, ref_dict: dict[str, Any], **others: Any) -> Any:
            call = getattr(self._given, "call", {"tokens": [], "voice": []})
            call["tokens"] += speech_tokens.reshape(-1).tolist()
            call["voice"] += ref_dict["embedding"].reshape(-1).tolist()
            return inference(speech_tokens=speech_tokens, ref_dict=ref_dict, **others)

        self.tts.s3gen.inference = noted

    def _audio(self, text: str, whole: bool, asked: dict[str, Any]) -> Iterator[torch.Tensor]:
        """Chunks (1, N) of one call."""
        if whole or not self.streams:
            yield self.tts.generate(text, **asked)
            return
        for chunk, _ in self.tts.generate_stream(text, print_metrics=False, **asked):
            yield chunk


def serve(load: Any) -> None:
    """Answer until the questions end. ``load`` makes a `System` of a checkpoint folder."""
    answers = os.fdopen(os.dup(1), "w")  # packages print to stdout
    os.dup2(2, 1)
    started = time.perf_counter()
    system = load(sys.argv[1])
    system.loading = {
        "loading_ms": 1000 * (time.perf_counter() - started),
        "loaded_mib": _memory_mib("VmRSS"),
        "loading_peak_mib": _memory_mib("VmHWM"),
    }
    for line in sys.stdin:
        print(json.dumps(_answer(system, json.loads(line))), file=answers, flush=True)


def _answer(system: System, question: dict[str, Any]) -> dict[str, Any]:
    ask, seed = question.pop("ask"), question.pop("seed", 0)
    try:
        torch.manual_seed(seed)
        before = _memory_mib("VmRSS")
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        started = time.perf_counter()
        answer = getattr(system, ask)(**question)
        elapsed = 1000 * (time.perf_counter() - started)
    except Exception:
        return {"error": traceback.format_exc(limit=-4)}
    memory = {"before_mib": before, "peak_mib": _memory_mib("VmHWM"), "after_mib": _memory_mib("VmRSS")}
    return {"ms": elapsed, **memory, **answer}


def _memory_mib(field: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024
