"""What a user asks for, and what that asks of T3.

Owns: the request and its checks, its utterances, the ids and the seed of each. Does not know: how tokens are decoded,
audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.config import KVCacheConfig, SamplingConfig, SpeechOptions
from chatterbox.engine.request import ForcedPrefix, Request
from chatterbox.models.config import T3Config
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import TextTokenizer, rules_of, tokens_by
from chatterbox.models.tokenizers.languages import base_language, begun
from chatterbox.text import Utterance, utterances
from chatterbox.text.cleaning import clean, clean_pieces, clean_utterance
from chatterbox.text.incremental import is_in_pieces
from chatterbox.text.normalize import ENGLISH, speakable, with_all_enders
from chatterbox.voice.conditionals import Conditionals

SEED_STEP = 0x9E3779B97F4A7C15  # odd and large: the seeds of a request's utterances are far apart


@dataclass(frozen=True)
class SynthesisRequest(SpeechOptions):
    """One text to speak in one voice, as its options say: plain data, nothing of it is changed.

    text: a string of any length, or its pieces as they are written, of any size. cache_policy: of the rows being
    decoded, a name of `chatterbox.kvcache.POLICIES` or settings. language_id: for a multilingual model alone.
    punctuate: a program's own function in place of the tokenizer's rules. Without a ``seed`` a text of one utterance
    draws from torch's global generator, in upstream's order; with one the request has generators of its own.
    """

    text: str | Iterable[str]
    conditionals: Conditionals
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    cache_policy: str | KVCacheConfig = "static"
    language_id: str | None = None
    punctuate: Callable[[str], str] | None = None


def utterances_of(
    t3: T3, request: SynthesisRequest, tokens_of: Callable[[str], Tensor], *, by_sentence: bool = False
) -> list[Utterance] | Iterator[Utterance]:
    """What is spoken in one piece each; all of a string is known at once, of pieces as they come.

    Nothing, of a text with nothing to speak; the empty string alone asks for upstream's request for some text.

    ``tokens_of``: ids (S,) of a text, as `text_tokens_of`.

    Raises:
        TypeError: neither a string nor an iterable of strings.
    """

    def length(text: str) -> int:
        return len(tokens_of(text))

    # Marks around the text take two places.
    max_len = min(t3.hp.utterance_text_len, t3.hp.max_text_tokens - 2)
    text = cleaned(request)
    pause = None if request.cleaning == "none" else request.paragraph_pause
    tidy = partial(clean_utterance, language=_language(request)) if request.cleaning == "full" else None
    found = utterances(text, max_len, length, by_sentence=by_sentence, paragraph_pause=pause, tidy=tidy)
    if not isinstance(text, str):
        return found
    if not request.text or request.cleaning == "none":
        return list(found) or [Utterance(text)]
    return list(found)


def cleaned(request: SynthesisRequest) -> str | Iterable[str]:
    """The request's text, or its pieces, without what cannot be spoken; markup within lines stays in pieces."""
    text, language = request.text, _language(request)
    if isinstance(text, str):
        return clean(text, request.cleaning, language=language)
    if not is_in_pieces(text):
        return text  # whoever reads it says what is wrong with it
    return clean_pieces(text, request.cleaning, language=language)


def _language(request: SynthesisRequest) -> str | None:
    return None if request.language_id is None else base_language(request.language_id)


def decode_request(
    t3: T3,
    voice: Conditionals,
    request: SynthesisRequest,
    tokens_of: Callable[[str], Tensor],
    text: str | None = None,
    *,
    previous: tuple[str, list[int]] | None = None,
    index: int = 0,
) -> Request:
    """What T3 is asked for.

    Args:
        tokens_of: as `utterances_of` has it.
        text: the utterance; None is all of the request's text.
        previous: text and speech tokens of the utterance before, that this one is to be a continuation of.
        index: which of the request's utterances it is.

    Raises:
        TypeError: the text is not a string.
    """
    words = request.text if text is None else text
    if not isinstance(words, str):
        raise TypeError(f"text must be a string, got {type(words).__name__}; pass the words to speak")
    if text is None:
        words = clean(words, request.cleaning, language=_language(request))
    forced = None
    if previous is not None:
        before, speech_tokens = previous
        text_tokens = tokens_of(before)
        forced = ForcedPrefix(torch.tensor(speech_tokens), len(text_tokens) + t3.hp.mark_text)
        words = f"{before} {words}"
    text_tokens = tokens_of(words)
    if t3.hp.mark_text:
        text_tokens = F.pad(text_tokens, (1, 0), value=t3.hp.start_text_token)
        text_tokens = F.pad(text_tokens, (0, 1), value=t3.hp.stop_text_token)
    room = t3.max_speech_len - (0 if forced is None else len(forced.tokens))
    return Request(
        t3_cond=voice.t3,
        text_tokens=text_tokens,
        sampling=request.sampling,
        max_new_tokens=min(request.sampling.max_new_tokens, room),
        seed=utterance_seed(request.seed, index),
        guard=request.guard,
        forced=forced,
    )


def text_tokens_of(
    tokenizer: TextTokenizer, request: SynthesisRequest, text: str, *, hp: T3Config | None = None
) -> Tensor:
    """Ids (S,) of a text, without marks.

    A program's own tokenizer needs no punctuation rules: those of a model of ``hp`` stand in.
    """
    named = {} if request.language_id is None else {"language_id": request.language_id}
    language, is_exact = _language(request), request.cleaning == "none"
    spells = request.normalize if request.normalize is not None else getattr(tokenizer, "spells_numbers", False)
    if spells:
        from chatterbox.text.in_words import in_words  # what most models have no use for

        text = in_words(text, language or "en")
    text = text if is_exact else begun(text, language)
    if request.punctuate is not None:
        spoken = request.punctuate(text)
    else:
        rules = getattr(tokenizer, "rules", None) or (ENGLISH if hp is None else rules_of(hp))
        spoken = speakable(text, rules if is_exact else with_all_enders(rules))
    return torch.atleast_2d(torch.as_tensor(tokens_by(tokenizer, spoken, named, exact=is_exact)))[0]


def utterance_seed(seed: int | None, index: int) -> int | None:
    """The seed of a request's utterance: the request's own for the first, another for each that follows."""
    return None if seed is None else (seed + index * SEED_STEP) % 2**63


def with_seed(request: SynthesisRequest) -> SynthesisRequest:
    """The request with a seed; one that has none gets it from torch's global generator."""
    return request if request.seed is not None else replace(request, seed=int(torch.randint(2**62, (1,), device="cpu")))
