"""One small T3 with random weights for all tests of decoding."""

from __future__ import annotations

import pytest

from chatterbox.models.t3 import T3
from tests.support.small import SMALL, build


@pytest.fixture(scope="session")
def t3() -> T3:
    """Shared between tests: read only."""
    return build(SMALL)
