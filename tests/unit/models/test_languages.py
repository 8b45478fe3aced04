"""Text of 23 languages, against what the published package hands to its BPE."""

from __future__ import annotations

import json
import logging
import sys
from types import ModuleType, SimpleNamespace
from unicodedata import normalize

import pytest
import torch

from chatterbox.models.tokenizers import MTLTokenizer, languages
from tests.parity.support import load_json
from tests.support.folders import SMALL, write_tokenizer

GOLDEN = load_json("text_multilingual")
OPTIONAL = {"zh": "spacy_pkuseg", "ja": "pykakasi", "he": "dicta_onnx", "ru": "russian_text_stresser.text_stresser"}


@pytest.fixture(autouse=True)
def forget():
    """Helpers and tables are looked for once a process; here once a test."""
    languages.cangjie.cache_clear()
    languages._helper.cache_clear()


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path / "mtl.json", SMALL.t3)
    codes = GOLDEN["cangjie_table"]["cj2word"]
    entries = [f"{word}\t{code}" for code, words in codes.items() for word in words]
    (tmp_path / languages.CANGJIE_FILE).write_text(json.dumps(entries), encoding="utf-8")
    return tmp_path


@pytest.fixture
def tokenizer(folder) -> MTLTokenizer:
    return MTLTokenizer(folder / "mtl.json")


def absent(monkeypatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("case", GOLDEN["multilingual"], ids=lambda case: f"{case['language_id']} {case['in']}")
def test_what_the_bpe_gets(tokenizer, case, monkeypatch):
    absent(monkeypatch, "spacy_pkuseg")  # so were the goldens made
    seen = []
    tokenizer.tokenizer = SimpleNamespace(encode=lambda text: seen.append(text) or SimpleNamespace(ids=[5, 6]))
    tokens = tokenizer.text_to_tokens(case["in"], language_id=case["language_id"])
    assert seen == [case["to_bpe"]]
    assert tokens.dtype == torch.int32 and tokens.tolist() == [[5, 6]]


def test_words_are_separated_where_the_segmenter_is_installed(tokenizer, monkeypatch):
    package = ModuleType("spacy_pkuseg")
    package.pkuseg = lambda: SimpleNamespace(cut=lambda text: [text[:2], text[2:]])
    monkeypatch.setitem(sys.modules, "spacy_pkuseg", package)
    assert tokenizer.written("你好世界", "zh").count(" ") == 1


@pytest.mark.parametrize("language", OPTIONAL)
def test_without_its_helper_text_goes_on_with_one_warning(tokenizer, language, monkeypatch, caplog):
    absent(monkeypatch, OPTIONAL[language])
    with caplog.at_level(logging.WARNING, logger="chatterbox"):
        assert [tokenizer.written("東 אב мы", language) for _ in range(2)] == [f"[{language}]東 אב мы"] * 2
    (record,) = caplog.records
    assert "is not installed: " in record.getMessage() and "install" in record.getMessage().partition("; ")[2]


def test_a_helper_that_fails_is_left_out(tokenizer, monkeypatch, caplog):
    def fails(text):
        raise OSError("no model")

    package = ModuleType("dicta_onnx")
    package.Dicta = lambda: SimpleNamespace(add_diacritics=fails)
    monkeypatch.setitem(sys.modules, "dicta_onnx", package)
    assert tokenizer.written("אב", "he") == "[he]אב"
    assert "dicta_onnx failed (OSError): Hebrew gets no vowel marks" in caplog.text


def test_a_helper_that_cannot_start_is_left_out(tokenizer, monkeypatch, caplog):
    """As dicta_onnx, which wants a model file that nobody named."""

    def fails():
        raise TypeError("model_path is missing")

    package = ModuleType("dicta_onnx")
    package.Dicta = fails
    monkeypatch.setitem(sys.modules, "dicta_onnx", package)
    assert [tokenizer.written("אב", "he") for _ in range(2)] == ["[he]אב"] * 2
    assert [r.getMessage() for r in caplog.records] == [
        "dicta_onnx failed (model_path is missing): Hebrew gets no vowel marks"
    ]


@pytest.mark.parametrize("content", [None, "{", '{"a": 1}', "[1]", '["ab"]'])
def test_a_table_that_cannot_be_read_is_a_warning(folder, content, monkeypatch, caplog):
    absent(monkeypatch, "spacy_pkuseg")
    path = folder / languages.CANGJIE_FILE
    path.unlink() if content is None else path.write_text(content)
    tokenizer = MTLTokenizer(folder / "mtl.json")
    assert tokenizer.written("你好", "zh") == "[zh]你好"
    assert f"{path} cannot be read" in caplog.text


def bpe_gets(tokenizer: MTLTokenizer, text: str, language: str) -> list[str]:
    """What the BPE is given of a text that was cleaned, in the parts that no token crosses."""
    seen = []
    tokenizer.tokenizer = SimpleNamespace(
        encode=lambda part: seen.append(part) or SimpleNamespace(ids=[5, 6]),
        get_added_tokens_decoder=tokenizer.tokenizer.get_added_tokens_decoder,
        token_to_id=lambda token: None,  # no character is unknown
    )
    tokenizer.text_to_tokens(text, language_id=language, exact=False)
    return seen


@pytest.mark.parametrize(
    ("language", "text", "given"),
    [
        ("tr", "Işık yandı.", "[tr]ışık yandı."),
        ("tr", "IRMAK ILIK", "[tr]ırmak ılık"),
        ("tr", "İstanbul IĞDIR", "[tr]istanbul iğdir".replace("iğdir", "ığdır")),
        ("en", "İstanbul", "[en]istanbul"),
        ("ja", "学ぶ", "[ja]まなぶ"),
        ("ja", "選ぶ。急ぐ", "[ja]えらぶ。いそぐ"),
        ("ja", "ガギグ ﾎﾟｽﾄ", "[ja]ガギグ ポスト"),
        ("ko", "안녕하세요", "[ko]안녕하세요"),
        ("el", "ΚΌΣΜΟΣ", "[el]κόσμος"),
        ("de", "Straße ÄÖÜ", "[de]straße äöü"),
        ("fr", "Élève", "[fr]élève"),
    ],
)
def test_case_and_readings_before_characters_are_taken_apart(tokenizer, language, text, given):
    assert bpe_gets(tokenizer, text, language) == [normalize("NFKD", given).replace(" ", "[SPACE]")]


def test_stress_marks_are_looked_up_for_whole_letters(tokenizer, monkeypatch):
    package = ModuleType("russian_text_stresser")
    module = ModuleType("russian_text_stresser.text_stresser")
    known = {"мой ёж": "мо\u0301й ёж"}
    module.RussianTextStresser = lambda: SimpleNamespace(stress_text=lambda text: known.get(text, text))
    monkeypatch.setitem(sys.modules, "russian_text_stresser", package)
    monkeypatch.setitem(sys.modules, "russian_text_stresser.text_stresser", module)
    assert bpe_gets(tokenizer, "Мой ёж", "ru") == ["[ru]" + normalize("NFKD", "мо\u0301й[SPACE]ёж")]


@pytest.mark.parametrize("mark", ["[EN]", "[fr]", "［ｆｒ］"])
def test_a_language_in_the_text_is_text(tokenizer, mark):
    plain = normalize("NFKC", mark).lower()
    assert bpe_gets(tokenizer, f"a {mark} b", "en") == ["[en]a[SPACE][", f"{plain[1:]}[SPACE]b"]


def test_chinese_codes_stay_whole(tokenizer, monkeypatch):
    absent(monkeypatch, "spacy_pkuseg")
    assert bpe_gets(tokenizer, "你好", "zh") == ["[zh][cj_o][cj_n][cj_f][cj_.][cj_v][cj_n][cj_d][cj_.]"]


@pytest.mark.parametrize(
    ("given", "language"),
    [
        *[("pt-BR", "pt"), ("PT_br", "pt"), ("zh-CN", "zh"), ("zh-Hans-CN", "zh"), ("en-US", "en"), ("nb", "no")],
        *[("nn_NO", "no"), ("CMN", "zh"), ("iw", "he"), ("deu", "de")],
        *((code, code) for code in languages.LANGUAGES),
    ],
)
def test_codes_with_regions_and_other_codes(given, language):
    assert languages.check_language(given) == languages.check_language(given.upper()) == language


@pytest.mark.parametrize("language", ["EN", "Zh"])
def test_codes_in_any_case(tokenizer, language, monkeypatch):
    absent(monkeypatch, "spacy_pkuseg")
    assert tokenizer.written("x", language) == f"[{language.lower()}]x"


@pytest.mark.parametrize("language", ["xx", "", "english", 5, "en-", "en-us!", "yue", "xx-EN", "no way"])
def test_unknown_language(tokenizer, language):
    with pytest.raises(ValueError, match=r"language_id .* is not supported; choose from ar, da, de, .*, zh"):
        tokenizer.text_to_tokens("x", language)
    assert len(languages.LANGUAGES) == 23
