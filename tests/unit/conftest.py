"""One small T3 with random weights for all tests of decoding."""

from __future__ import annotations

import pytest
import torch

from chatterbox.models.t3 import T3
from tests.unit.small import SMALL


@pytest.fixture(scope="session")
def t3() -> T3:
    """Shared between tests: read only."""
    torch.manual_seed(0)
    return T3(SMALL).eval()
