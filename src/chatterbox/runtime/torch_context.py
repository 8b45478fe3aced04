"""What a caller has set for torch in its own thread: kept away from this package's work.

Owns: which of these settings there are. Does not know: the work. Settings of the whole process are not touched: other
threads have them too. What depends on torch's default dtype names its own where it is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

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
