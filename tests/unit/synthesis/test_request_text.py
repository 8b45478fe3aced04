"""What a model is fed of a text: cleaned, in words, as the language has it, or exactly as chatterbox-tts 0.1.7."""

from __future__ import annotations

import logging
from functools import partial
from types import SimpleNamespace
from unicodedata import normalize

import pytest
import torch

from chatterbox.config import SpeechOptions
from chatterbox.models.tokenizers import EnTokenizer, TurboTokenizer
from chatterbox.mtl_tts import punc_norm as multilingual_punc_norm
from chatterbox.synthesis.request import SynthesisRequest, text_tokens_of, utterances_of
from chatterbox.text.normalize import ENGLISH, MULTILINGUAL, punc_norm
from chatterbox.tts import ChatterboxTTS

TRICKY = "**See** [it](u) ´a´ [STOP] \u200b’tis 3 <b>cats</b>;\n***\nDone\u037e"


class Listener:
    """A tokenizer that keeps what it is given; a token a character."""

    rules = MULTILINGUAL

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.exact: list[bool] = []

    def text_to_tokens(self, text: str, language_id: str | None = None, *, exact: bool = True) -> torch.Tensor:
        self.heard.append(text)
        self.exact.append(exact)
        return torch.zeros(1, len(text), dtype=torch.int32)


def request_of(text, **options) -> SynthesisRequest:
    return SynthesisRequest(text, SimpleNamespace(), **options)


def fed(text, tokenizer=None, max_len: int = 100, **options) -> list[str]:
    """What the tokenizer is given of each utterance."""
    listener, request = tokenizer or Listener(), request_of(text, **options)
    t3 = SimpleNamespace(hp=SimpleNamespace(utterance_text_len=max_len, max_text_tokens=1000))
    for one in utterances_of(t3, request, partial(text_tokens_of, Listener(), request)):
        text_tokens_of(listener, request, one.text)
    return listener.heard


def test_text_is_cleaned_before_it_is_punctuated():
    assert fed("**Bold** wor\u200bds") == fed(["**Bo", "ld** wor\u200b", "ds"]) == ["Bold words."]
    assert fed("**Bold** ´words´", cleaning="characters") == ["**Bold** 'words'."]


def test_exactly_as_before():
    listener = Listener()
    assert fed(TRICKY, listener, cleaning="none") == [multilingual_punc_norm(TRICKY)]
    assert listener.exact == [True]
    assert fed(TRICKY) != [multilingual_punc_norm(TRICKY)]


def test_markup_does_not_run_over_a_paragraph():
    pieces = list("No end here\n* * *\nIt began anew. And **went on**.")
    assert fed(pieces) == ["No end here.", "It began anew.", "And went on."]
    assert fed(["No end here\n* ", "* *\nIt began", " anew. And **went on**."]) == fed(pieces)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It ended.<p>It began.</p>", [("It ended.", 0.0), ("It began.", 0.5)]),
        ("It ended.<br><br>It began.", [("It ended.", 0.0), ("It began.", 0.5)]),
        ("It ended. * * * It began.", [("It ended.", 0.0), ("It began.", 0.5)]),
        ("One &lt;break time=&quot;2s&quot;/&gt; two", [("One", 0.0), ("two", 2.0)]),
        ("# Title\n</b>", [("Title", 0.0)]),
        ("One.\n\n&amp; [pause:1s]", [("One.", 0.0), ("", 1.0)]),
        ("\f| a | b |\n\f***\nIt began.", [("a, b", 0.0), ("It began.", 0.5)]),
    ],
)
def test_pauses_within_markup_are_those_of_the_whole_text(text, said):
    t3 = SimpleNamespace(hp=SimpleNamespace(utterance_text_len=100, max_text_tokens=1000))
    for given in (text, list(text), [text]):
        request = request_of(given)
        found = utterances_of(t3, request, partial(text_tokens_of, Listener(), request))
        assert [(one.text.strip(), one.pause) for one in found] == said
    request = request_of(list("One.<p>Two.</p>"), paragraph_pause=0)
    found = utterances_of(t3, request, partial(text_tokens_of, Listener(), request))
    assert [one.pause for one in found] == [0.0]


@pytest.mark.parametrize(
    ("language", "text", "given"),
    [
        ("el", "Τι κάνεις;", "Τι κάνεις?"),
        ("el", "Τι κάνεις\u037e", "Τι κάνεις?"),
        ("hi", "यह एक है।", "यह एक है।"),
        ("hi", "यह एक है॥", "यह एक है॥"),
        ("ar", "هل أنت هنا؟", "هل أنت هنا؟"),
        ("zh", "你好。", "你好。"),
        ("ja", "はい！", "はい！"),
        ("tr", "istanbul", "İstanbul."),
        ("tr", "ışık yandı.", "Işık yandı."),
        ("en", "istanbul", "Istanbul."),
    ],
)
def test_ends_of_sentences_and_capitals_of_a_language(language, text, given):
    assert fed(text, language_id=language) == [given]
    assert fed([text], language_id=language) == [given]


def test_turkish_from_the_text_to_the_bpe(mtl):
    for text, written in (("ışık yandı.", "[tr]ışık yandı."), ("IRMAK ILIK", "[tr]ırmak ılık."), ("iyi", "[tr]iyi.")):
        (given,) = fed(text, language_id="tr-TR")
        assert mtl.tokenizer.written(given, "tr-TR", exact=False) == normalize("NFKD", written)


def test_greek_questions_end_a_sentence():
    assert fed("Τι κάνεις; Είμαι καλά σήμερα.", max_len=22, language_id="el") == ["Τι κάνεις?", "Είμαι καλά σήμερα."]
    assert fed(list("Τι κάνεις εσύ τώρα; Είμαι καλά."), language_id="el") == ["Τι κάνεις εσύ τώρα?", "Είμαι καλά."]


def test_numbers_in_words_where_the_model_or_the_caller_wants_it():
    tokenizer = Listener()
    assert fed("3 cats", tokenizer) == ["3 cats."]
    assert fed("3 cats", normalize=True) == fed(["3 cats"], normalize=True) == ["Three cats."]
    assert fed("3 Katzen", normalize=True, language_id="de-AT") == ["Drei Katzen."]
    tokenizer.spells_numbers = True
    assert fed("3 cats", tokenizer)[-1] == "Three cats."
    assert fed("3 cats", tokenizer, normalize=False)[-1] == "3 cats."


def test_the_embedded_voice_wants_numbers_in_words():
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
    request = partial(request_of, "3 cats")
    ids = partial(text_tokens_of, tts.tokenizer)
    assert torch.equal(ids(request(), "3 cats"), ids(request(), "three cats"))
    assert not torch.equal(ids(request(normalize=False), "3 cats"), ids(request(), "three cats"))


def test_published_models_have_digits():
    assert not EnTokenizer.spells_numbers and not TurboTokenizer.spells_numbers


def test_a_tokenizer_of_the_callers_own_needs_no_new_argument():
    class Own:
        rules = ENGLISH

        def text_to_tokens(self, text: str) -> torch.Tensor:
            return torch.tensor([[len(text)]])

    assert text_tokens_of(Own(), request_of("x"), "Hello there").tolist() == [len(punc_norm("Hello there"))]


def test_replaced_methods_of_a_tokenizer_are_called_as_upstream_calls_them(mtl, monkeypatch):
    ids, seen = partial(text_tokens_of, mtl.tokenizer, request_of("x", language_id="en")), []
    monkeypatch.setattr(mtl.tokenizer, "preprocess_text", lambda *places, **names: seen.append(places[0]) or "hi")
    assert ids("Hello").tolist() == mtl.tokenizer.encode("hi", "en") and seen[0] == "Hello."
    monkeypatch.setattr(mtl.tokenizer, "encode", lambda words, language_id, lowercase, nfkd_normalize: [7, 8])
    assert ids("Hello").tolist() == [7, 8]


def test_what_is_said_is_that_of_the_clean_text(small_tts):
    say = partial(small_tts.generate, seed=1)
    assert torch.equal(say("**Hello** wor\u200bld ＡＢ"), say("Hello world AB"))
    assert not torch.equal(say("**Hello** world", cleaning="characters"), say("Hello world"))
    streamed = [chunk for chunk, _ in small_tts.generate_stream(["**Hel", "lo** world"], seed=1, print_metrics=False)]
    plain = [chunk for chunk, _ in small_tts.generate_stream(["Hello world"], seed=1, print_metrics=False)]
    assert torch.equal(torch.cat(streamed, 1), torch.cat(plain, 1))


def test_half_a_character_does_not_lose_a_batch(small_tts, caplog):
    with caplog.at_level(logging.WARNING, logger="chatterbox"):
        wavs = small_tts.generate_batch(["Hello.", "caf\udce9 is here"], seed=1)
    assert len(wavs) == 2 and torch.equal(wavs[0], small_tts.generate("Hello.", seed=1))
    assert "the first at 3" in caplog.records[0].getMessage()


def test_regions_and_other_codes_name_the_language(mtl):
    say = partial(mtl.generate, "Ola amigo", seed=1)
    assert torch.equal(say(language_id="pt-BR"), say(language_id="pt"))
    assert torch.equal(say(language_id="nb"), say(language_id="NO"))


@pytest.mark.parametrize(("name", "value"), [("cleaning", "all"), ("normalize", "yes"), ("normalize", 1)])
def test_other_values_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
        SpeechOptions(**{name: value})
