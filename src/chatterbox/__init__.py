"""Text to speech with voice cloning: a drop-in replacement for ``chatterbox-tts`` on a native key-value cache.

Owns: the public names, resolved on first use, so that importing a part loads that part alone.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatterbox.evaluation.continuity import ContinuityReport, verify_prosody_continuity
    from chatterbox.mtl_tts import SUPPORTED_LANGUAGES, ChatterboxMultilingualTTS
    from chatterbox.tts import ChatterboxTTS
    from chatterbox.tts_turbo import ChatterboxTurboTTS
    from chatterbox.vc import ChatterboxVC

# oneDNN keeps the compiled kernels of the last 1,024 shapes: memory that grows with every new length of audio and saves
# no measurable time (docs/architecture.md). Read when torch first convolves.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

__version__ = "0.1.0"
__all__ = [
    "SUPPORTED_LANGUAGES",
    "ChatterboxMultilingualTTS",
    "ChatterboxTTS",
    "ChatterboxTurboTTS",
    "ChatterboxVC",
    "ContinuityReport",
    "__version__",
    "verify_prosody_continuity",
]

_HOMES = {
    "SUPPORTED_LANGUAGES": "chatterbox.mtl_tts",
    "ChatterboxMultilingualTTS": "chatterbox.mtl_tts",
    "ChatterboxTTS": "chatterbox.tts",
    "ChatterboxTurboTTS": "chatterbox.tts_turbo",
    "ChatterboxVC": "chatterbox.vc",
    "ContinuityReport": "chatterbox.evaluation.continuity",
    "verify_prosody_continuity": "chatterbox.evaluation.continuity",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


# Last: what is imported here looks for the names above, to know that this is the package that it belongs to.
from chatterbox.runtime.installation import warn_of_other_owner  # noqa: E402

warn_of_other_owner()
