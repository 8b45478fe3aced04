"""S3Gen in pieces of a stream: what is exact, what blends, and what is not kept."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor

from chatterbox import ChatterboxTTS
from chatterbox.models.s3gen import S3Gen, cfm
from chatterbox.models.s3gen.cfm import Steps
from chatterbox.models.s3gen.flow import FRAMES_PER_TOKEN
from chatterbox.models.s3gen.stream import (
    FILTER_HELD_FRAMES,
    HELD_FRAMES,
    FrameNoise,
    S3GenStream,
    can_remember,
    prompt_len,
    prompt_noise,
    remember_prompt,
    with_prompt_seconds,
)
from tests.unit.models.test_s3gen import HOP, PULSED, SAMPLES_PER_TOKEN, build, make_ref

CUTS = [(13, 20, 25), (1,) * 60, (4, 1, 1, 40), (30, 30), (59,), (3, 57)]


@pytest.fixture(scope="module")
def s3gen() -> S3Gen:
    return build()


@pytest.fixture(scope="module")
def tiny() -> ChatterboxTTS:
    return ChatterboxTTS.from_pretrained("cpu", model="tiny")


def speech_tokens(num: int = 60, seed: int = 3) -> Tensor:
    return torch.randint(0, 6561, (num,), generator=torch.Generator().manual_seed(seed))


def pieces(stream: S3GenStream, tokens: Tensor, cuts: tuple[int, ...]) -> list[Tensor]:
    """What each of ``cuts`` tokens gave, and the rest."""
    ends = [0, *itertools.accumulate(cuts)]
    said = [stream.push(tokens[start:end]) for start, end in itertools.pairwise(ends)]
    return [*said, stream.finish(tokens[ends[-1] :])]


def test_what_a_piece_sees_again_is_the_prompt_and_the_context(s3gen: S3Gen) -> None:
    reference, seen = make_ref(), []
    flow_inference = s3gen.flow_inference
    stream = S3GenStream(s3gen, reference, seed=1, context_len=8)

    def counted(**given: object) -> Tensor:
        seen.append(len(given["speech_tokens"]))
        return flow_inference(**given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3gen, "flow_inference", counted)
        for first, end in ((0, 5), (5, 9), (9, 30)):
            again, waiting = stream.num_seen_again, stream.num_waiting
            stream.push(speech_tokens()[first:end])
            assert again == prompt_len(reference) + seen[-1] - waiting - (end - first)
    assert stream.num_seen_again == prompt_len(reference) + 8


MODELS = {"standard": build, "meanflow": lambda: build(True), "pulses": lambda: build(config=PULSED)}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("extra_frames", [0, 1])
@pytest.mark.parametrize("cuts", CUTS, ids=len)
def test_pieces_are_as_long_as_the_whole(kind: str, extra_frames: int, cuts: tuple[int, ...]) -> None:
    model, reference = MODELS[kind](), make_ref(extra_frames=extra_frames)
    whole = S3GenStream(model, reference, seed=1).finish(speech_tokens())
    said = pieces(S3GenStream(model, reference, seed=1, context_len=8), speech_tokens(), cuts)
    assert torch.cat(said, dim=1).shape == whole.shape == (1, 60 * SAMPLES_PER_TOKEN - extra_frames * HOP)
    assert whole.isfinite().all() and all(part.isfinite().all() for part in said)


REMEMBERED = pytest.mark.parametrize("memory", ["prompt", "past"])


@REMEMBERED
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("extra_frames", [-1, 0, 1])
@pytest.mark.parametrize("cuts", [(13, 20, 25), (4, 1, 1, 40), (59,)], ids=len)
def test_pieces_are_as_long_as_the_whole_where_frames_are_remembered(
    kind: str, extra_frames: int, cuts: tuple[int, ...], memory: str
) -> None:
    model, reference = MODELS[kind](), make_ref(extra_frames=extra_frames)
    said = pieces(S3GenStream(model, reference, seed=1, context_len=8, memory=memory), speech_tokens(), cuts)
    assert torch.cat(said, dim=1).shape == (1, 60 * SAMPLES_PER_TOKEN - extra_frames * HOP)
    assert all(part.isfinite().all() for part in said)


@REMEMBERED
def test_what_is_remembered_of_a_voice_serves_all_its_streams(s3gen: S3Gen, memory: str) -> None:
    reference, cuts = make_ref(), (20, 20)
    voice = remember_prompt(s3gen, reference)
    for seed in (1, 2):
        alone, shared = (
            torch.cat(
                pieces(
                    S3GenStream(
                        s3gen, reference, seed=seed, memory=memory, voice=known and partial(nullcontext, known)
                    ),
                    speech_tokens(),
                    cuts,
                ),
                dim=1,
            )
            for known in (None, voice)
        )
        assert torch.equal(alone, shared)
    assert not torch.equal(prompt_noise(s3gen, reference), prompt_noise(s3gen, make_ref(seed=9)))


def test_with_the_past_remembered_only_new_frames_are_integrated(s3gen: S3Gen) -> None:
    """The estimator sees the frames that blend and the new ones; with the prompt alone the context as well."""
    seen: dict[str, list[int]] = {}
    noise = cfm._noise
    voice = remember_prompt(s3gen, make_ref())
    for memory in ("none", "prompt", "past"):
        lengths = seen[memory] = []

        def counted(mu: Tensor, *rest: object, lengths: list[int] = lengths) -> Tensor:
            lengths.append(mu.shape[2])
            return noise(mu, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cfm, "_noise", counted)  # called once a solve
            lent = partial(nullcontext, voice)
            stream = S3GenStream(s3gen, make_ref(), seed=1, context_len=8, memory=memory, voice=lent)
            pieces(stream, speech_tokens(), (23, 20))
    prompt, held = 10, HELD_FRAMES
    assert seen["none"] == [prompt + 40, prompt + 16 + 40, prompt + 16 + 40]
    assert seen["prompt"] == [40, 16 + 40, 16 + 40]
    assert seen["past"] == [40, held + 40, held + 40]


@pytest.mark.parametrize("memory", ["none", "prompt", "past"])
@pytest.mark.parametrize("num_unguided", [1, 3])
def test_guidance_is_left_out_of_a_streams_first_steps(s3gen: S3Gen, memory: str, num_unguided: int) -> None:
    """All of it without guidance is a model without; some of it lies between that and all with it."""
    said = {}
    for rate, unguided in ((0.7, 0), (0.7, num_unguided), (0.0, 0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(s3gen.flow.decoder, "inference_cfg_rate", rate)
            stream = S3GenStream(s3gen, make_ref(), seed=1, context_len=8, memory=memory, steps=Steps(3, unguided))
            said[rate, unguided] = torch.cat(pieces(stream, speech_tokens(), (23, 20)), dim=1)
    guided, some, never = said.values()
    assert guided.shape == some.shape and not torch.equal(some, guided)
    assert torch.equal(some, never) == (num_unguided == 3)


@REMEMBERED
def test_a_program_that_makes_mels_itself_is_asked_for_them(memory: str) -> None:
    model, calls = build(), []
    flow_inference = model.flow_inference

    def mine(**given: object) -> Tensor:
        calls.append(1)
        return flow_inference(**given)

    model.flow_inference = mine
    pieces(S3GenStream(model, make_ref(), seed=1, memory=memory), speech_tokens(), (20, 20))
    assert len(calls) == 3


@REMEMBERED
@pytest.mark.parametrize("part", ["flow", "flow.decoder", "flow.decoder.estimator"])
def test_what_a_program_puts_on_the_flow_is_called(memory: str, part: str) -> None:
    model, calls = build(), []
    assert can_remember(model)
    module = model.get_submodule(part)
    module.register_forward_hook(lambda *_: calls.append(1))
    pieces(S3GenStream(model, make_ref(), seed=1, memory=memory), speech_tokens(), (20, 20))
    assert len(calls) >= 3 and not can_remember(model)


@REMEMBERED
def test_the_embedded_voice_sounds_nearly_the_same_where_frames_are_remembered(
    tiny: ChatterboxTTS, memory: str
) -> None:
    """Mels of real tokens in pieces: remembering moves them less than to cut them into pieces does, twice over."""
    tokens = tiny.conds.gen["prompt_token"][0][:75]
    whole, cut, kept = (
        mel_of(S3GenStream(tiny.s3gen, tiny.conds.gen, seed=1, memory=how), tokens, cuts)
        for how, cuts in (("none", ()), ("none", (25, 25)), (memory, (25, 25)))
    )
    assert kept.shape == whole.shape
    assert (kept - cut).abs().mean() < 2 * (cut - whole).abs().mean() < 0.2


def mel_of(stream: S3GenStream, tokens: Tensor, cuts: tuple[int, ...]) -> Tensor:
    """What the vocoder was given of each frame, the last time that it got it."""
    frames: dict[int, Tensor] = {}
    vocode = stream._vocode

    def noted(noise: FrameNoise, spoken_end: int, end: int) -> Tensor:
        frames.update({stream._mel_start + i: column for i, column in enumerate(stream._mel[0].T)})
        return vocode(noise, spoken_end, end)

    stream._vocode = noted
    pieces(stream, tokens, cuts)
    return torch.stack([frames[place] for place in sorted(frames)])


@pytest.mark.parametrize("extra_frames", [0, 1])
def test_a_prompt_of_fewer_seconds(s3gen: S3Gen, extra_frames: int) -> None:
    reference = make_ref(60, extra_frames=extra_frames)
    short = with_prompt_seconds(reference, 1.0)
    assert prompt_len(short) == 25 and short["prompt_feat"].shape[1] == 50
    assert torch.equal(short["prompt_token"], reference["prompt_token"][:, :25])
    assert short["embedding"] is reference["embedding"] and prompt_len(reference) == 60
    for seconds in (None, 2.4, 10):
        assert with_prompt_seconds(reference, seconds) is reference
    whole = torch.cat(pieces(S3GenStream(s3gen, short, seed=1), speech_tokens(), (20, 20)), dim=1)
    assert whole.shape == (1, 60 * SAMPLES_PER_TOKEN)


def test_a_stream_of_one_piece_is_upstreams_call(s3gen: S3Gen) -> None:
    """Without a seed, in upstream's order of random numbers; with one, on the same noise handed in."""
    reference, tokens = make_ref(), speech_tokens(20)
    torch.manual_seed(5)
    expected, _ = s3gen.inference(tokens, ref_dict=reference)
    torch.manual_seed(5)
    assert torch.equal(S3GenStream(s3gen, reference).finish(tokens), expected)
    noise = FrameNoise(s3gen, 7)
    z = torch.cat([noise.mel(10), noise.mel(40)], dim=2)
    expected, _ = s3gen.inference(tokens, ref_dict=reference, z=z, phase=noise.phase, noise=noise.source(40))
    torch.testing.assert_close(S3GenStream(s3gen, reference, seed=7).finish(tokens), expected, atol=1e-6, rtol=1e-5)


def test_noise_depends_on_the_place_alone(s3gen: S3Gen) -> None:
    whole, parts = FrameNoise(s3gen, 7), FrameNoise(s3gen, 7)
    assert torch.equal(whole.phase, parts.phase) and not torch.equal(whole.phase, FrameNoise(s3gen, 8).phase)
    assert torch.equal(whole.mel(50), torch.cat([parts.mel(num) for num in (1, 0, 30, 19)], dim=2))
    assert torch.equal(whole.source(50), torch.cat([parts.source(num) for num in (49, 1)], dim=2))


class FixedMel:
    """The embedded voice's S3Gen whose flow gives frames of one mel, whatever it sees of the tokens."""

    def __init__(self, s3gen: S3Gen, mel: Tensor) -> None:
        self._s3gen, self._mel = s3gen, mel
        self.stream: S3GenStream | None = None
        self.calls: list[tuple[int, bool]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._s3gen, name)

    def flow_inference(self, speech_tokens: Tensor, ref_dict: dict, finalize: bool, z: Tensor) -> Tensor:
        first = FRAMES_PER_TOKEN * self.stream._first
        self.calls.append((len(speech_tokens), finalize))
        return self._mel[..., first : first + FRAMES_PER_TOKEN * (len(speech_tokens) - (0 if finalize else 3))]


@pytest.mark.parametrize("cuts", CUTS, ids=len)
def test_the_vocoder_goes_on_where_it_was(tiny: ChatterboxTTS, cuts: tuple[int, ...]) -> None:
    """On the same mel the waveform in pieces is the whole one: mel, excitation, phase and noise are carried."""
    voice = tiny.conds.gen
    mel = tiny.s3gen.flow_inference(speech_tokens(), ref_dict=voice, finalize=True)
    fixed = FixedMel(tiny.s3gen, mel)

    def said(cuts: tuple[int, ...]) -> Tensor:
        fixed.stream = S3GenStream(fixed, voice, seed=5)
        return torch.cat(pieces(fixed.stream, speech_tokens(), cuts), dim=1)

    whole = said(())
    assert whole.abs().max() > 0.1
    fixed.calls.clear()
    torch.testing.assert_close(said(cuts), whole, atol=1e-3, rtol=0)
    assert len(fixed.calls) > 1 and fixed.calls[-1][1]


def test_nothing_is_said_that_may_change(tiny: ChatterboxTTS) -> None:
    """Three tokens are looked ahead at, eight frames held; the first piece of ten tokens is 12 frames long."""
    stream = S3GenStream(tiny.s3gen, tiny.conds.gen, seed=5)
    assert stream.push(speech_tokens(3)).shape == (1, 0) and stream.num_waiting == 3
    assert stream.push(speech_tokens(10)).shape == (1, (FRAMES_PER_TOKEN * 10 - FILTER_HELD_FRAMES) * 480)
    assert stream.num_waiting == stream.lookahead_len == 3
    assert stream.finish().shape == (1, (FILTER_HELD_FRAMES + FRAMES_PER_TOKEN * 3) * 480) and stream.num_waiting == 0
    assert stream.finish().shape == (1, 0)


@pytest.mark.parametrize("memory", ["none", "prompt", "past"])
def test_what_is_kept_does_not_grow(s3gen: S3Gen, memory: str) -> None:
    """A thousand tokens in pieces of 25: tokens, mel, excitation, noise and memory of the last seconds are held."""
    stream = S3GenStream(s3gen, make_ref(), seed=1, context_len=20, memory=memory)

    def held() -> int:
        tensors = [value for value in vars(stream).values() if isinstance(value, Tensor)]
        for step in () if stream._past is None else stream._past.steps:
            tensors += [*step.keys, *step.values, *step.tails]
        return sum(
            {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values()
        )

    sizes = []
    for index in range(40):
        stream.push(speech_tokens(25, seed=index))
        sizes.append(held())
    assert max(sizes[4:]) <= sizes[3]


def test_a_stream_goes_on_behind_a_pause(tiny: ChatterboxTTS) -> None:
    """All is said at the pause, and what follows is as long as it is: a sentence may be long in coming."""
    stream = S3GenStream(tiny.s3gen, tiny.conds.gen, seed=5)
    first = stream.finish(speech_tokens(20))
    second = stream.finish(speech_tokens(20, seed=4))
    assert first.shape == second.shape == (1, 20 * 960)
    step = (second[0, 0] - first[0, -1]).abs()
    assert step < 0.2 and second.abs().max() > 0.05


def test_seams_blend(s3gen: S3Gen) -> None:
    """Where two calls know a frame, the mel that is spoken lies between what they say of it, frame by frame."""
    stream = S3GenStream(s3gen, make_ref(), seed=1, context_len=10)
    mels = []
    flow_inference = s3gen.flow_inference

    class Seen:
        def __getattr__(self, name: str) -> object:
            return getattr(s3gen, name)

        def flow_inference(self, *arguments: object, **options: object) -> Tensor:
            mels.append(flow_inference(*arguments, **options))
            return mels[-1]

    stream._s3gen = Seen()
    stream.push(speech_tokens(20))
    old_end = stream._mel_start + stream._mel.shape[2]
    stream.push(speech_tokens(20, seed=9))
    overlap = stream._mel[..., old_end - HELD_FRAMES - stream._mel_start : old_end - stream._mel_start]
    old = mels[0][..., -HELD_FRAMES:]
    new_end = stream._mel_start + stream._mel.shape[2]
    new = mels[1][..., mels[1].shape[2] - (new_end - old_end) - HELD_FRAMES :][..., :HELD_FRAMES]
    low, high = torch.minimum(old, new) - 1e-5, torch.maximum(old, new) + 1e-5
    assert ((overlap >= low) & (overlap <= high)).all() and not torch.allclose(old, new)
    nearer_old = (overlap - old).abs() < (overlap - new).abs()
    assert nearer_old[..., 0].all() and not nearer_old[..., -1].any()


def test_bad_streams(s3gen: S3Gen) -> None:
    with pytest.raises(RuntimeError, match="a stream in pieces needs a seed of its own"):
        S3GenStream(s3gen, make_ref()).push(speech_tokens(5))
    with pytest.raises(ValueError, match="speech token 6561 is outside the vocabulary"):
        S3GenStream(s3gen, make_ref(), seed=1).finish(torch.tensor([6561]))


@pytest.mark.parametrize(
    ("part", "stage"), [("flow.encoder_proj", "S3Gen's flow"), ("mel2wav.conv_post", "S3Gen's vocoder")]
)
def test_nan_is_an_error_that_names_the_stage(part: str, stage: str) -> None:
    model = build()
    with torch.no_grad():
        model.get_submodule(part).bias.fill_(torch.nan)
    with pytest.raises(RuntimeError, match=f"{stage} computed NaN or infinite values; check the weights"):
        S3GenStream(model, make_ref(), seed=1).finish(speech_tokens(5))
