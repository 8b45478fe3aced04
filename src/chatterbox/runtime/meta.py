"""What is built has shapes, and no memory.

Owns: torch's meta device, where it is fast. Does not know: what is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class ShapesAlone(TorchFunctionMode):
    """Puts what `torch.empty` makes, as modules do for their parameters, on the meta device. What is counted, and
    computed from that, is computed as usual, on the CPU.

    Much of what torch does there it does in Python, and imports its compiler for it: that takes longer than loading a
    small model, and 50 MB. ``with torch.device("meta")`` would have it import all of that for a ``torch.arange``.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        elif func is torch.arange and str(kwargs.get("device")) == "meta":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)
