"""Functions that programs put others in place of: whether one is still this package's own, and how to call another.

Owns: the list of those functions. Does not know: what they do, nor where upstream calls them.

Programs wrap a model's methods to time, log or change what they do. Where this package would not call the method
itself, as its work is done elsewhere, it asks here first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_OWN: list[Callable[..., Any]] = []


def replaceable(function: Function) -> Function:
    """Mark a function as this package's own. Outermost of its decorators."""
    _OWN.append(function)
    return function


def replacement(owner: Any, name: str) -> Callable[..., Any] | None:
    """What a program has put in place of ``owner.name``, on the object, its class or a subclass; None: nothing."""
    found = getattr(owner, name)
    return None if _is_own(found) else found


def call(function: Callable[..., Any], upstream: Mapping[str, Any], ours: Mapping[str, Any], *places: Any) -> Any:
    """Call it as upstream calls it, ``places`` first, with those of ``ours`` that it has a parameter for."""
    if _is_own(function):
        return function(*places, **upstream, **ours)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of no Python function
        return function(*places, **upstream)
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    names = {one.name for one in parameters}
    return function(*places, **upstream, **{name: value for name, value in ours.items() if takes_all or name in names})


def _is_own(found: Callable[..., Any]) -> bool:
    function = getattr(found, "__func__", found)
    return any(function is own for own in _OWN)
