"""Functions that programs put others in place of: whether one is still this package's own, and how to call another.

Owns: the list of those functions. Does not know: what they do, nor where upstream calls them.

Programs wrap a model's methods to time, log or change what they do. Where this package would not call the method
itself, as its work is done elsewhere, it asks here first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

PACKAGE = "chatterbox."
_OWN: list[Callable[..., Any]] = []


def replaceable(function: Function) -> Function:
    """Mark a function as this package's own. Outermost of its decorators."""
    _OWN.append(function)
    return function


def replacement(owner: Any, name: str) -> Callable[..., Any] | None:
    """What a program has put in place of ``owner.name``, on the object, its class or a subclass; None: nothing."""
    found = getattr(owner, name)
    return None if _is_own(found) and _belongs(found, owner) else found


def functions_on(one: object) -> list[Callable[..., Any]]:
    """What a program has put on an object, and hides a function of its class."""
    return [value for name, value in vars(one).items() if callable(value) and hasattr(type(one), name)]


def has_functions_of_others(module: Any) -> bool:
    """Whether a program has put functions on a torch module of this package, or on its class, or hooks."""
    own, kind = vars(module), type(module)
    if own["_forward_hooks"] or own["_forward_pre_hooks"]:
        return True
    if functions_on(module):
        return True
    functions = [value for value in vars(kind).values() if callable(value) and not isinstance(value, type)]
    return kind.__module__.startswith(PACKAGE) and not all(map(_is_of_package, functions))


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


def _is_of_package(function: Callable[..., Any]) -> bool:
    return getattr(function, "__module__", "").startswith(PACKAGE)


def _belongs(found: Callable[..., Any], owner: Any) -> bool:
    """Whether a function of this package is that of ``owner``, and not another model's or module's."""
    if isinstance(owner, ModuleType):
        return found.__module__ == owner.__name__
    bound_to = getattr(found, "__self__", owner)  # of a module that an adapter wraps, where one does
    return bound_to is owner or any(one is bound_to for one in getattr(owner, "modules", tuple)())


def _is_own(found: Callable[..., Any]) -> bool:
    function = getattr(found, "__func__", found)
    return any(function is own for own in _OWN)
