"""A transformers that is older than its caches are supported: the rest of the package works there."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest


def test_an_older_transformers_is_named_with_the_remedy(monkeypatch):
    old = ModuleType("transformers")
    old.__version__ = "4.46.3"
    monkeypatch.setitem(sys.modules, "transformers", old)
    monkeypatch.delitem(sys.modules, "chatterbox.integrations.transformers_cache", raising=False)
    with pytest.raises(ImportError, match=r"needs transformers 5\.2 or newer, 4\.46\.3 is installed; pip install -U"):
        importlib.import_module("chatterbox.integrations.transformers_cache")
