"""What torch is set to while this package works: nothing of a caller's; or to make shapes without memory.

Owns: which of these settings there are. Does not know: the work. Settings of the whole process are not touched: other
threads have them too. What depends on torch's default dtype names its own where it is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

KINDS = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def own_context() -> Iterator[None]:
    """Compute as a thread does in which nobody has set anything; also a decorator of functions, not of generators.

    Autocast is off, new tensors are on the CPU unless a device is named, and none is an inference tensor.
    """
    with ExitStack() as stack:
        for kind in KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":  # of `torch.set_default_device`, or ``with torch.device(...)``
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield


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
