"""Something that a user is told once.

Owns: that it is once. Does not know: what it is.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("chatterbox")


class Notice:
    """A warning in the log, the first time that it is told while it is due."""

    def __init__(self, message: str, *, is_due: bool = False) -> None:
        self.message, self.is_due, self.was_given = message, is_due, False

    def tell(self) -> None:
        if self.is_due and not self.was_given:
            self.was_given = True
            logger.warning(self.message)
