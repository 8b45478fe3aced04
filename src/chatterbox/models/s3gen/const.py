"""Constants of S3Gen that other packages import. Sizes of the networks live in ``chatterbox.config``."""

from chatterbox.models.config import SILENT_SPEECH_TOKEN

S3GEN_SR = 24_000  # Hz
S3GEN_SIL = SILENT_SPEECH_TOKEN
