"""Reference recording to conditionals, and the watermark, against chatterbox-tts 0.1.7."""

from __future__ import annotations

import pytest
import soundfile
import torch

from chatterbox.models.config import T3Config
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.voice.conditionals import prepare_conditionals
from chatterbox.watermark.perth import apply_watermark, read_watermark
from tests.parity.support import check, fill, load_golden, load_meta


@pytest.mark.parametrize(("case", "hp"), [("english", T3Config()), ("turbo", T3Config.turbo())])
def test_conditionals(case, hp, tmp_path):
    """Turbo's are those that upstream makes with numpy 1: under numpy 2 its loudness makes the samples float64."""
    s3gen = S3Gen().eval()  # the flow and the vocoder read no recording and stay as they are
    fill(s3gen.tokenizer, "tokenizer.")
    fill(s3gen.speaker_encoder, "speaker_encoder.")
    path = tmp_path / "reference.wav"
    soundfile.write(path, load_golden("conditionals")["in.wav"].numpy(), 24_000, subtype="FLOAT")
    conds = prepare_conditionals(s3gen, fill(VoiceEncoder()), path, hp=hp, exaggeration=0.5)
    for key in ("speaker_emb", "cond_prompt_speech_tokens", "emotion_adv"):
        check("conditionals", f"out.{case}.{key}", getattr(conds.t3, key))
    for key in ("prompt_token", "prompt_token_len", "prompt_feat", "embedding"):
        check("conditionals", f"out.{case}.gen.{key}", conds.gen[key])
    assert conds.gen["prompt_feat_len"] is None and conds.t3.clap_emb is None


def test_watermark():
    wav = load_golden("watermark")["in.wav"].numpy()
    marked = apply_watermark(wav, 24_000)
    check("watermark", "out.wav", torch.from_numpy(marked))
    meta = load_meta("watermark")
    assert round(read_watermark(marked, 24_000)) == meta["detected_after"]
    assert round(read_watermark(wav, 24_000)) == meta["detected_before"]
