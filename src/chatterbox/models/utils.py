"""Upstream's import path of `AttrDict`."""

from __future__ import annotations

from typing import Any


class AttrDict(dict[str, Any]):
    """A dictionary whose keys are attributes too."""

    def __init__(self, *arguments: Any, **values: Any) -> None:
        super().__init__(*arguments, **values)
        self.__dict__ = self
