"""Parts of a network whose weights are read when they are first used.

Owns: that they are there for whoever looks: by name, in a walk over modules or weights, in a state dict, a copy, a
move. Does not know: what the parts are, where weights come from.

Until then a part stands in its place with memory that nothing has touched, which takes none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import nn

from chatterbox.runtime import forking


class _Late:
    """Parts that wait for their weights."""

    def __init__(self, names: frozenset[str], fill: Callable[[nn.Module], None]) -> None:
        self.names, self._fill = names, fill
        forking.register(self, _Late._renew)

    def _renew(self) -> threading.RLock:
        self._lock = threading.RLock()
        self._is_filled = getattr(self, "_is_filled", False)
        return self._lock

    def fill(self, network: nn.Module) -> None:
        with self._lock:
            if not self._is_filled:
                self._fill(network)
                self._is_filled = True


class LateParts(nn.Module):
    """A network that may have such parts."""

    _late: _Late | None = None

    def fill_later(self, names: Collection[str], fill: Callable[[nn.Module], None]) -> None:
        """``fill`` reads this network's weights of the children ``names``; it is called once, before anyone sees them.

        If it raises, whoever wanted the part is told, and the next one tries again.
        """
        self.__dict__["_late"] = _Late(frozenset(names), fill)

    @property
    def waits(self) -> bool:
        """Whether parts wait for their weights."""
        return self._late is not None

    def fill(self) -> None:
        """Read the weights now, if they wait."""
        late = self._late
        if late is not None:
            late.fill(self)
            self.__dict__["_late"] = None

    def __getattr__(self, name: str) -> Any:  # what modules are found by
        late = self.__dict__.get("_late")
        if late is not None and name in late.names:
            self.fill()
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles."""
        self.fill()
        return dict(self.__dict__)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """As torch has it; so are those below."""
        self.fill()
        return super().named_children()

    def named_modules(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, nn.Module]]:
        self.fill()
        return super().named_modules(*arguments, **options)

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        self.fill()
        return super().state_dict(*arguments, **options)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        self.fill()
        return super().load_state_dict(*arguments, **options)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:  # of a network that this one is part of
        self.fill()
        super()._load_from_state_dict(*arguments, **options)
