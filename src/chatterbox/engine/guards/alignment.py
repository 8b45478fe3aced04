"""The alignment guard: when an utterance must not end yet, and when it must, read from where T3 looks in the text.

Owns: the rules. Does not know: where attention comes from, how tokens are decoded.

The published multilingual model comes with such a guard. A few of its heads follow the text as it is spoken; their mean
attention over the text's columns, a row per frame, tells the position. The rules and their numbers are that guard's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from chatterbox.engine.guards.guard import ALL, Guard
from chatterbox.models.config import T3Config
from chatterbox.models.t3.attention import HeadReader

END_COLUMNS = 3  # the text counts as spoken from its third last column on
REPEATED_COLUMNS = 5  # looking back beyond these, when all is spoken, is saying it again
PATIENCE = 5.0  # attention summed over frames
STEP_BACK, STEP_AHEAD = -4, 7  # a jump of the position outside of these is not believed
REPEATS = 3  # so many equal tokens in a row end the utterance; the published guard ends it at two where it means three
COLUMN_STEP = 64  # texts are padded to multiples of it: batches of few different shapes need few graphs


@dataclass
class AlignmentGuard(Guard):
    """`Guard` of the published multilingual model, without its slips."""

    masks_logits: ClassVar[bool] = True

    text_start: Tensor  # (N, 1), position of the text's first token
    text_len: Tensor  # (N, 1), start and stop included
    attention: Tensor  # (N, S), of the newest query to the text's columns; 0 beyond a text. `reader` fills it
    position: Tensor  # (N, 1), column that is being spoken
    complete: Tensor  # (N, 1) bool, sticky
    tail: Tensor  # (N, S), attention since `complete`
    repeated: Tensor  # (N, 1), attention to what is spoken since `complete`
    history: Tensor  # (N, repeats), the last tokens, -1 where there was none

    @classmethod
    def check(cls, hp: T3Config) -> None:
        if not hp.alignment_heads:
            raise ValueError('guard "alignment" needs a model with alignment heads, this one has none; use "light"')
        for layer, head in hp.alignment_heads:
            if not (0 <= layer < hp.backbone.num_layers and 0 <= head < hp.backbone.num_heads):
                raise ValueError(f"alignment_heads names head {head} of layer {layer}, which the model does not have")

    @classmethod
    def start(
        cls, text_start: int, text_len: int, device: torch.device | str = "cpu", *, repeats: int = REPEATS
    ) -> AlignmentGuard:
        """``repeats``: so many equal tokens in a row end the utterance."""
        width = -(-text_len // COLUMN_STEP) * COLUMN_STEP
        zero = torch.zeros(1, 1, dtype=torch.long, device=device)
        return cls(
            places=zero[0].clone(),
            text_start=zero + text_start,
            text_len=zero + text_len,
            attention=torch.zeros(1, width, dtype=torch.float32, device=device),
            position=zero.clone(),
            complete=zero.bool(),
            tail=torch.zeros(1, width, dtype=torch.float32, device=device),
            repeated=torch.zeros(1, 1, dtype=torch.float32, device=device),
            history=torch.full((1, repeats), -1, device=device),
        )

    def reader(self, heads: tuple[tuple[int, int], ...], rows: Tensor, part: slice = ALL) -> HeadReader:
        start, length, out = self.text_start[part], self.text_len[part], self.attention[part]
        return HeadReader(heads, rows[self.places[part]], start, length, out)

    def look(self, last: Tensor, num_decoded: Tensor) -> tuple[Tensor, Tensor]:
        columns = torch.arange(self.attention.shape[1], device=last.device)
        attention = self.attention * (columns <= num_decoded)  # the text is spoken at most a column a frame
        spoken = attention.argmax(1, keepdim=True)
        jump = spoken - self.position
        self.position.copy_(torch.where((jump > STEP_BACK) & (jump < STEP_AHEAD), spoken, self.position))
        counts = attention * self.complete  # from the frame after the one that completed the text
        self.complete |= self.position >= self.text_len - END_COLUMNS
        self.tail += counts
        self.repeated += (counts * (columns < self.text_len - REPEATED_COLUMNS)).amax(1, keepdim=True)
        at_end = (columns >= self.text_len - END_COLUMNS) & (columns < self.text_len)
        long_tail = (self.tail * at_end).amax(1, keepdim=True) >= PATIENCE
        stuck = self._stuck(last, num_decoded)
        must_go_on = (spoken < self.text_len - END_COLUMNS) & (self.text_len > REPEATED_COLUMNS)
        must_stop = (self.complete & (long_tail | (self.repeated > PATIENCE))) | stuck
        return must_go_on & ~must_stop, must_stop

    def _stuck(self, last: Tensor, num_decoded: Tensor) -> Tensor:
        """Whether the last tokens are all the same; not before there are three, the start token among them."""
        self.history.copy_(torch.cat([self.history[:, 1:], last], dim=1))
        return (self.history == last).all(1, keepdim=True) & (num_decoded >= 2)
