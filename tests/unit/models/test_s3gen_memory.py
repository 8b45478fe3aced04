"""The estimator's memory of frames: what is remembered is what attention that looks back alone would have made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chatterbox.models.s3gen import S3Gen
from chatterbox.models.s3gen.cfm import Steps, cosine_times
from chatterbox.models.s3gen.estimator import ConditionalDecoder
from chatterbox.models.s3gen.flow import Prompt
from chatterbox.models.s3gen.memory import FlowMemory, FlowPass, _remembered
from tests.unit.models.test_s3gen import build, make_ref, make_tokens

KEYS = ("prompt_token", "prompt_token_len", "prompt_feat", "embedding")
CLOSE = {"rtol": 2e-3, "atol": 2e-3}  # what is remembered has 16 bits
KINDS = pytest.mark.parametrize("meanflow", [False, True])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def solve(model: S3Gen, inputs: dict[str, Tensor], frames: slice, passing: FlowPass) -> Tensor:
    mu, cond, z = (inputs[name][..., frames] for name in ("mu", "cond", "z"))
    with torch.inference_mode():
        return model.flow.decoder(mu, None, inputs["spks"], cond, 3, z=z, frames=passing)


@pytest.fixture(params=[False, True], ids=["guided", "meanflow"])
def model(request: pytest.FixtureRequest) -> S3Gen:
    return build(request.param)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {
        "mu": normal(1, 80, 20),
        "cond": normal(1, 80, 20, seed=1),
        "z": normal(1, 80, 20, seed=2),
        "spks": normal(1, 80, seed=3),
    }


def without_future(model: S3Gen, inputs: dict[str, Tensor], end: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The mel of all frames, those before ``end`` seeing nothing from it on."""
    scaled_dot_product_attention = torch.nn.functional.scaled_dot_product_attention
    sees = torch.ones(20, 20, dtype=torch.bool)
    sees[:end, end:] = False

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=sees)

    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
        return model.flow.decoder(inputs["mu"], None, inputs["spks"], inputs["cond"], 3, z=inputs["z"])


def test_frames_after_remembered_ones_are_as_in_one_pass_that_looks_back(
    model: S3Gen, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FlowPass(keep=12)
    solve(model, inputs, slice(0, 12), first)
    assert first.kept.num_frames == 12 and len(first.kept.steps) == 3
    mel = solve(model, inputs, slice(12, 20), FlowPass([first.kept], keep=0))
    whole = without_future(model, inputs, 12, monkeypatch)
    torch.testing.assert_close(mel, whole[..., 12:], **CLOSE)
    alone = solve(model, inputs, slice(12, 20), FlowPass(keep=0))
    assert (mel - alone).abs().max() > 1e-2  # so the memory was used


def test_some_of_the_frames_of_a_pass_are_kept(model: S3Gen, inputs: dict[str, Tensor]) -> None:
    """What is kept of the first frames of a pass is in the last layer's eyes what a pass of them alone keeps."""
    passes = [FlowPass(keep=5), FlowPass(keep=5)]
    solve(model, inputs, slice(0, 20), passes[0])
    solve(model, inputs, slice(0, 5), passes[1])
    for kept in (one.kept for one in passes):
        assert kept.num_frames == 5
    ours, alone = (one.kept.steps[0] for one in passes)
    torch.testing.assert_close(ours.tails[0], alone.tails[0])  # the first convolution has seen no attention
    torch.testing.assert_close(ours.keys[0], alone.keys[0])


def test_memories_follow_each_other(model: S3Gen, inputs: dict[str, Tensor]) -> None:
    """Two memories in a row are as good as one of all of their frames, as far as the second saw what the one did."""
    voice, piece = FlowPass(keep=8), None
    solve(model, inputs, slice(0, 8), voice)
    piece = FlowPass([voice.kept], keep=4)
    solve(model, inputs, slice(8, 12), piece)
    joined = voice.kept.followed_by(piece.kept)
    assert joined.num_frames == 12
    both, one = (
        solve(model, inputs, slice(12, 20), FlowPass(past, keep=0)) for past in ([voice.kept, piece.kept], [joined])
    )
    torch.testing.assert_close(both, one, rtol=1e-5, atol=1e-5)
    short = joined.last(5)
    assert short.num_frames == 5 and short.nbytes < joined.nbytes
    assert torch.equal(short.steps[0].keys[0], joined.steps[0].keys[0][:, :, -5:])
    assert all(map(torch.equal, short.steps[0].tails, joined.steps[0].tails))


@pytest.mark.parametrize("num_unguided", [0, 1, 2, 3, 7])
def test_steps_without_guidance_take_one_row(num_unguided: int, inputs: dict[str, Tensor]) -> None:
    decoder = build().flow.decoder
    frames, x = FlowPass(keep=20), decoder.config.noise_temperature * inputs["z"]
    with torch.inference_mode():
        mel = decoder(
            inputs["mu"], None, inputs["spks"], inputs["cond"], 3, z=inputs["z"], frames=frames,
            num_unguided=num_unguided,
        )  # fmt: skip
        conditions, times, rate = [inputs[name] for name in ("mu", "spks", "cond")], cosine_times(3), 0.7
        for i in range(3):
            velocity = velocity_of(decoder.estimator, x, times[i], conditions)
            if i >= num_unguided:
                without = velocity_of(decoder.estimator, x, times[i], [0 * part for part in conditions])
                velocity = (1 + rate) * velocity - rate * without
            x = x + (times[i + 1] - times[i]) * velocity
    torch.testing.assert_close(mel, x, rtol=1e-4, atol=1e-4)
    rows = tuple(len(step.keys[0]) for step in frames.kept.steps)
    assert rows == decoder.memory_shape(Steps(3, num_unguided)).num_rows
    assert rows == tuple(1 if i < num_unguided else 2 for i in range(3))


def velocity_of(estimator: ConditionalDecoder, x: Tensor, time: Tensor, conditions: list[Tensor]) -> Tensor:
    mu, spks, cond = conditions
    return estimator(x, None, mu, time[None], spks, cond)


def test_what_16_bits_do_not_hold_is_cut() -> None:
    """NaN stays NaN, for whoever looks for it."""
    given = torch.tensor([1.0, 1e6, -1e6, float("nan")])
    kept = _remembered(given)
    assert kept.dtype == torch.float16 and kept[:3].tolist() == [1.0, 65504.0, -65504.0] and kept[3].isnan()
    for dtype in (torch.bfloat16, torch.float64):
        assert _remembered(given.to(dtype)).dtype == dtype


@KINDS
@pytest.mark.parametrize("extra_frames", [-2, -1, 0, 1])
def test_the_flow_resumes_behind_its_prompt(meanflow: bool, extra_frames: int) -> None:
    model, ref, tokens = build(meanflow), make_ref(6, extra_frames=extra_frames), make_tokens(1, 7)
    prompt = Prompt(*(ref[key] for key in KEYS))
    z = normal(1, 80, 26)
    memory = model.flow.remember(prompt, z=z)
    num_known = 12 + min(0, extra_frames)
    assert memory.num_frames == num_known
    for finalize in (True, False):
        frames = FlowPass([memory], keep=3)
        mel = model.flow.resume(tokens, prompt, finalize, frames, z=z[..., num_known:], start=num_known)
        exact, other = (
            model.flow(tokens, None, *prompt, finalize, z=noise)
            for noise in (z, torch.cat([z[..., :12], -z[..., 12:]], 2))
        )
        assert mel.shape == exact.shape and frames.kept.num_frames == 3
        assert (mel - exact).abs().mean() < 0.5 * (exact - other).abs().mean()


def test_a_piece_goes_on_behind_the_last(model: S3Gen) -> None:
    """The second piece sees prompt and first piece by their memories; its frames are those of one pass, nearly."""
    ref, tokens, z = make_ref(6), make_tokens(1, 12), normal(1, 80, 36)
    prompt = Prompt(*(ref[key] for key in KEYS))
    memory = model.flow.remember(prompt, z=z)
    remembering = FlowPass([memory], keep=16)
    whole, first = (
        model.flow.resume(tokens, prompt, True, frames, z=z[..., 12:], start=12)
        for frames in (FlowPass([memory], keep=0), remembering)
    )
    later = FlowPass([memory, remembering.kept], keep=0)
    second = model.flow.resume(tokens, prompt, True, later, z=z[..., 28:], start=28)
    assert torch.equal(first, whole) and second.shape == (1, 80, 8)
    torch.testing.assert_close(second, whole[..., 16:], **CLOSE)


def test_nothing_remembered_is_written_to(model: S3Gen) -> None:
    ref, tokens, z = make_ref(6), make_tokens(1, 7), normal(1, 80, 26)
    prompt = Prompt(*(ref[key] for key in KEYS))
    memory = model.flow.remember(prompt, z=z)
    before = [part.clone() for part in parts_of(memory)]
    for _ in range(2):
        model.flow.resume(tokens, prompt, True, FlowPass([memory], keep=14), z=z[..., 12:], start=12)
    assert all(map(torch.equal, before, parts_of(memory)))


def parts_of(memory: FlowMemory) -> list[Tensor]:
    return [part for step in memory.steps for part in (*step.keys, *step.values, *step.tails)]
