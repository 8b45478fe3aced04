"""Voice encoder, speech tokenizer and speaker encoder at tiny sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chatterbox.models.config import CAMPPlusConfig, S3TokenizerConfig, VoiceEncoderConfig
from chatterbox.models.s3gen.fbank import kaldi_fbank
from chatterbox.models.s3gen.xvector import CAMPPlus, ContextMask
from chatterbox.models.s3tokenizer import SPEECH_VOCAB_SIZE, S3Tokenizer
from chatterbox.models.s3tokenizer.encoder import FSQCodebook
from chatterbox.models.s3tokenizer.s3tokenizer import split_windows
from chatterbox.models.voice_encoder import VoiceEncConfig, VoiceEncoder
from chatterbox.models.voice_encoder.melspec import melspectrogram
from tools.synthetic import fill_module

TINY_VOICE = VoiceEncoderConfig(num_mels=20, hidden_size=16, num_layers=2, embed_size=12)
TINY_TOKENIZER = S3TokenizerConfig(num_mels=16, hidden_size=32, num_heads=2, num_layers=2, fsmn_kernel=5)
TINY_SPEAKER = CAMPPlusConfig(
    num_mels=20,
    head_channels=4,
    tdnn_channels=8,
    growth_rate=4,
    block_layers=(2, 1),
    block_dilations=(1, 2),
    embed_size=6,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_have_gradients(module: torch.nn.Module, but: tuple[str, ...] = ()) -> bool:
    return all(p.grad is not None and p.grad.isfinite().all() for n, p in module.named_parameters() if n not in but)


@pytest.fixture
def voice_encoder():
    return fill_module(VoiceEncoder(TINY_VOICE)).eval()


@pytest.fixture
def tokenizer():
    return fill_module(S3Tokenizer(config=TINY_TOKENIZER), prefix="tokenizer.").eval()


@pytest.fixture
def speaker_encoder():
    return fill_module(CAMPPlus(TINY_SPEAKER), prefix="speaker_encoder.").eval()


# Voice encoder


def test_voice_encoder_defaults():
    assert VoiceEncConfig is VoiceEncoderConfig
    assert VoiceEncoder().config == VoiceEncoderConfig()


def test_embeddings_have_unit_length(voice_encoder):
    embeds = voice_encoder.embeds_from_wavs([noise(20_000).numpy(), noise(9_000, seed=1).numpy()], 16_000)
    assert embeds.shape == (2, 12) and embeds.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1.0, atol=1e-6)


def test_utterances_of_a_batch_do_not_mix(voice_encoder):
    wavs = [noise(40_000).numpy(), noise(9_000, seed=1).numpy()]
    alone = [voice_encoder.embeds_from_wavs([wav], 16_000)[0] for wav in wavs]
    for batch_size in (1, 2, 32):
        np.testing.assert_allclose(
            voice_encoder.embeds_from_wavs(wavs, 16_000, batch_size=batch_size), alone, atol=1e-6
        )


def test_wavs_of_another_rate_are_resampled(voice_encoder):
    embeds = voice_encoder.embeds_from_wavs([noise(48_000).numpy()], 24_000)
    assert embeds.shape == (1, 12) and np.isfinite(embeds).all()


@pytest.mark.parametrize("length", [1, 100, 201, 1_600])
def test_short_wavs(voice_encoder, length):
    assert melspectrogram(noise(length), TINY_VOICE).shape == (20, 1 + max(length, 201) // 160)
    assert np.isfinite(voice_encoder.embeds_from_wavs([noise(length).numpy()], 16_000)).all()


@pytest.mark.parametrize(
    ("frames", "count"), [(1, 1), (159, 1), (160, 1), (204, 1), (205, 2), (237, 2), (281, 2), (282, 3), (314, 3)]
)
def test_number_of_windows(voice_encoder, frames, count):
    seen = []
    handle = voice_encoder.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    mel = noise(frames, 20).abs()
    voice_encoder.inference(mel[None], [frames], rate=1.3)
    handle.remove()
    assert seen[0].shape == (count, 160, 20)
    padded = F.pad(mel, (0, 0, 0, 400))
    assert all(torch.equal(window, padded[77 * i : 77 * i + 160]) for i, window in enumerate(seen[0]))


def test_mels_as_tensor_or_list(voice_encoder):
    mels = [noise(50, 20).abs(), noise(180, 20, seed=1).abs()]
    packed = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
    from_list = voice_encoder.embeds_from_mels([mel.numpy() for mel in mels])
    np.testing.assert_array_equal(from_list, voice_encoder.embeds_from_mels(packed, mel_lens=[50, 180]))
    speaker = voice_encoder.embeds_from_mels(mels, as_spk=True)
    np.testing.assert_allclose(speaker, VoiceEncoder.utt_to_spk_embed(from_list), atol=1e-6)
    with pytest.raises(ValueError, match=r"mels must be \(T, 20\)"):
        voice_encoder.embeds_from_mels([mels[0].T])


def test_windows_may_not_leave_gaps(voice_encoder):
    mel = noise(1, 400, 20)
    with pytest.raises(ValueError, match=r"rate 0\.5 puts windows of 160 frames 200 frames apart"):
        voice_encoder.inference(mel, [400], rate=0.5)
    with pytest.raises(ValueError, match=r"overlap 1 puts windows of 160 frames 0 frames apart"):
        voice_encoder.inference(mel, [400], overlap=1.0)


def test_voice_similarity():
    same, other = np.array([[0.6, 0.8], [0.8, 0.6]]), np.array([1.0, 0.0])
    assert VoiceEncoder.voice_similarity(same, same) == pytest.approx(1.0)
    assert VoiceEncoder.voice_similarity(same, other) == pytest.approx(np.sqrt(0.5))


def test_voice_encoder_trains(voice_encoder):
    voice_encoder.embeds_from_wavs([noise(9_000).numpy()], 16_000)
    mel = melspectrogram(noise(30_000), TINY_VOICE).T
    voice_encoder.inference(mel[None], [len(mel)]).sum().backward()
    assert all_have_gradients(voice_encoder, but=("similarity_weight", "similarity_bias"))


# Speech tokenizer


def test_tokenizer_tokens(tokenizer):
    speech_tokens, lengths = tokenizer([noise(16_000).numpy(), noise(1, 8_000)])
    assert speech_tokens.shape == (2, 25) and speech_tokens.dtype == torch.int64
    assert lengths.tolist() == [25, 13]
    assert speech_tokens.min() >= 0 and speech_tokens.max() < SPEECH_VOCAB_SIZE


def test_rows_of_a_batch_do_not_mix(tokenizer):
    wavs = [noise(16_000), noise(8_000, seed=1)]
    mels = [tokenizer.log_mel_spectrogram(wav) for wav in wavs]
    alone = [tokenizer.digits(mel[None], torch.tensor([mel.shape[1]]))[0][0] for mel in mels]
    padded = torch.nn.utils.rnn.pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)
    together, lengths = tokenizer.digits(padded, torch.tensor([100, 50]))
    for row, n, expected in zip(together, lengths, alone, strict=True):
        torch.testing.assert_close(row[:n], expected, rtol=1e-4, atol=1e-5)


def test_max_len(tokenizer):
    speech_tokens, lengths = tokenizer([noise(16_000), noise(4_000)], max_len=10)
    assert speech_tokens.shape == (2, 10) and lengths.tolist() == [10, 7]


def test_speech_tokens_count_in_base_three():
    digits = torch.tensor([[-9.0] * 8, [0.0] * 8, [9.0] * 8, [9.0] + [-9.0] * 7, [-9.0] * 7 + [9.0]])
    assert FSQCodebook.tokens(digits).tolist() == [0, 3280, 6560, 2, 2 * 3**7]


def test_padding_zeros_are_appended(tokenizer):
    wav = noise(4_000)
    expected = tokenizer.log_mel_spectrogram(F.pad(wav, (0, 800)))
    torch.testing.assert_close(tokenizer.log_mel_spectrogram(wav, padding=800), expected)


def test_each_row_has_its_own_floor(tokenizer):
    wavs = torch.stack([noise(4_000), 1e-4 * noise(4_000)])
    together = tokenizer.log_mel_spectrogram(wavs)
    assert together.shape == (2, 16, 25)
    for row, wav in zip(together, wavs, strict=True):
        torch.testing.assert_close(row, tokenizer.log_mel_spectrogram(wav))


def test_pad_to_whole_tokens(tokenizer):
    padded = tokenizer.pad([np.ones(641, np.float32), torch.ones(1, 1_280)], 16_000)
    assert [tuple(wav.shape) for wav in padded] == [(1, 1_280), (1, 1_280)]
    assert padded[0].sum() == 641


def test_too_short_for_the_tokenizer(tokenizer):
    with pytest.raises(ValueError, match="audio has 200 samples, fewer than 201"):
        tokenizer([noise(200)])
    assert tokenizer([noise(201)])[1].tolist() == [1]


@pytest.mark.parametrize("frames", [1, 400, 3000, 3001, 5200, 5201, 5400, 5599, 5600, 5601, 13_000])
def test_windows_cover_the_recording_once(tokenizer, frames):
    mel = torch.arange(frames, dtype=torch.float32).expand(16, -1)
    windows, lengths = split_windows(mel)
    starts = [2600 * i for i in range(len(windows))]
    assert [int(n) for n in lengths] == [min(3000, frames - start) for start in starts]
    assert all(torch.equal(w[:, :n], mel[:, s : s + n]) for w, n, s in zip(windows, lengths, starts, strict=True))
    assert starts[-1] + int(lengths[-1]) == frames
    speech_tokens, token_len = tokenizer.quantize(torch.zeros(1, 16, frames), torch.tensor([frames]))
    assert token_len.tolist() == [-(-frames // 4)] and speech_tokens.shape == (1, -(-frames // 4))


def test_long_and_short_rows_together(tokenizer):
    mel = noise(2, 16, 3_300)
    speech_tokens, lengths = tokenizer.quantize(mel, torch.tensor([3_300, 90]))
    assert lengths.tolist() == [825, 23]
    assert torch.equal(speech_tokens[:1], tokenizer.quantize(mel[:1], torch.tensor([3_300]))[0])
    assert torch.equal(speech_tokens[1:, :23], tokenizer.quantize(mel[1:, :, :90], torch.tensor([90]))[0])
    assert not speech_tokens[1, 23:].any()


def test_tokenizer_trains(tokenizer):
    tokenizer([noise(4_000)])
    wav = noise(2, 4_000).requires_grad_()
    digits, _ = tokenizer.digits(tokenizer.log_mel_spectrogram(wav), torch.tensor([25, 25]))
    digits.square().sum().backward()
    assert all_have_gradients(tokenizer)
    assert wav.grad.abs().sum() > 0


def test_speech_tokens_can_be_embedded_in_training(tokenizer):
    speech_tokens, _ = tokenizer([noise(4_000)])
    torch.nn.Embedding(SPEECH_VOCAB_SIZE, 4)(speech_tokens).sum().backward()


def test_tokenizer_follows_its_dtype(tokenizer):
    speech_tokens, _ = tokenizer.bfloat16()([noise(4_000)])
    assert speech_tokens.shape == (1, 7)


def test_buffers_exist_on_a_meta_build():
    with torch.device("meta"):
        tokenizer = S3Tokenizer(config=S3TokenizerConfig(num_mels=19, hidden_size=8, num_heads=1, num_layers=1))
    assert tokenizer.encoder.conv1.weight.is_meta
    assert tokenizer.window.device.type == tokenizer._mel_filters.device.type == "cpu"


# Speaker encoder


def test_speaker_embedding(speaker_encoder):
    embeds = speaker_encoder.inference(noise(2, 8_000))
    assert embeds.shape == (2, 6)
    torch.testing.assert_close(embeds[1:], speaker_encoder.inference([noise(2, 8_000)[1]]))


def test_recordings_of_two_lengths_do_not_change_each_other(speaker_encoder):
    longer, shorter = noise(8_000), noise(4_000)
    together = speaker_encoder.inference([longer, shorter])
    torch.testing.assert_close(together, torch.cat([speaker_encoder.inference([wav]) for wav in (longer, shorter)]))


def test_segments_average_their_own_frames():
    layer = ContextMask(in_channels=2, out_channels=1, dilation=1, segment_len=3)
    x = noise(1, 2, 7)
    means = torch.stack([x[..., t // 3 * 3 : t // 3 * 3 + 3].mean(dim=-1) for t in range(7)], dim=-1)
    context = x.mean(dim=-1, keepdim=True) + means
    expected = layer.linear_local(x) * layer.linear2(layer.linear1(context).relu()).sigmoid()
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (559, 1), (560, 2), (16_000, 98)])
def test_kaldi_frames_lie_inside_the_recording(samples, frames):
    assert kaldi_fbank(noise(samples), 20).shape == (frames, 20)


def test_too_short_for_the_speaker_encoder(speaker_encoder):
    with pytest.raises(ValueError, match="audio has 399 samples, fewer than 400"):
        kaldi_fbank(noise(399))
    with pytest.raises(ValueError, match="audio has 719 samples, fewer than 720"):
        speaker_encoder.inference(noise(1, 719))
    assert speaker_encoder.inference(noise(1, 720)).isfinite().all()


def test_speaker_encoder_trains(speaker_encoder):
    with torch.inference_mode():
        speaker_encoder.inference(noise(1, 4_000))
    wav = noise(2, 4_000).requires_grad_()
    speaker_encoder.train().inference(wav).square().sum().backward()
    assert all_have_gradients(speaker_encoder)
    assert wav.grad.isfinite().all() and wav.grad.abs().sum() > 0
