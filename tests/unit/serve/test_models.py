"""What a call means to a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from chatterbox.serve.models import Defaults, ServedModel


def model(*, is_multilingual: bool, language: str | None = None) -> ServedModel:
    models: Any = SimpleNamespace(language=None, tokenizer=None)
    synthesizer: Any = SimpleNamespace(t3=SimpleNamespace(hp=SimpleNamespace(is_multilingual=is_multilingual)))
    return ServedModel("some", models, synthesizer, None, Defaults(language=language))


def test_a_call_a_voice_and_the_settings_name_the_language_in_this_order() -> None:
    one = model(is_multilingual=True, language="de")
    assert one.language("es", "fr") == "es" and one.language(None, "fr") == "fr" and one.language(None) == "de"
    assert model(is_multilingual=True).language(None) == "en"
    with pytest.raises(ValueError, match="language_id 'xx' is not supported"):
        one.language("xx")


def test_a_model_of_one_language_speaks_that() -> None:
    one = model(is_multilingual=False)
    assert one.language(None, "fr") is None and one.language("en-GB") is None
    with pytest.raises(ValueError, match="language must be en, which model some speaks alone, got 'fr'"):
        one.language("fr")
