"""Silent tokens from the energy of their frames."""

from __future__ import annotations

import torch

from tools.tiny_voice.silence import MIN_COUNT, frame_levels, silent_tokens

RATE, FRAME = 1000, 40


def audio_of(levels_db: list[float]) -> torch.Tensor:
    """A frame of a sine per level."""
    sine = torch.sin(torch.arange(FRAME) * 0.5)
    return torch.cat([sine * 10 ** (level / 20) for level in levels_db])


def test_levels_are_under_the_loudest_frame() -> None:
    levels = frame_levels(audio_of([-20.0, -6.0, -66.0]), RATE, 4)
    torch.testing.assert_close(levels[:3], torch.tensor([-14.0, 0.0, -60.0]), rtol=0.0, atol=0.01)
    assert levels[3] < -100  # nothing is heard of the last


def test_tokens_that_are_silent_wherever_they_stand() -> None:
    quiet, loud, mixed, rare = 7, 8, 9, 10
    speech_tokens = [quiet, loud, mixed] * MIN_COUNT + [rare]
    levels = [-60.0, 0.0, -60.0] * MIN_COUNT + [-60.0]
    levels[5] = -10.0  # one of the mixed
    assert silent_tokens([(torch.tensor(speech_tokens), audio_of(levels), RATE)]) == (quiet,)
    assert silent_tokens([(torch.tensor(speech_tokens), audio_of(levels), RATE)] * MIN_COUNT) == (quiet, rare)
    assert silent_tokens([]) == ()
