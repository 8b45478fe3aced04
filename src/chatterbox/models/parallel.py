"""Parts of a model that a program has wrapped for several devices.

Owns: what such a wrapper holds. Does not know: what the parts are.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)


def unwrapped(part: Any) -> Any:
    """``part``, or what `nn.DataParallel` or its distributed kind wraps: speech goes past its ``forward``."""
    if not isinstance(part, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return part
    logger.warning("%s is left out: it divides batches in forward; the part speaks as it is", type(part).__name__)
    return part.module
