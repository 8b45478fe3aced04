"""Guards against what goes wrong in an utterance: one class, one file, one line here each; see docs/guards.md."""

from __future__ import annotations

from chatterbox.engine.guards.alignment import AlignmentGuard
from chatterbox.engine.guards.guard import Guard
from chatterbox.engine.guards.light import LightGuard
from chatterbox.models.config import T3Config

GUARDS: dict[str, type[Guard]] = {"light": LightGuard, "alignment": AlignmentGuard}
NO_GUARD = "none"

__all__ = ["GUARDS", "AlignmentGuard", "Guard", "LightGuard", "check_guard", "guard_of"]


def check_guard(name: str, hp: T3Config | None = None) -> None:
    """Raise ValueError if there is no such guard, or a model has not got what it looks at."""
    if not isinstance(name, str) or (name != NO_GUARD and name not in GUARDS):
        raise ValueError(f"guard must be one of {', '.join((*GUARDS, NO_GUARD))}, got {name!r}")
    if hp is not None and name in GUARDS:
        GUARDS[name].check(hp)


def guard_of(name: str | None) -> type[Guard] | None:
    """The class of a guard; None for None and "none". Raises ValueError if there is no such guard."""
    if name is None:
        return None
    check_guard(name)
    return GUARDS.get(name)
