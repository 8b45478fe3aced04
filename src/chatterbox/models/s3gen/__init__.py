"""S3Gen: speech tokens to waveform."""

from chatterbox.models.s3gen.const import S3GEN_SR
from chatterbox.models.s3gen.s3gen import S3Token2Wav as S3Gen

__all__ = ["S3GEN_SR", "S3Gen"]
