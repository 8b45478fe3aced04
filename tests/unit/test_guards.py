"""The alignment guard's decisions, against those of chatterbox-tts 0.1.7's analyser."""

from __future__ import annotations

import pytest
import torch

from chatterbox.generation.guards import AlignmentGuard, guard_stop
from tests.parity.support import load_golden, load_json

CASE = "alignment_analyzer"
STATES = load_json(CASE)["states"]
STOP = load_json(CASE)["eos_idx"]
START = 6561


def frames(name: str) -> torch.Tensor:
    """(T, S): attention of the newest query of every call, averaged over the heads."""
    golden = load_golden(CASE)
    rows = torch.cat([golden[f"in.{name}.first_rows"][:, -1:], golden[f"in.{name}.rows"]], dim=1)
    return rows.mean(0)


def last_tokens(name: str) -> torch.Tensor:
    """(T,): what the analyser is told was drawn before."""
    return load_golden(CASE)[f"in.{name}.next_token"]


@pytest.mark.parametrize("name", STATES)
def test_upstreams_decisions(name):
    """With its slip, two equal tokens for three."""
    golden, attention = load_golden(CASE), frames(name)
    guard = AlignmentGuard.start(torch.tensor([attention.shape[1]]), attention.shape[1], repeats=2)
    for step, state in enumerate(STATES[name][: len(attention)]):  # one text ends with the analyser's failure
        decisions = guard.look(attention[step : step + 1], last_tokens(name)[step].view(1, 1))
        assert [bool(d) for d in decisions] == [state["suppressed"], state["forced"]], (name, step)
        assert (int(guard.position), bool(guard.complete)) == (state["text_position"], state["complete"])
        logits = guard_stop(golden[f"in.{name}.logits"][step][None], *decisions, STOP)[0]
        assert torch.equal(logits, golden[f"out.{name}.logits"][step])


def test_a_batch_decides_as_each_alone():
    names = [name for name in STATES if len(STATES[name]) >= 14]
    lens = torch.tensor([frames(name).shape[1] for name in names])
    widest = int(lens.max())
    together = AlignmentGuard.start(lens, widest)
    alone = [AlignmentGuard.start(lens[i : i + 1], int(lens[i])) for i in range(len(names))]
    assert len(set(lens.tolist())) > 1
    for step in range(14):
        rows = [frames(name)[step] for name in names]
        padded = torch.stack([torch.nn.functional.pad(row, (0, widest - len(row))) for row in rows])
        last = torch.stack([last_tokens(name)[step].view(1) for name in names])
        batch = together.look(padded, last)
        single = [guard.look(row[None], one[None]) for guard, row, one in zip(alone, rows, last, strict=True)]
        for decision, singles in zip(batch, zip(*single, strict=True), strict=True):
            assert torch.equal(decision, torch.cat(singles))


def test_two_equal_tokens_are_allowed_and_three_are_not():
    guard = AlignmentGuard.start(torch.tensor([12]), 12)
    attention = torch.zeros(1, 12)
    stops = [bool(guard.look(attention, torch.tensor([[token]]))[1]) for token in (START, 5, 5, 6, 6, 6, 7)]
    assert stops == [False, False, False, False, False, True, False]


@pytest.mark.parametrize("text_len", [1, 3, 5])
def test_a_text_of_few_tokens_can_end(text_len):
    """Upstream's analyser fails on these once the text is spoken."""
    guard = AlignmentGuard.start(torch.tensor([text_len]), text_len)
    attention = torch.zeros(1, text_len)
    attention[0, -1] = 1.0
    decisions = [guard.look(attention, torch.tensor([[token]])) for token in range(12)]
    assert bool(guard.complete) and not any(bool(must_go_on) for must_go_on, _ in decisions)
    assert bool(decisions[-1][1])  # it holds its last token for long
