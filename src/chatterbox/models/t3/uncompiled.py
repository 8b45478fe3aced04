"""The parts of T3's backbone that `torch.compile` leaves as they are, and the warning that says so.

Owns: where a compiled part would come in: ``compile()``, a module put in place of another, an assigned ``forward``.
Does not know: what the parts compute.

A step is given a cache and objects that torch cannot trace, and has another length each time: a compiled part would
fail from deep inside, or be compiled again at every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from chatterbox.runtime.notice import Notice

LEFT_OUT = "torch.compile of T3's backbone is left out: its steps change with the cache; it runs as it is"


class Uncompiled(nn.Module):
    """A part of the backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.notice = Notice(LEFT_OUT, is_due=True)

    def compile(self, *_: Any, **__: Any) -> None:
        """Does nothing but say so."""
        self.notice.tell()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward" and hasattr(value, "_torchdynamo_orig_callable"):
            self.notice.tell()
            value = value._torchdynamo_orig_callable
            if value == self.forward:
                return
        super().__setattr__(name, uncompiled(value))


class Layers(Uncompiled, nn.ModuleList):
    """The layers of a backbone."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.extend(layers)


def share_notice(backbone: Uncompiled) -> None:
    """Let all parts of a backbone warn once together."""
    for part in backbone.modules():
        if isinstance(part, Uncompiled):
            part.notice = backbone.notice


def uncompiled(value: Any) -> Any:
    """``value``; where `torch.compile` made it of a part of the backbone, or of what holds one, what it made it of."""
    original = getattr(value, "_orig_mod", None) if isinstance(value, nn.Module) else None
    if original is None:
        return value
    part = next((one for one in original.modules() if isinstance(one, Uncompiled)), None)
    if part is None:
        return value
    part.notice.tell()
    return original
