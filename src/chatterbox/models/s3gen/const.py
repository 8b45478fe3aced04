"""Constants of S3Gen that other packages import. Sizes of the networks live in ``chatterbox.config``."""

S3GEN_SR = 24_000  # Hz
S3GEN_SIL = 4299  # speech token that sounds like silence
