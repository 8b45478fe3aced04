"""Text normalisation against chatterbox-tts 0.1.7, and the English tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from chatterbox.models.tokenizers import EnTokenizer
from chatterbox.text.normalize import EMPTY_TEXT, ENGLISH, MULTILINGUAL, TURBO, punc_norm, speakable
from tests.parity.support import load_json
from tests.support.folders import SMALL, write_tokenizer


@pytest.mark.parametrize(("model", "rules"), [("tts", ENGLISH), ("mtl", MULTILINGUAL), ("turbo", TURBO)])
def test_punctuation_is_upstreams(model, rules):
    cases = load_json("text_punc_norm")["cases"]
    assert [punc_norm(case["in"], rules) for case in cases] == [case[model] for case in cases]


def test_the_empty_text_asks_for_some():
    assert speakable("") == EMPTY_TEXT and EMPTY_TEXT not in speakable("...")


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["list"]])
def test_text_must_be_a_string(text):
    with pytest.raises(TypeError, match=f"must be a string, got {type(text).__name__}"):
        speakable(text)


@pytest.fixture
def tokenizer(tmp_path) -> EnTokenizer:
    write_tokenizer(tmp_path / "tokenizer.json", SMALL.t3)
    return EnTokenizer(tmp_path / "tokenizer.json")


def test_tokenizer_is_given_what_upstream_gives(tokenizer):
    seen = []
    tokenizer.tokenizer = SimpleNamespace(encode=lambda text: seen.append(text) or SimpleNamespace(ids=[]))
    cases = load_json("text_multilingual")["english"]
    for case in cases:
        tokenizer.encode(case["in"])
    assert seen == [case["to_bpe"] for case in cases]


@pytest.mark.parametrize("mark", ["[STOP]", "[START]", "[UNK]", "[SPACE]", "[en]"])
def test_marks_in_a_text_are_spelt(tokenizer, mark):
    ids = tokenizer.text_to_tokens(f"Press {mark} now.", exact=False)[0].tolist()
    letters = [tokenizer.tokenizer.token_to_id(letter) for letter in mark]
    assert ids == tokenizer.encode("Press ") + letters + tokenizer.encode(" now.")
    assert tokenizer.tokenizer.token_to_id(mark) in tokenizer.encode(f"Press {mark} now.")  # as 0.1.7 does


def test_what_a_fine_tune_has_added_acts(tokenizer):
    tokenizer.tokenizer.add_special_tokens(["<haha>"])
    tokenizer.num_published = 200
    tokenizer.tokenizer.add_special_tokens(["[sob]"])
    added = tokenizer.tokenizer.token_to_id
    assert {added("<haha>"), added("[sob]")} <= set(tokenizer.encode("<haha> [sob]", exact=False))


def test_what_the_vocabulary_lacks_is_taken_apart(tokenizer):
    assert tokenizer.encode("café Ørsted 😀 here", exact=False) == tokenizer.encode("cafe Orsted here")
    assert tokenizer.encode("我", exact=False) == tokenizer.encode("我") == [1]  # [UNK]
    assert 1 in tokenizer.encode("café")  # as 0.1.7 does


def test_letters_that_the_vocabulary_lacks_are_told_of_once(tokenizer, caplog):
    for text in ("Hello 😀 café", "мир", "我", "Hello"):
        tokenizer.encode(text, exact=False)
    (record,) = caplog.records
    assert "letters that this model's vocabulary lacks" in record.getMessage() and "мир" not in record.getMessage()


def test_prose_has_the_tokens_of_0_1_7(tokenizer):
    text = "Hello there, World: it's \"fine\" - isn't it? (Yes; 100%!) & more/less @ #1."
    assert tokenizer.encode(text, exact=False) == tokenizer.encode(text)


def test_tokenizer_round_trip(tokenizer):
    tokens = tokenizer.text_to_tokens("Hello there, World.")
    assert tokens.dtype == torch.int32 and tokens.shape == (1, 19)
    assert tokens[0, 5] == 2  # [SPACE]
    assert tokenizer.decode(tokens[0]) == "Hello there, World."
    assert tokenizer.decode([*tokens[0].tolist(), 0]) == "Hello there, World."


def test_tokenizer_file_must_be_one(tmp_path):
    with pytest.raises(ValueError, match="not a readable tokenizer file"):
        EnTokenizer(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not a readable tokenizer file"):
        EnTokenizer(tmp_path / "broken.json")


def test_tokenizer_needs_start_and_stop(tmp_path):
    path = tmp_path / "tokenizer.json"
    write_tokenizer(path, SMALL.t3)
    path.write_text(path.read_text().replace("[START]", "[BEGIN]"))
    with pytest.raises(ValueError, match=r"lacks \[START\]"):
        EnTokenizer(path)
