"""A request spoken by a function that a program has put in place of `T3.inference` or `T3.inference_turbo`.

Owns: how upstream calls those two, and what becomes of what they return. Does not know: what the function does,
streams, other requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from chatterbox.engine.request import Request, check_request, limit_of
from chatterbox.models.config import GPT2Config, T3Config
from chatterbox.models.t3 import T3
from chatterbox.runtime.replaceable import call, replacement
from chatterbox.synthesis.render import SpeechRenderer, Stopwatch
from chatterbox.synthesis.speech_stream import SpeechChunk
from chatterbox.synthesis.token_filter import SpeechTokenFilter

MAX_GEN_LEN = 1000  # upstream's default for Turbo, which it does not pass


def inference_name(hp: T3Config) -> str:
    """The method that upstream's ``generate`` calls."""
    return "inference_turbo" if isinstance(hp.backbone, GPT2Config) else "inference"


def replaced_inference(t3: T3) -> Callable[..., Any] | None:
    """What stands in its place; None: nothing."""
    return replacement(t3, inference_name(t3.hp))


def chunks_by(
    inference: Callable[..., Any],
    t3: T3,
    renderer: SpeechRenderer,
    requests: Sequence[tuple[float, Request | None]],
    on_token: Callable[[int], None] | None = None,
) -> Iterator[SpeechChunk]:
    """Audio of an utterance each, all of it made in the thread that asks for it.

    ``requests``: seconds of silence, and what is said behind them, None for nothing.

    Raises:
        TypeError, ValueError: as `speech_tokens_by`, or a request that `t3` cannot have.
    """
    for _, request in requests:
        if request is not None:
            check_request(t3, request)
    watch, num_tokens = Stopwatch(), 0
    for index, (pause, request) in enumerate(requests):
        costs = {"utterance": index, "positions_served": 0, "positions_computed": 0}
        if pause:
            audio, now = renderer.silence(pause), time.perf_counter()
            yield SpeechChunk(audio, (), watch.chunk(audio.shape[1], now, num_tokens=num_tokens, **costs))
            watch.resume()
        if request is None:
            continue
        token_filter = SpeechTokenFilter(t3.hp, None, streaming=False)
        for token in speech_tokens_by(inference, t3, request):
            token_filter.push(token)
            num_tokens += 1
            if on_token is not None:
                on_token(num_tokens)
        rendered_from, speech_tokens = time.perf_counter(), token_filter.finish()
        if not speech_tokens:
            continue
        renderer.begin(request.seed)
        renderer.push(speech_tokens)
        audio = renderer.close()
        yield SpeechChunk(
            audio,
            tuple(speech_tokens),
            watch.chunk(audio.shape[1], rendered_from, num_tokens=num_tokens, **costs),
        )
        watch.resume()


def speech_tokens_by(inference: Callable[..., Any], t3: T3, request: Request) -> list[int]:
    """What ``inference`` returns for ``request``, called in this thread as upstream calls it: (N,) or (rows, N).

    With a seed of the request's own it gets that, if it takes one, and torch's global generator has it meanwhile.

    Raises:
        TypeError: it returns no tensor of tokens.
    """
    sampling, text_tokens = request.sampling, torch.atleast_2d(request.text_tokens).to(t3.device)
    name, limit = inference_name(t3.hp), limit_of(t3, request)
    arguments: dict[str, Any] = {
        "t3_cond": request.t3_cond,
        "text_tokens": text_tokens,
        "temperature": sampling.temperature,
        "repetition_penalty": sampling.repetition_penalty,
        "top_p": sampling.top_p,
    }
    if name == "inference_turbo":
        arguments |= (
            {"top_k": sampling.top_k} if limit == MAX_GEN_LEN else {"top_k": sampling.top_k, "max_gen_len": limit}
        )
    else:
        if sampling.cfg_weight > 0:
            arguments["text_tokens"] = text_tokens.expand(2, -1)  # of which the second is the row without text
        arguments |= {"cfg_weight": sampling.cfg_weight, "min_p": sampling.min_p, "max_new_tokens": limit}
    with torch.inference_mode(), _seeded(request.seed):
        tokens = call(inference, arguments, {} if request.seed is None else {"seed": request.seed})
    if not isinstance(tokens, Tensor) or not tokens.numel() or tokens.is_floating_point():
        raise TypeError(
            f"the function in place of T3.{name} returned {_about(tokens)}; it must return speech tokens, "
            "a tensor (1, N) of whole numbers"
        )
    return torch.atleast_2d(tokens)[0].tolist()


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _about(value: object) -> str:
    return f"a tensor {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
