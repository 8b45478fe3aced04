"""Sizes of the embedded voice and of its training stages. The only place for these numbers."""

from __future__ import annotations

from dataclasses import replace

from chatterbox.config import SamplingConfig
from chatterbox.models.config import (
    CAMPPlusConfig,
    EstimatorConfig,
    FlowConfig,
    FlowEncoderConfig,
    HiFTConfig,
    LlamaConfig,
    ModelConfig,
    S3GenConfig,
    S3TokenizerConfig,
    T3Config,
    VoiceEncoderConfig,
)

# Each teacher voice is also heard faster and slower by resampling, which moves pitch and formants: more speakers.
SPEEDS = (0.84, 0.92, 1.0, 1.09, 1.19)
NATURAL_SPEED = SPEEDS.index(1.0)
NATURAL_SHARE = 0.6  # of what the stages draw

BUILT_IN_VOICE = "rms"  # whose voice an export speaks in unless asked
DEFAULT_VOICE = "kumo"  # whom the stages hear most, and is to follow it
DEFAULT_SHARE = 0.3  # of what the stages draw is of the default voice, beside what it has of the rest

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'-\":;()&%$"
SPECIAL_TOKENS = ("[STOP]", "[START]", "[UNK]", "[SPACE]")

TINY = ModelConfig(
    t3=T3Config(
        text_tokens_dict_size=len(SPECIAL_TOKENS) + len(CHARACTERS),
        start_text_token=SPECIAL_TOKENS.index("[START]"),
        stop_text_token=SPECIAL_TOKENS.index("[STOP]"),
        max_text_tokens=600,
        utterance_text_len=100,  # characters; it learnt sentences of up to so many
        speech_tokens_dict_size=6564,
        spells_numbers=True,  # it learnt too few digits to read them
        max_speech_tokens=1000,
        speech_cond_prompt_len=75,
        speaker_embed_size=64,
        perceiver_queries=4,
        perceiver_heads=4,
        backbone=LlamaConfig(num_layers=6, hidden_size=256, num_heads=4, head_dim=64, intermediate_size=640),
        silent_speech_tokens=(3936,),  # of its own codebook, as `silence` measures
    ),
    s3gen=S3GenConfig(
        tokenizer=S3TokenizerConfig(hidden_size=192, num_heads=3, num_layers=2),
        speaker_encoder=CAMPPlusConfig(
            head_channels=8, tdnn_channels=32, growth_rate=8, block_layers=(3, 4, 3), embed_size=64
        ),
        flow=FlowConfig(
            speaker_embed_size=64,
            num_steps=1,
            guidance_rate=0.0,
            noise_temperature=0.0,
            encoder=FlowEncoderConfig(
                hidden_size=128, num_heads=4, feed_forward_size=256, num_layers=3, num_up_layers=2
            ),
            estimator=EstimatorConfig(
                channels=160, num_mid_blocks=1, num_transformers=1, num_heads=2, feed_forward_factor=2
            ),
        ),
        # What speech needs of harmonics and noise is made, not learnt: the network says how to filter them.
        vocoder=HiFTConfig(
            excitation="pulses",
            num_harmonics=1,
            base_channels=256,
            f0_channels=96,
            upsample_rates=(4,),
            upsample_kernels=(8,),
            resblock_kernels=(3, 7),
            resblock_dilations=(1, 3),
            source_resblock_kernels=(),
            istft_n_fft=480,
            istft_hop=120,
            voiced_threshold=40.0,
        ),
    ),
    voice_encoder=VoiceEncoderConfig(hidden_size=64, num_layers=2, embed_size=64),
    sampling=SamplingConfig(temperature=0.5, cfg_weight=0.0, repetition_penalty=1.1, min_p=0.1, top_p=0.95),
)

# By which what touches a flow's steps, noise, guidance or attention is judged: as the published one in all of these,
# where that of `TINY` answers in one step. Not shipped.
JUDGING_FLOW = replace(
    TINY.s3gen.flow,
    num_steps=10,
    guidance_rate=0.7,
    noise_temperature=1.0,
    estimator=replace(TINY.s3gen.flow.estimator, num_mid_blocks=4),
)
