"""Everything that reads a reference recording, tensor by tensor against chatterbox-tts 0.1.7."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from chatterbox.audio.recordings import mel_filters, resample_hq, resample_sinc, trim_silence
from chatterbox.models.s3gen.fbank import kaldi_fbank, kaldi_mel_filters
from chatterbox.models.s3gen.utils.mel import mel_spectrogram
from chatterbox.models.s3gen.xvector import CAMPPlus
from chatterbox.models.s3tokenizer import S3Tokenizer, drop_invalid_tokens
from chatterbox.models.s3tokenizer.s3tokenizer import split_windows
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.models.voice_encoder.melspec import melspectrogram
from tests.parity.support import check, fill, load_golden, load_json, load_meta, manifest


@pytest.fixture(scope="module")
def voice_encoder():
    return fill(VoiceEncoder())


@pytest.fixture(scope="module")
def tokenizer():
    return fill(S3Tokenizer(), prefix="tokenizer.")


@pytest.fixture(scope="module")
def speaker_encoder():
    return fill(CAMPPlus(), prefix="speaker_encoder.")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@contextmanager
def outputs_of(module):
    """What ``module`` returns while the context lasts."""
    seen = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def wavs(case):
    golden = load_golden(case)
    return [golden["in.0.wav"], golden["in.1.wav"]]


# State dicts


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def published(layout: str, prefix: str) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): shape for key, shape in manifest(layout).items() if key.startswith(prefix)}


def test_voice_encoder_state_dict(voice_encoder):
    assert shapes(voice_encoder) == published("ve", "")


@pytest.mark.parametrize("layout", ["s3gen", "s3gen_meanflow"])
def test_tokenizer_state_dict(tokenizer, layout):
    assert shapes(tokenizer) == published(layout, "tokenizer.")


@pytest.mark.parametrize("layout", ["s3gen", "s3gen_meanflow"])
def test_speaker_encoder_state_dict(speaker_encoder, layout):
    assert shapes(speaker_encoder) == published(layout, "speaker_encoder.")


# Filters, windows and resamplers


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("const.s3tokenizer_16k_128", (16_000, 400, 128)),
        ("const.voice_encoder_16k_40", (16_000, 400, 40)),
        ("const.s3gen_24k_80", (24_000, 1920, 80, 0.0, 8000.0)),
    ],
)
def test_slaney_filters(key, arguments):
    check("mel_filters", key, mel_filters(*arguments))


def test_kaldi_filters():
    filters = kaldi_mel_filters(80)
    check("mel_filters", "const.kaldi_16k_80", filters[:, :-1])
    assert not filters[:, -1].any(), "the Nyquist bin carries no weight"


def test_tokenizer_buffers(tokenizer):
    check("trim_fade", "const.tokenizer_window", tokenizer.window)
    check("mel_filters", "const.s3tokenizer_16k_128", tokenizer._mel_filters)


def test_soxr_resampler():
    wav = load_golden("resample")["in.wav24"].numpy()
    check("resample", "out.librosa_16k", torch.from_numpy(resample_hq(wav, 24_000, 16_000)))


def test_sinc_resampler():
    golden = load_golden("resample")
    check("resample", "out.torchaudio_16k", resample_sinc(golden["in.wav24"][None], 24_000, 16_000))
    check("resample", "out.torchaudio_44k_to_24k", resample_sinc(golden["in.wav44"][None], 44_100, 24_000))


@pytest.mark.parametrize("k", [0, 1])
def test_sinc_resampler_on_references(k):
    check("embed_ref", f"out.{k}.wav16", resample_sinc(wavs("embed_ref")[k][None], 24_000, 16_000))


@pytest.mark.parametrize("k", [0, 1])
def test_s3gen_mel(k):
    check("mel24k", f"out.{k}.mel", mel_spectrogram(wavs("mel24k")[k][None]))


# Voice encoder


@pytest.mark.parametrize("k", [0, 1])
def test_voice_encoder(voice_encoder, k):
    wav = wavs("voice_encoder")[k]
    trimmed, span = trim_silence(wav, top_db=20)
    check("voice_encoder", f"out.{k}.trim_index", torch.tensor(span))
    check("voice_encoder", f"out.{k}.mel", melspectrogram(trimmed).T)
    with outputs_of(voice_encoder) as embeds:
        embed = voice_encoder.embeds_from_wavs([wav.numpy()], sample_rate=16_000)
    check("voice_encoder", f"out.{k}.partial_embeds", torch.cat(embeds))
    check("voice_encoder", f"out.{k}.embed", torch.from_numpy(embed))


def test_voice_encoder_on_two_recordings(voice_encoder):
    both = [wav.numpy() for wav in wavs("voice_encoder")]
    embeds = voice_encoder.embeds_from_wavs(both, sample_rate=16_000)
    speaker = voice_encoder.embeds_from_wavs(both, sample_rate=16_000, as_spk=True)
    check("voice_encoder", "out.both.embeds", torch.from_numpy(embeds))
    check("voice_encoder", "out.both.as_spk", torch.from_numpy(speaker))


# Speech tokenizer


@pytest.mark.parametrize("k", [0, 1])
def test_tokenizer(tokenizer, k):
    wav = wavs("s3tokenizer")[k]
    check("s3tokenizer", f"out.{k}.log_mel", tokenizer.log_mel_spectrogram(wav))
    with outputs_of(tokenizer.encoder) as hidden, outputs_of(tokenizer.quantizer["_codebook"]) as digits:
        speech_tokens, lengths = tokenizer([wav])
    if k == 0:
        check("s3tokenizer", "out.0.encoder", hidden[0][0])
    check("s3tokenizer", f"out.{k}.pre_tanh", digits[0][0])
    check("s3tokenizer", f"out.{k}.codes", speech_tokens)
    check("s3tokenizer", f"out.{k}.code_len", lengths)


def test_tokenizer_max_len(tokenizer):
    max_len = load_meta("s3tokenizer")["max_len"]["max_len"]
    speech_tokens, lengths = tokenizer([wavs("s3tokenizer")[1]], max_len=max_len)
    check("s3tokenizer", "out.max_len.codes", speech_tokens)
    check("s3tokenizer", "out.max_len.code_len", lengths)


def test_tokenizer_batch(tokenizer):
    with outputs_of(tokenizer.quantizer["_codebook"]) as digits:
        speech_tokens, lengths = tokenizer(wavs("s3tokenizer"))
    check("s3tokenizer", "out.batch.pre_tanh", digits[0])
    check("s3tokenizer", "out.batch.codes", speech_tokens)
    check("s3tokenizer", "out.batch.code_len", lengths)


def test_tokenizer_over_30_seconds(tokenizer):
    golden = load_golden("s3tokenizer_long")
    wav = torch.cat([golden["in.piece"] * gain for gain in golden["in.gains"]])[: int(golden["in.samples"])]
    with outputs_of(tokenizer.quantizer["_codebook"]) as digits:
        speech_tokens, lengths = tokenizer([wav])
    check("s3tokenizer_long", "out.pre_tanh_windows", torch.cat(digits))
    check("s3tokenizer_long", "out.codes", speech_tokens)
    check("s3tokenizer_long", "out.code_len", lengths)


def test_tokenizer_windows_match_upstream():
    windows, lengths = split_windows(torch.ones(2, 3300))
    assert windows.shape == (2, 2, 3000)
    assert lengths.tolist() == [3000, 700]
    assert not windows[1, :, 700:].any()


@pytest.mark.parametrize("norm", ["attn_ln", "mlp_ln"])
def test_tokenizer_norm_eps(tokenizer, norm):
    name = f"s3gen.tokenizer.encoder.blocks.0.{norm}"
    x = load_golden("norm_eps")[f"in.{name}"]
    check("norm_eps", f"out.{name}", getattr(tokenizer.encoder.blocks[0], norm)(x))


# Speaker encoder


@pytest.mark.parametrize("k", [0, 1])
def test_speaker_encoder(speaker_encoder, k):
    wav = wavs("campplus")[k]
    check("campplus", f"out.{k}.fbank", kaldi_fbank(wav))
    check("campplus", f"out.{k}.features", speaker_encoder.features(wav[None]))
    with outputs_of(speaker_encoder.xvector.tdnn) as tdnn:
        embedding = speaker_encoder.inference(wav[None])
    if k == 0:
        check("campplus", "out.0.tdnn", tdnn[0])
    check("campplus", f"out.{k}.embedding", embedding)


# Token clean-up

DROP_CASES = load_json("drop_invalid_tokens")["cases"]


@pytest.mark.parametrize(
    "entry",
    [e for e in DROP_CASES if e["s3tokenizer"]["ok"] and not any(isinstance(i, list) for i in e["in"])],
    ids=lambda entry: str(entry["in"]),
)
def test_drop_invalid_tokens(entry):
    kept = drop_invalid_tokens(torch.tensor(entry["in"], dtype=torch.long))
    assert kept.tolist() == entry["s3tokenizer"]["out"]


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        ([6561, 6561, 1], [1]),  # upstream raises TypeError
        ([1, 6562, 2, 6562], [1]),  # upstream raises TypeError
        ([6561, 5, 6561, 7, 6562, 6561, 9], [7]),
        ([[6561, 1, 2, 6562]], [[1, 2]]),  # upstream cuts along the batch
        ([[1, 2, 3]], [[1, 2, 3]]),
    ],
)
def test_drop_invalid_tokens_where_upstream_fails(tokens, kept):
    assert drop_invalid_tokens(torch.tensor(tokens)).tolist() == kept


def test_drop_invalid_tokens_takes_one_row():
    with pytest.raises(ValueError, match="one row at a time"):
        drop_invalid_tokens(torch.zeros(2, 3, dtype=torch.long))
