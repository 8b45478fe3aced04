"""S3Gen at a small size: shapes, gradients, threads, randomness, precision and error messages."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from chatterbox.models.config import (
    CAMPPlusConfig,
    EstimatorConfig,
    FlowConfig,
    FlowEncoderConfig,
    HiFTConfig,
    S3GenConfig,
    S3TokenizerConfig,
)
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3gen.encoder import RelativeSelfAttention, relative_positions
from chatterbox.models.s3gen.hifigan import PulseSource, SineGen
from chatterbox.models.s3gen.weight_norm import forget_products

CONFIG = S3GenConfig(
    tokenizer=S3TokenizerConfig(hidden_size=64, num_heads=1, num_layers=1),
    speaker_encoder=CAMPPlusConfig(80, 4, 16, 4, block_layers=(1, 1, 1), embed_size=24),
    flow=FlowConfig(
        speaker_embed_size=24,
        encoder=FlowEncoderConfig(hidden_size=64, num_heads=2, feed_forward_size=96, num_layers=2, num_up_layers=1),
        estimator=EstimatorConfig(channels=64, num_mid_blocks=2, num_transformers=1, num_heads=2, head_dim=16),
    ),
    vocoder=HiFTConfig(base_channels=32, f0_channels=32),
)
PULSED = replace(
    CONFIG,
    vocoder=HiFTConfig(
        excitation="pulses",
        num_harmonics=1,
        base_channels=32,
        f0_channels=32,
        upsample_rates=(4,),
        upsample_kernels=(8,),
        resblock_kernels=(3,),
        source_resblock_kernels=(),
        istft_n_fft=480,
        istft_hop=120,
    ),
)
HOP = CONFIG.vocoder.hop_len
SAMPLES_PER_TOKEN = 2 * HOP
KINDS = pytest.mark.parametrize("meanflow", [False, True], ids=["standard", "meanflow"])


def build(meanflow: bool = False, config: S3GenConfig = CONFIG) -> S3Gen:
    torch.manual_seed(0)
    return S3Gen(meanflow, config=config).eval()


@pytest.fixture(scope="module")
def s3gen() -> S3Gen:
    return build()


def make_ref(num_tokens: int = 5, seed: int = 1, extra_frames: int = 0) -> dict[str, Tensor | None]:
    g = torch.Generator().manual_seed(seed)
    return {
        "prompt_token": torch.randint(0, 6561, (1, num_tokens), generator=g),
        "prompt_token_len": torch.tensor([num_tokens]),
        "prompt_feat": torch.randn(1, 2 * num_tokens + extra_frames, 80, generator=g) - 4,
        "prompt_feat_len": None,
        "embedding": torch.randn(1, 24, generator=g),
    }


def make_tokens(*shape: int, seed: int = 2) -> Tensor:
    return torch.randint(0, 6561, shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@KINDS
def test_waveform_has_960_samples_a_token(meanflow: bool) -> None:
    model = build(meanflow)
    for tokens in (make_tokens(7), make_tokens(1), make_tokens(2, 4)):
        wav, source = model.inference(tokens, ref_dict=make_ref())
        rows, num_samples = torch.atleast_2d(tokens).shape[0], tokens.shape[-1] * SAMPLES_PER_TOKEN
        assert wav.shape == (rows, num_samples)
        assert source.shape == (rows, 1, num_samples)
        assert wav.isfinite().all() and wav.abs().max() <= 0.99
        assert not wav[:, : S3GEN_SR // 50].any()  # 20 ms are muted
        assert wav.any()


@KINDS
def test_forward_renders_all_but_the_lookahead(meanflow: bool) -> None:
    model, tokens, ref = build(meanflow), make_tokens(8), make_ref()
    mel = model(tokens, None, None, ref, skip_vocoder=True)
    assert mel.shape == (1, 80, 2 * 5)
    assert model(tokens, None, None, ref).shape == (1, 5 * SAMPLES_PER_TOKEN)
    assert model(tokens, None, None, ref, finalize=True).shape == (1, 8 * SAMPLES_PER_TOKEN)
    assert model.flow_inference(tokens, ref_dict=ref).shape == mel.shape  # finalize is False unless asked for


@pytest.mark.parametrize("extra_frames", [-2, -1, 0, 1, 3])
@pytest.mark.parametrize("num_prompt", [1, 4, 5])
def test_prompt_frames_need_not_match_its_tokens(s3gen: S3Gen, num_prompt: int, extra_frames: int) -> None:
    mel = s3gen.flow_inference(make_tokens(6), ref_dict=make_ref(num_prompt, extra_frames=extra_frames), finalize=True)
    assert mel.shape == (1, 80, 12 - extra_frames)


def test_one_frame_is_less_than_the_fade(s3gen: S3Gen) -> None:
    wav, _ = s3gen.inference(make_tokens(1), ref_dict=make_ref(extra_frames=1))
    assert wav.shape == (1, HOP) and not wav.any()


@KINDS
def test_gradients_reach_every_weight_of_flow_and_vocoder(meanflow: bool) -> None:
    model, g = build(meanflow).train(), seeded()
    ref, batch, num_tokens = make_ref(), 2, 6
    mu, mask = model.flow.encode(make_tokens(batch, num_tokens), torch.tensor([num_tokens, 4]))
    spks = model.flow.embed_speaker(ref["embedding"].expand(batch, -1))
    x, cond = torch.randn(2, *mu.shape, generator=g)
    times = {"t": torch.tensor([0.2, 0.7]), **({"r": torch.tensor([0.5, 0.9])} if meanflow else {})}
    velocity = model.flow.decoder.estimator(x, mask, mu, spks=spks, cond=cond, **times)
    f0 = model.mel2wav.f0_predictor(x)
    wav = model.mel2wav.decode(x, model.mel2wav.source(f0.detach() + 200, generator=g))
    assert velocity.shape == mu.shape and wav.shape == (batch, mu.shape[2] * HOP)
    (velocity.square().mean() + f0.mean() + wav.square().mean()).backward()
    for name, weight in [*model.flow.named_parameters(), *model.mel2wav.named_parameters()]:
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        # A key's bias shifts all scores of a query alike, so it has no effect.
        assert weight.grad.any() or name.endswith("linear_k.bias"), name


def test_solver_and_vocoder_are_differentiable_to_the_end(s3gen: S3Gen) -> None:
    model = copy.deepcopy(s3gen)
    model(make_tokens(5), None, None, make_ref(), generator=seeded()).square().sum().backward()
    assert model.flow.input_embedding.weight.grad.any()
    assert model.mel2wav.conv_pre.parametrizations.weight.original0.grad.any()


def test_source_passes_no_gradient_to_f0(s3gen: S3Gen) -> None:
    f0 = torch.full((1, 3), 150.0, requires_grad=True)
    source = s3gen.mel2wav.source(f0, generator=seeded())
    assert source.requires_grad
    assert torch.autograd.grad(source.sum(), f0, allow_unused=True) == (None,)


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_attention_scores_use_the_distance_of_query_and_key(num_frames: int) -> None:
    torch.manual_seed(0)
    attention = RelativeSelfAttention(8, 2)
    x = torch.randn(1, num_frames, 8)
    valid = torch.arange(num_frames) < max(1, num_frames - 1)
    table = relative_positions(num_frames, 8, x)
    with torch.no_grad():
        projections = (attention.linear_q, attention.linear_k, attention.linear_v)
        q, k, v = (project(x[0]).view(num_frames, 2, 4) for project in projections)
        rows = []
        for i in range(num_frames):
            scores = torch.stack([
                ((q[i] + attention.pos_bias_u) * k[j]).sum(-1)
                + ((q[i] + attention.pos_bias_v) * attention.linear_pos(table[num_frames - (i - j)]).view(2, 4)).sum(-1)
                for j in range(num_frames) if valid[j]
            ])  # fmt: skip
            weights = (scores / 2).softmax(dim=0)  # (keys, heads)
            rows.append(torch.einsum("kh,khd->hd", weights, v[valid]).flatten())
        expected = attention.linear_out(torch.stack(rows))
        torch.testing.assert_close(attention(x, table, valid[None, None, None])[0], expected)
    distances = torch.arange(num_frames, -num_frames, -1.0)
    torch.testing.assert_close(table[:, 0], distances.sin())
    torch.testing.assert_close(table[:, 1], distances.cos())


@pytest.mark.parametrize("finalize", [True, False])
def test_isolated_padding_makes_a_batch_equal_to_its_rows(s3gen: S3Gen, finalize: bool) -> None:
    tokens, lengths, ref = make_tokens(2, 9), torch.tensor([9, 5]), make_ref()
    z = torch.randn(2, 80, 2 * (5 + 9), generator=seeded())

    def mel(rows: slice, width: int, lens: Tensor | None, isolate: bool) -> Tensor:
        arguments = (tokens[rows, :width], lens, ref["prompt_token"], ref["prompt_token_len"], ref["prompt_feat"], None)
        options = {"z": z[rows], "isolate_padding": isolate}
        return s3gen.flow.inference(*arguments, ref["embedding"], finalize, **options)[0]

    longer, alone = mel(slice(0, 1), 9, None, False), mel(slice(1, 2), 5, None, False)
    isolated, upstream = (mel(slice(0, 2), 9, lengths, isolate) for isolate in (True, False))
    num_frames = alone.shape[2]
    assert num_frames == (10 if finalize else 4)
    torch.testing.assert_close(isolated[:1], longer, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(isolated[1:, :, :num_frames], alone, rtol=1e-4, atol=1e-5)
    if finalize:  # upstream's leak is strongest in the last frames
        assert (upstream[1:, :, :num_frames] - alone).abs().max() > 1e-3
    assert isolated.isfinite().all()


@KINDS
def test_a_row_of_a_padded_batch_sounds_as_it_does_alone(meanflow: bool) -> None:
    model, tokens, lengths, ref, g = build(meanflow), make_tokens(3, 9), [5, 9, 5], make_ref(), seeded()
    noise = {"z": torch.randn(3, 80, 28, generator=g), "phase": torch.rand(3, 9, 1, generator=g)}
    noise["noise"] = torch.randn(3, 9, 9 * SAMPLES_PER_TOKEN, generator=g)
    options = {"ref_dict": ref, "speech_token_lens": torch.tensor(lengths), **noise}
    wavs, sources = model.inference(tokens, **options)
    upstreams, _ = model.inference(tokens, **options, isolate_padding=False)
    for row, length in enumerate(lengths):
        end = length * SAMPLES_PER_TOKEN
        its_noise = {key: value[row : row + 1] for key, value in noise.items()}
        its_noise["noise"] = its_noise["noise"][..., :end]
        wav, source = model.inference(tokens[row, :length], ref_dict=ref, **its_noise)
        torch.testing.assert_close(wavs[row, :end], wav[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(sources[row, :, :end], source[0], rtol=0, atol=1e-4)
        assert not wavs[row, end:].any() and not sources[row, :, end:].any()
        if length < 9:
            assert (upstreams[row, :end] - wav[0]).abs().max() > 1e-2


def test_the_vocoder_of_a_padded_batch_draws_its_own_noise_and_takes_a_cached_source(s3gen: S3Gen) -> None:
    mel, lengths = torch.randn(3, 80, 4, generator=seeded()), torch.tensor([4, 2, 0])
    head = torch.linspace(-0.1, 0.1, HOP)[None, None]
    wav, source = s3gen.hift_inference(mel, head, lengths=lengths, generator=seeded())
    assert torch.equal(source[:2, :, :HOP], head.expand(2, -1, -1))
    assert wav[1, : 2 * HOP].any() and not wav[1, 2 * HOP :].any() and not wav[2].any()
    torch.testing.assert_close(wav[:1], s3gen.hift_inference(mel[:1], source[:1])[0], rtol=0, atol=1e-4)


def test_a_padded_batch_is_differentiable(s3gen: S3Gen) -> None:
    model = copy.deepcopy(s3gen)
    wav = model(make_tokens(2, 6), None, None, make_ref(), True, torch.tensor([6, 4]), generator=seeded())
    wav.square().sum().backward()
    assert model.flow.input_embedding.weight.grad.any()


@pytest.mark.parametrize(("finalize", "held_back"), [(True, 0), (False, 6)])
def test_speech_noise_stays_with_its_frames(finalize: bool, held_back: int) -> None:
    model, tokens, ref = build(meanflow=True), make_tokens(1, 5), make_ref()
    arguments = (ref["prompt_token"], ref["prompt_token_len"], ref["prompt_feat"])
    speech = torch.randn(1, 80, 10, generator=seeded(7))
    drawn = torch.randn(1, 80, 20 - held_back, generator=seeded())
    whole = torch.cat([drawn[..., :10], speech[..., : 10 - held_back]], dim=2)
    first = model.flow(tokens, None, *arguments, ref["embedding"], finalize, noised_mels=speech, generator=seeded())
    second = model.flow(tokens, None, *arguments, ref["embedding"], finalize, z=whole)
    assert first.shape == (1, 80, 10 - held_back)
    assert torch.equal(first, second)


def test_ids_at_padding_do_not_matter(s3gen: S3Gen) -> None:
    tokens, z = make_tokens(2, 6), torch.randn(1, 80, 22, generator=seeded())
    lengths = torch.tensor([6, 3])
    other = tokens.clone()
    other[1, 3:] = torch.tensor([-1, 6562, 99_999])
    options = {"ref_dict": make_ref(), "finalize": True, "speech_token_lens": lengths, "z": z}
    first, second = (s3gen.flow_inference(t, **options) for t in (tokens, other))
    assert torch.equal(first, second)


@KINDS
def test_a_generator_decides_everything_and_leaves_the_global_one_alone(meanflow: bool) -> None:
    model, tokens, ref = build(meanflow), make_tokens(4), make_ref()
    state = torch.get_rng_state()
    first, again, other = (model.inference(tokens, ref_dict=ref, generator=seeded(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@KINDS
def test_rendering_prints_nothing(meanflow: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Upstream's mean-flow model prints a line and shows a progress bar at every call."""
    build(meanflow).inference(make_tokens(3), ref_dict=make_ref())
    assert capfd.readouterr() == ("", "")


def test_noise_belongs_to_frames_so_surplus_is_not_used(s3gen: S3Gen) -> None:
    tokens, ref, z = make_tokens(4), make_ref(), torch.randn(1, 80, 50, generator=seeded())
    exact = s3gen.flow_inference(tokens, ref_dict=ref, finalize=True, z=z[..., :18])
    assert torch.equal(s3gen.flow_inference(tokens, ref_dict=ref, finalize=True, z=z), exact)
    assert not torch.equal(s3gen.flow_inference(tokens, ref_dict=ref, finalize=True, z=z[..., 1:]), exact)


@KINDS
def test_noise_temperature_scales_the_noise(meanflow: bool) -> None:
    cool = build(meanflow, replace(CONFIG, flow=replace(CONFIG.flow, noise_temperature=0.25)))
    tokens, ref, z = make_tokens(4), make_ref(), torch.randn(1, 80, 18, generator=seeded())
    expected = build(meanflow).flow_inference(tokens, ref_dict=ref, finalize=True, z=0.25 * z)
    assert torch.equal(cool.flow_inference(tokens, ref_dict=ref, finalize=True, z=z), expected)


def test_without_guidance_the_estimator_sees_one_row_a_request() -> None:
    unguided = build(config=replace(CONFIG, flow=replace(CONFIG.flow, guidance_rate=0.0)))
    barely = build(config=replace(CONFIG, flow=replace(CONFIG.flow, guidance_rate=1e-6)))
    tokens, ref, z = make_tokens(4), make_ref(), torch.randn(1, 80, 18, generator=seeded())
    rows: list[int] = []
    unguided.flow.decoder.estimator.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    made = unguided.flow_inference(tokens, ref_dict=ref, finalize=True, z=z)
    assert rows == [1] * CONFIG.flow.num_steps
    torch.testing.assert_close(made, barely.flow_inference(tokens, ref_dict=ref, finalize=True, z=z))


def test_nothing_of_the_callers_is_changed(s3gen: S3Gen) -> None:
    ref, tokens, z = make_ref(), make_tokens(4), torch.randn(1, 80, 18)
    phase, noise = torch.rand(1, 9, 1), torch.randn(1, 9, 4 * SAMPLES_PER_TOKEN)
    given = {"z": z, "phase": phase, "noise": noise, "tokens": tokens, **ref}
    before = copy.deepcopy(given)
    s3gen.inference(tokens, ref_dict=ref, z=z, phase=phase, noise=noise)
    s3gen(tokens, None, None, ref)
    assert list(ref) == list(make_ref())
    for key, value in before.items():
        assert value is given[key] is None or (value.dtype == given[key].dtype and torch.equal(value, given[key])), key


def test_reference_dicts_of_arrays_and_of_float_ids_mean_the_same(s3gen: S3Gen) -> None:
    ref, tokens = make_ref(), make_tokens(4)
    arrays = {key: None if value is None else value.numpy() for key, value in ref.items()}
    floats = {key: None if value is None else value.float() for key, value in ref.items()}
    bare = {key: ref[key] for key in ("prompt_token", "prompt_feat", "embedding")}
    wavs = [s3gen.inference(tokens, ref_dict=r, generator=seeded())[0] for r in (ref, arrays, floats, bare)]
    assert all(torch.equal(wav, wavs[0]) for wav in wavs)


def test_reference_audio_and_its_embedding_mean_the_same(s3gen: S3Gen) -> None:
    audio = 0.1 * torch.randn(S3GEN_SR, generator=seeded())
    ref = s3gen.embed_ref(audio, S3GEN_SR)
    assert {key: None if value is None else tuple(value.shape) for key, value in ref.items()} == {
        "prompt_token": (1, 25),
        "prompt_token_len": (1,),
        "prompt_feat": (1, 50, 80),
        "prompt_feat_len": None,
        "embedding": (1, 24),
    }
    assert not any(value.is_inference() for value in ref.values() if value is not None)
    first = s3gen.inference(make_tokens(3), ref_dict=ref, generator=seeded())[0]
    second = s3gen.inference(make_tokens(3), ref_wav=audio.numpy(), ref_sr=S3GEN_SR, generator=seeded())[0]
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("num_samples", "num_tokens", "frames"), [(24_300, 25, 50), (24_500, 25, 51), (23_900, 24, 49)]
)
def test_reference_tokens_are_cut_to_the_frames(s3gen: S3Gen, num_samples: int, num_tokens: int, frames: int) -> None:
    ref = s3gen.embed_ref(0.1 * torch.randn(1, num_samples, generator=seeded()), S3GEN_SR)
    assert ref["prompt_token"].shape == (1, num_tokens)
    assert ref["prompt_token_len"].tolist() == [num_tokens]
    assert ref["prompt_feat"].shape == (1, frames, 80)


def test_long_reference_is_logged(s3gen: S3Gen, caplog: pytest.LogCaptureFixture) -> None:
    s3gen.embed_ref(0.1 * torch.randn(3 * 10_100, generator=seeded()), 3_000)
    assert "10.1 s" in caplog.text


def test_two_threads_with_two_voices_equal_one_after_the_other(s3gen: S3Gen) -> None:
    requests = [(make_tokens(5 + i, seed=i), make_ref(4 + i, seed=10 + i)) for i in range(2)]

    def render(index: int) -> Tensor:
        tokens, ref = requests[index]
        return s3gen.inference(tokens, ref_dict=ref, generator=seeded(index))[0]

    serial = [render(i) for i in range(2)]
    results: dict[tuple[int, int], Tensor] = {}
    start = threading.Barrier(2)

    def work(index: int) -> None:
        start.wait()
        for turn in range(4):
            results[index, turn] = render(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(torch.equal(wav, serial[index]) for (index, _), wav in results.items())


def test_weight_norm_is_computed_once_and_again_after_a_change() -> None:
    vocoder = build().mel2wav
    mel, source = torch.randn(1, 80, 4, generator=seeded()), torch.randn(1, 1, 4 * HOP, generator=seeded())
    conv = vocoder.conv_pre
    g = conv.parametrizations.weight.original0
    direction = torch.nn.functional.normalize(conv.parametrizations.weight.original1.detach().flatten(1))
    expected = g.detach()[:, 0] * direction
    with torch.inference_mode():
        first = vocoder.decode(mel, source)
        torch.testing.assert_close(conv.weight.flatten(1), expected)
        kept = conv.weight
        assert conv.weight is kept
    vocoder.decode(mel.requires_grad_(), source).sum().backward()  # what inference kept does not get into autograd
    assert g.grad.any() and mel.grad.any()
    with torch.no_grad():
        g *= 2
        torch.testing.assert_close(conv.weight, 2 * kept)
        assert not torch.equal(vocoder.decode(mel, source), first)
    state = vocoder.state_dict()
    state["conv_pre.parametrizations.weight.original0"] = g.detach() / 2
    vocoder.load_state_dict(state, assign=True)
    clone = copy.deepcopy(vocoder)
    with torch.inference_mode():
        assert torch.equal(vocoder.decode(mel, source), first)
        assert torch.equal(clone.decode(mel, source), first)


@pytest.mark.parametrize("change", [lambda g, v: g.data.mul_(1.5), lambda g, v: v.data.neg_()])
def test_weight_norm_notices_what_torch_does_not_count(change) -> None:
    conv = build().mel2wav.conv_pre
    weights = conv.parametrizations.weight
    with torch.inference_mode():
        before = conv.weight.clone()
    change(weights.original0, weights.original1)
    with torch.inference_mode():
        assert not torch.equal(conv.weight, before)


def test_weight_norm_is_computed_anew_when_it_is_told_to() -> None:
    s3gen = build()
    conv = s3gen.mel2wav.conv_pre
    with torch.inference_mode():
        before = conv.weight
    forget_products(s3gen)
    with torch.inference_mode():
        assert conv.weight is not before and torch.equal(conv.weight, before)


def test_weight_norm_can_be_folded_away() -> None:
    vocoder = build().mel2wav
    mel, source = torch.randn(1, 80, 4), torch.randn(1, 1, 4 * HOP)
    before = vocoder.decode(mel, source)
    vocoder.remove_weight_norm()
    torch.testing.assert_close(vocoder.decode(mel, source), before)
    assert not any("parametrizations" in key for key in vocoder.state_dict())


def test_cached_source_replaces_the_beginning(s3gen: S3Gen) -> None:
    mel = torch.randn(2, 80, 3, generator=seeded())
    cache = torch.linspace(-0.1, 0.1, HOP)[None, None]
    _, plain = s3gen.hift_inference(mel, generator=seeded())
    _, source = s3gen.hift_inference(mel, cache, generator=seeded())
    assert torch.equal(source[..., :HOP], cache.expand(2, -1, -1))
    assert torch.equal(source[..., HOP:], plain[..., HOP:])
    assert torch.equal(s3gen.hift_inference(mel, torch.zeros(1, 1, 0), generator=seeded())[1], plain)
    assert s3gen.hift_inference(mel, cache.repeat(1, 1, 9), generator=seeded())[1].shape == plain.shape


def test_sines_are_harmonics_of_f0_where_there_is_voice() -> None:
    f0 = torch.full((1, 1, 2_400), 100.0)
    f0[..., 1_200:] = 10.0  # the threshold itself is unvoiced
    phase, noise = torch.full((1, 9, 1), 0.5), torch.zeros(1, 9, 2_400)
    sines, voiced, _ = SineGen(CONFIG.vocoder)(f0, phase, noise)
    time = torch.arange(1, 1_201) / S3GEN_SR
    for index, offset in ((0, 0.0), (1, 0.5), (8, 0.5)):
        expected = 0.1 * torch.sin(2 * torch.pi * 100 * (index + 1) * time + offset)
        torch.testing.assert_close(sines[0, index, :1_200], expected, rtol=0, atol=1e-4)
    assert voiced[0, 0].tolist() == [1.0] * 1_200 + [0.0] * 1_200
    assert not sines[..., 1_200:].any()


def test_pulses_are_all_harmonics_of_f0_and_noise_is_where_there_is_no_voice() -> None:
    f0 = torch.full((1, 1, 24_000), 120.0)
    f0[..., 12_000:] = 10.0  # the threshold itself is unvoiced
    noise = torch.randn(1, 2, 24_000, generator=seeded())
    source = PulseSource(PULSED.vocoder)(f0, noise)
    assert torch.equal(source[:, 1], noise[:, 1]) and torch.equal(source[:, 0, 12_000:], noise[:, 0, 12_000:])
    voiced = source[0, 0, :12_000]
    assert voiced.square().mean() == pytest.approx(1.0, rel=0.01)
    spectrum = torch.fft.rfft(voiced.double()).abs()  # bins of 2 Hz
    harmonics = spectrum[60:6_000:60].clone()
    torch.testing.assert_close(harmonics, harmonics.mean().expand_as(harmonics), rtol=1e-3, atol=0)
    spectrum[::60] = 0
    assert spectrum.max() < 1e-3 * harmonics.mean()  # nothing between them: no aliases
    # They go on where others were.
    head = PulseSource(PULSED.vocoder)(f0[..., :5_000], noise[..., :5_000])
    rest = PulseSource(PULSED.vocoder)(f0[..., 5_000:], noise[..., 5_000:], turns=120.0 * 5_000 / S3GEN_SR)
    torch.testing.assert_close(torch.cat([head, rest], dim=2), source, rtol=0, atol=2e-3)


def test_pulses_and_noise_are_mixed_and_filtered() -> None:
    """With all of one or of the other, whatever the mel, the waveform is that channel, as loud as the gain says."""
    vocoder = build(config=PULSED).mel2wav
    source = vocoder.source(torch.full((1, 10), 120.0), noise=torch.randn(1, 2, 10 * HOP, generator=seeded()))
    assert source.shape == (1, 2, 10 * HOP)
    for channel, logit in ((0, -40.0), (1, 40.0)):
        with torch.no_grad():
            vocoder.conv_post.parametrizations.weight.original0.zero_()
            vocoder.conv_post.bias.zero_()
            vocoder.envelope.weight.zero_()
            vocoder.envelope.bias.copy_(torch.tensor([-4.0, 0.0, logit]).repeat_interleave(241))
            wav = vocoder.decode(torch.randn(1, 80, 10, generator=seeded()), source)
        torch.testing.assert_close(wav[0], torch.e**-4 * source[0, channel], rtol=0, atol=1e-5)


def test_the_envelope_of_pulses_is_between_mel_frames() -> None:
    vocoder = build(config=PULSED).mel2wav
    ramp = torch.arange(6.0)[None, None]
    places = (torch.arange(25) / 4 - 0.5).clamp(0, 5)  # frames are in the middle of hops, the STFT's at their edges
    torch.testing.assert_close(vocoder._at_frames(ramp)[0, 0, 1:-1], places[1:-1], rtol=0, atol=0.07)


def test_a_row_of_a_padded_batch_of_pulses_sounds_as_it_does_alone() -> None:
    vocoder = build(config=PULSED).mel2wav
    mel, lengths = torch.randn(3, 80, 9, generator=seeded()), torch.tensor([9, 4, 0])
    with torch.no_grad():
        vocoder.f0_predictor.classifier.bias.fill_(150.0)
    noise = torch.randn(3, 2, 9 * HOP, generator=seeded())
    wavs, sources = vocoder.inference(mel, lengths=lengths, noise=noise)
    assert sources.shape == (3, 2, 9 * HOP) and not wavs[1, 4 * HOP :].any() and not wavs[2].any()
    alone, source = vocoder.inference(mel[1:2, :, :4], noise=noise[1:2, :, : 4 * HOP])
    torch.testing.assert_close(wavs[1:2, : 4 * HOP], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(sources[1:2, :, : 4 * HOP], source, rtol=0, atol=1e-5)
    assert source[:, 0].any()
    # A cached source is what was said before, of both kinds.
    _, again = vocoder.inference(mel[1:2, :, :4], source[..., :HOP], noise=noise[:1, :, : 4 * HOP])
    assert torch.equal(again[..., :HOP], source[..., :HOP]) and not torch.equal(again, source)


def test_gradients_reach_every_weight_of_a_vocoder_of_pulses() -> None:
    vocoder = build(config=PULSED).train().mel2wav
    mel = torch.randn(2, 80, 6, generator=seeded())
    f0 = vocoder.f0_predictor(mel)
    wav = vocoder.decode(mel, vocoder.source(f0.detach() + 200, generator=seeded()))
    (f0.mean() + wav.square().mean()).backward()
    for name, weight in vocoder.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), name


def test_half_precision_keeps_the_ids(s3gen: S3Gen) -> None:
    model = copy.deepcopy(s3gen).to(torch.bfloat16)
    tokens, ref = torch.tensor([6_559, 6_560, 2_049, 257]), make_ref()
    ref["prompt_token"] = torch.tensor([[6_557, 6_555, 4_097, 513, 3]])
    seen: list[Tensor] = []
    model.flow.input_embedding.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    wav, _ = model.inference(tokens, ref_dict=ref, generator=seeded())
    assert seen[0].tolist() == [[6_557, 6_555, 4_097, 513, 3, 6_559, 6_560, 2_049, 257]]
    assert wav.dtype == torch.bfloat16 and wav.isfinite().all()


REFUSED: list[tuple[str, str, Callable[[S3Gen], object]]] = [
    ("id above", r"token 6562 .* 6561 speech tokens", lambda m: m.inference(torch.tensor([3, 6562]),
    ref_dict=make_ref())), ("id below", r"token -1 .* 6561 speech tokens", lambda m: m.inference(torch.tensor([-1]),
    ref_dict=make_ref())), ("id in the prompt", "token 7000", lambda m: m.inference(
        make_tokens(3), ref_dict=make_ref() | {"prompt_token": torch.tensor([[7000, 1, 2, 3, 4]])})),
    ("no token", r"n of at least 1, got shape \(1, 0\)", lambda m: m.inference(make_tokens(0), ref_dict=make_ref())),
    ("no row", r"got shape \(0, 3\)", lambda m: m.inference(make_tokens(0, 3), ref_dict=make_ref())),
    ("only lookahead", "3 tokens leave no frame", lambda m: m.flow_inference(make_tokens(3), ref_dict=make_ref())),
    ("no reference", "got neither", lambda m: m.inference(make_tokens(3))),
    ("two references", "got both", lambda m: m.inference(make_tokens(3), torch.zeros(9), S3GEN_SR, make_ref())),
    ("no rate", "pass ref_sr", lambda m: m.inference(make_tokens(3), torch.zeros(9))),
    ("incomplete reference", "lacks prompt_feat, embedding", lambda m: m.inference(
        make_tokens(3), ref_dict={"prompt_token": make_tokens(1, 2)})),
    ("noise too short", r"z must be \(1 or 1, 80, 16 or more\), got \(1, 80, 15\)", lambda m: m.inference(
        make_tokens(3), ref_dict=make_ref(), z=torch.zeros(1, 80, 15))),
    ("no step", "at least 1, got -1", lambda m: m.inference(make_tokens(3), ref_dict=make_ref(), n_cfm_timesteps=-1)),
    ("lengths", r"lie in 1..3, got \[4\]", lambda m: m.inference(
        make_tokens(3), ref_dict=make_ref(), speech_token_lens=torch.tensor([4]))),
    ("unequal prompts", r"equally long, got \[5, 4\]", lambda m: m.inference(
        make_tokens(2, 3), ref_dict=make_ref() | {"prompt_token_len": torch.tensor([5, 4])})),
    ("end time", "r must be left out of a standard", lambda m: m.flow.decoder.estimator.embed_time(
        torch.zeros(1), torch.ones(1))),
    ("kind", r"build S3Gen\(meanflow=True\)", lambda m: m.flow.inference(
        make_tokens(1, 3), None, *(make_ref()[k] for k in ("prompt_token", "prompt_token_len", "prompt_feat")), None,
        make_ref()["embedding"], True, meanflow=True)),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_wrong_input_is_named(s3gen: S3Gen, message: str, call: Callable[[S3Gen], object]) -> None:
    with pytest.raises(ValueError, match=message):
        call(s3gen)
    assert np.isfinite(s3gen.trim_fade.numpy()).all()
