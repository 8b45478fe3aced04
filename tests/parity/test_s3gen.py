"""S3Gen against chatterbox-tts 0.1.7: reference embedding, flow, vocoder, and tokens to waveform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from chatterbox.audio.recordings import resample_sinc
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.s3gen.cfm import cosine_times
from chatterbox.models.s3gen.estimator import ChannelNorm
from chatterbox.models.s3gen.flow import CausalMaskedDiffWithXvec
from chatterbox.models.s3gen.hifigan import bounded_polar
from tests.parity.support import check, fill, load_golden, load_meta, manifest

NOISE_SEED = 4242  # of the run that made the goldens; each case adds its own offset

HIFT_STAGES = (
    *("conv_pre", "ups.0", "ups.1", "ups.2", "source_downs.0", "source_downs.1", "source_downs.2"),
    *("source_resblocks.0", "source_resblocks.2", "resblocks.0", "resblocks.8", "conv_post"),
)
FLOW_NORMS = sorted(key[3:] for key in load_golden("norm_eps") if key.startswith("in.s3gen.flow."))


@pytest.fixture(scope="module")
def s3gen() -> S3Gen:
    return fill(S3Gen())


@pytest.fixture(scope="module")
def meanflow() -> S3Gen:
    """A mean-flow model whose flow alone holds weights."""
    model = on_meta(meanflow=True)
    model.flow = fill(CausalMaskedDiffWithXvec(meanflow=True), "flow.")
    return model


def on_meta(meanflow: bool) -> S3Gen:
    with torch.device("meta"):
        return S3Gen(meanflow)


def reference(golden: dict[str, Tensor], **changes: Tensor) -> dict[str, Tensor | None]:
    keys = ("prompt_token", "prompt_feat", "embedding")
    length = torch.tensor([golden["in.prompt_token"].shape[1]])
    return {**{k: golden[f"in.{k}"] for k in keys}, "prompt_token_len": length, "prompt_feat_len": None, **changes}


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[tuple[tuple, Tensor]]]:
    """Positional arguments and result of every call of ``module`` inside the block."""
    calls: list[tuple[tuple, Tensor]] = []
    handle = module.register_forward_hook(lambda _, args, out: calls.append((args, out.clone())))
    try:
        yield calls
    finally:
        handle.remove()


def estimator_inputs(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.rpartition(".")[2]: value for key, value in golden.items() if key.startswith("in.estimator.")}


@pytest.mark.parametrize(("layout", "is_meanflow"), [("s3gen", False), ("s3gen_meanflow", True)])
def test_keys_and_shapes_are_the_checkpoints(layout: str, is_meanflow: bool) -> None:
    state = on_meta(is_meanflow).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == manifest(layout)


def test_flow_tensor_by_tensor(s3gen: S3Gen) -> None:
    golden, flow = load_golden("flow"), s3gen.flow
    with (
        calls_of(flow.encoder) as encoder,
        calls_of(flow.spk_embed_affine_layer) as speaker,
        calls_of(flow.decoder.estimator) as estimator,
    ):
        mel = s3gen.flow_inference(golden["in.token"], ref_dict=reference(golden), finalize=True, z=golden["in.z"])
    (x, *_), hidden = encoder[0]
    _, _, mu, _, _, cond = estimator[0][0]
    check("flow", "out.encoder_in", x)
    check("flow", "out.encoder_out", hidden)
    check("flow", "out.spks", speaker[0][1])
    check("flow", "out.mu", mu[:1])
    check("flow", "out.cond", cond[:1])
    check("flow", "out.t", torch.stack([args[3][0] for args, _ in estimator]))
    check("flow", "out.velocity_cond_uncond", torch.stack([velocity for _, velocity in estimator]))
    check("flow", "out.mel", mel)


def test_flow_with_fewer_steps(s3gen: S3Gen) -> None:
    golden = load_golden("flow")
    mel = s3gen.flow_inference(
        golden["in.token"], ref_dict=reference(golden), finalize=True, n_cfm_timesteps=4, z=golden["in.z"]
    )
    check("flow", "out.mel_4_steps", mel)


def test_estimator_with_a_padded_row(s3gen: S3Gen) -> None:
    with torch.inference_mode():
        check("flow", "out.estimator", s3gen.flow.decoder.estimator(**estimator_inputs(load_golden("flow"))))


def test_flow_of_a_padded_batch(s3gen: S3Gen) -> None:
    golden = load_golden("flow_variants")
    mel = s3gen.flow_inference(
        golden["in.batch.token"],
        ref_dict=reference(golden),
        finalize=True,
        speech_token_lens=golden["in.batch.token_len"],
        z=golden["in.batch.z"],
        isolate_padding=False,
    )
    check("flow_variants", "out.batch.mel", mel)


def test_flow_with_an_odd_prompt(s3gen: S3Gen) -> None:
    golden = load_golden("flow_variants")
    ref = reference(golden, prompt_feat=golden["in.odd.prompt_feat"])
    mel = s3gen.flow_inference(golden["in.token"], ref_dict=ref, finalize=True, z=golden["in.odd.z"])
    check("flow_variants", "out.odd.mel", mel)


def test_flow_that_holds_back_the_lookahead(s3gen: S3Gen) -> None:
    golden = load_golden("flow_variants")
    mel = s3gen.flow_inference(
        golden["in.token"], ref_dict=reference(golden), finalize=False, z=golden["in.intent_not_final.z"]
    )
    check("flow_variants", "out.intent_not_final.mel", mel)


def test_meanflow_tensor_by_tensor_from_the_seed(meanflow: S3Gen) -> None:
    golden = load_golden("flow_meanflow")
    torch.manual_seed(NOISE_SEED + 2)
    with calls_of(meanflow.flow.decoder.estimator) as estimator:
        mel = meanflow.flow_inference(golden["in.token"][0], ref_dict=reference(golden), finalize=True)
    check("flow_meanflow", "out.x0", estimator[0][0][0])
    check("flow_meanflow", "out.t", torch.stack([args[3][0] for args, _ in estimator]))
    check("flow_meanflow", "out.r", torch.stack([args[6][0] for args, _ in estimator]))
    check("flow_meanflow", "out.velocity", torch.stack([velocity for _, velocity in estimator]))
    check("flow_meanflow", "out.mel", mel)


def test_meanflow_with_the_noise_handed_in(meanflow: S3Gen) -> None:
    golden = load_golden("flow_meanflow")
    spoken = golden["in.noised_mels"].shape[2]
    z = torch.cat([golden["in.z_prompt_source"][..., :-spoken], golden["in.noised_mels"]], dim=2)
    mel = meanflow.flow_inference(golden["in.token"], ref_dict=reference(golden), finalize=True, z=z)
    check("flow_meanflow", "out.mel", mel)


def test_meanflow_estimator(meanflow: S3Gen) -> None:
    with torch.inference_mode():
        velocity = meanflow.flow.decoder.estimator(**estimator_inputs(load_golden("flow_meanflow")))
    check("flow_meanflow", "out.estimator", velocity)


def test_vocoder_from_the_noise_and_from_the_seed(s3gen: S3Gen) -> None:
    golden, vocoder = load_golden("hift"), s3gen.mel2wav
    with torch.inference_mode():
        check("hift", "out.f0", vocoder.f0_predictor(golden["in.mel"]))
        check("hift", "out.decode", vocoder.decode(golden["in.mel"], golden["out.source"]))
    handed_in = s3gen.hift_inference(golden["in.mel"], phase=golden["in.phase"], noise=golden["in.noise"])
    torch.manual_seed(NOISE_SEED + 3)
    drawn = s3gen.hift_inference(golden["in.mel"])
    for wav, source in (handed_in, drawn):
        check("hift", "out.source", source)
        check("hift", "out.wav", wav)


def test_vocoder_with_a_cached_source(s3gen: S3Gen) -> None:
    golden = load_golden("hift")
    wav, source = s3gen.hift_inference(
        golden["in.mel"], golden["in.cache_source"], phase=golden["in.phase"], noise=golden["in.noise"]
    )
    check("hift", "out.cached.source", source)
    check("hift", "out.cached.wav", wav)


@torch.inference_mode()
def test_vocoder_stage_by_stage(s3gen: S3Gen) -> None:
    golden, vocoder = load_golden("hift_stages"), s3gen.mel2wav
    stages: dict[str, Tensor] = {}
    handles = [
        vocoder.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: stages.update({name: out.clone()})
        )
        for name in HIFT_STAGES
    ]
    try:
        wav = vocoder.decode(golden["in.mel"], golden["in.source"])
    finally:
        for handle in handles:
            handle.remove()
    check("hift_stages", "out.wav", wav)
    for name in HIFT_STAGES:
        check("hift_stages", f"out.stage.{name}", stages[name])
    assert {key for key in golden if key.startswith("out.stage.")} == {f"out.stage.{name}" for name in HIFT_STAGES}
    loud = vocoder.decode(4 * golden["in.mel"], 4 * golden["in.source"])
    check("hift_stages", "out.loud.wav", loud)
    assert float((loud.abs() >= 0.99).float().mean()) == load_meta("hift_stages")["loud_clamped_fraction"]
    check("hift_stages", "out.source_stft", vocoder._stft(golden["in.source"][:, 0]))
    spectrum = bounded_polar(golden["in.istft.magnitude"], golden["in.istft.phase"])
    check("hift_stages", "out.istft.wav", vocoder._istft(spectrum))


def test_sines_from_the_noise_and_from_the_seed(s3gen: S3Gen) -> None:
    golden, sine_gen = load_golden("hift_stages"), s3gen.mel2wav.m_source.l_sin_gen
    handed_in = sine_gen(golden["in.sinegen.f0"], golden["in.sinegen.phase"], golden["in.sinegen.noise"])
    torch.manual_seed(NOISE_SEED + 4)
    drawn = sine_gen(golden["in.sinegen.f0"])
    for sines, voiced, noise in (handed_in, drawn):
        check("hift_stages", "out.sinegen.sines", sines)
        check("hift_stages", "out.sinegen.uv", voiced)
        check("hift_stages", "out.sinegen.noise", noise)


def test_tokens_to_waveform_from_the_noise(s3gen: S3Gen) -> None:
    golden = load_golden("s3gen_e2e")
    noise = {key: golden[f"in.{key}"] for key in ("z", "phase", "noise")}
    wav, source = s3gen.inference(golden["in.token"][0], ref_dict=reference(golden), **noise)
    check("s3gen_e2e", "out.source", source)
    check("s3gen_e2e", "out.wav", wav)


def test_tokens_to_waveform_from_the_seed(s3gen: S3Gen) -> None:
    golden = load_golden("s3gen_e2e")
    torch.manual_seed(NOISE_SEED + 5)
    wav, source = s3gen.inference(golden["in.token"][0], ref_dict=reference(golden))
    state = torch.get_rng_state()
    check("s3gen_e2e", "out.source", source)
    check("s3gen_e2e", "out.wav", wav)
    torch.manual_seed(NOISE_SEED + 5)  # a later call of the same process draws on from here, as upstream's does
    for name, shape in load_meta("s3gen_e2e")["draws"]:
        torch.rand(shape) if name == "uniform" else torch.randn(shape)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("case", ["0", "1"])
def test_embed_ref(s3gen: S3Gen, case: str) -> None:
    wav = load_golden("embed_ref")[f"in.{case}.wav"]
    ref = s3gen.embed_ref(wav.numpy(), 24_000)
    assert ref["prompt_feat_len"] is None
    check("embed_ref", f"out.{case}.wav16", resample_sinc(wav[None], 24_000, 16_000))
    for key in ("prompt_token", "prompt_token_len", "prompt_feat", "embedding"):
        check("embed_ref", f"out.{case}.{key}", ref[key])


def test_constants(s3gen: S3Gen) -> None:
    check("trim_fade", "const.trim_fade", s3gen.trim_fade)
    check("trim_fade", "const.stft_window", s3gen.mel2wav.stft_window)
    check("trim_fade", "const.tokenizer_window", s3gen.tokenizer.window)
    check("trim_fade", "const.cosine_t_10", cosine_times(10))


@pytest.mark.parametrize("name", FLOW_NORMS)
def test_norm_epsilon(s3gen: S3Gen, name: str) -> None:
    norm = s3gen.get_submodule(name.removeprefix("s3gen."))
    x = load_golden("norm_eps")[f"in.{name}"]
    with torch.inference_mode():
        y = norm(x.transpose(1, 2)).transpose(1, 2) if isinstance(norm, ChannelNorm) else norm(x)
    check("norm_eps", f"out.{name}", y)
