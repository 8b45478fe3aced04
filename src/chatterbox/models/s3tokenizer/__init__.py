"""S3 speech tokenizer: 16 kHz audio to discrete speech tokens."""

from chatterbox.models.s3tokenizer.s3tokenizer import (
    EOS,
    S3_HOP,
    S3_SR,
    S3_TOKEN_HOP,
    S3_TOKEN_RATE,
    SOS,
    SPEECH_VOCAB_SIZE,
    S3Tokenizer,
    drop_invalid_tokens,
)

__all__ = [
    "EOS",
    "S3_HOP",
    "S3_SR",
    "S3_TOKEN_HOP",
    "S3_TOKEN_RATE",
    "SOS",
    "SPEECH_VOCAB_SIZE",
    "S3Tokenizer",
    "drop_invalid_tokens",
]
