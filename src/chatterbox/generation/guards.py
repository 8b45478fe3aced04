"""When an utterance must not end yet, and when it must: read from where T3 looks in the text.

Owns: the decisions, for N requests at once, by device tensors alone. Does not know: where attention comes from, how
tokens are drawn.

The published multilingual model comes with such a guard. A few of its heads follow the text as it is spoken; their mean
attention over the text's columns, a row per frame, tells the position. The rules and their numbers are that guard's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

END_COLUMNS = 3  # the text counts as spoken from its third last column on
REPEATED_COLUMNS = 5  # looking back beyond these, when all is spoken, is saying it again
PATIENCE = 5.0  # attention summed over frames
STEP_BACK, STEP_AHEAD = -4, 7  # a jump of the position outside of these is not believed
LOUD = 32768.0  # logit of what is forced


@dataclass
class AlignmentGuard:
    """State of N requests, each tensor with N rows. `AlignmentGuard.start` makes one."""

    text_len: Tensor  # (N, 1)
    columns: Tensor  # (1, S)
    frame: Tensor  # (N, 1), calls so far
    position: Tensor  # (N, 1), column that is being spoken
    complete: Tensor  # (N, 1) bool, sticky
    tail: Tensor  # (N, S), attention since `complete`
    repeated: Tensor  # (N, 1), attention to what is spoken since `complete`
    history: Tensor  # (N, repeats), the last tokens, -1 where there was none
    num_seen: Tensor  # (N, 1), tokens so far

    @classmethod
    def start(cls, text_lens: Tensor, max_text_len: int, *, repeats: int = 3) -> AlignmentGuard:
        """For texts of ``text_lens`` (N,) tokens, start and stop included, at most ``max_text_len``.

        ``repeats``: so many equal tokens in a row end the utterance. The published guard ends it at two where it means
        three.
        """
        num, device = len(text_lens), text_lens.device
        zero = torch.zeros(num, 1, dtype=torch.long, device=device)
        return cls(
            text_len=text_lens[:, None].clone(),
            columns=torch.arange(max_text_len, device=device)[None],
            frame=zero.clone(),
            position=zero.clone(),
            complete=zero.bool(),
            tail=torch.zeros(num, max_text_len, device=device),
            repeated=torch.zeros(num, 1, device=device),
            history=torch.full((num, repeats), -1, device=device),
            num_seen=zero.clone(),
        )

    def look(self, attention: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Take a frame in; changes the state in place.

        Args:
            attention: (N, S), of the newest query to the text's columns, averaged over the heads; 0 beyond a text.
            last: (N, 1), the token drawn before, the start token at first.

        Returns:
            For each request (N, 1), whether it must not end now, and whether it must.
        """
        attention = attention * (self.columns <= self.frame)  # the text is spoken at most a column a frame
        spoken = attention.argmax(1, keepdim=True)
        jump = spoken - self.position
        self.position.copy_(torch.where((jump > STEP_BACK) & (jump < STEP_AHEAD), spoken, self.position))
        counts = attention * self.complete  # from the frame after the one that completed the text
        self.complete |= self.position >= self.text_len - END_COLUMNS
        self.tail += counts
        self.repeated += (counts * (self.columns < self.text_len - REPEATED_COLUMNS)).amax(1, keepdim=True)
        at_end = (self.columns >= self.text_len - END_COLUMNS) & (self.columns < self.text_len)
        long_tail = (self.tail * at_end).amax(1, keepdim=True) >= PATIENCE
        stuck = self._stuck(last)
        self.frame += 1
        must_go_on = (spoken < self.text_len - END_COLUMNS) & (self.text_len > REPEATED_COLUMNS)
        must_stop = (self.complete & (long_tail | (self.repeated > PATIENCE))) | stuck
        return must_go_on & ~must_stop, must_stop

    def _stuck(self, last: Tensor) -> Tensor:
        """Whether the last tokens are all the same; not before there are three."""
        self.history.copy_(torch.cat([self.history[:, 1:], last], dim=1))
        self.num_seen += 1
        return (self.history == last).all(1, keepdim=True) & (self.num_seen >= 3)


def guard_stop(logits: Tensor, must_go_on: Tensor, must_stop: Tensor, stop_token: int) -> Tensor:
    """Logits (N, V) under a guard's two decisions (N, 1)."""
    is_stop = torch.arange(logits.shape[1], device=logits.device) == stop_token
    logits = logits.masked_fill(must_go_on & is_stop, -LOUD)
    forced = torch.where(is_stop, LOUD, -LOUD).to(logits.dtype)
    return torch.where(must_stop, forced, logits)
