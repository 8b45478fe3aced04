"""Names that upstream's modules have because they import them, and that programs import from there.

Owns: which name is where. They are resolved when they are first asked for, so that importing stays as cheap as it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

_SPEECH = {
    "T3": "chatterbox.models.t3:T3",
    "T3Cond": "chatterbox.models.t3.modules.cond_enc:T3Cond",
    "S3Gen": "chatterbox.models.s3gen:S3Gen",
    "S3GEN_SR": "chatterbox.models.s3gen:S3GEN_SR",
    "S3_SR": "chatterbox.models.s3tokenizer:S3_SR",
    "VoiceEncoder": "chatterbox.models.voice_encoder:VoiceEncoder",
    "EnTokenizer": "chatterbox.models.tokenizers:EnTokenizer",
    "drop_invalid_tokens": "chatterbox.models.s3tokenizer:drop_invalid_tokens",
    "load_file": "safetensors.torch:load_file",
    "hf_hub_download": "huggingface_hub:hf_hub_download",
    "snapshot_download": "huggingface_hub:snapshot_download",
    "F": "torch.nn.functional",
    "librosa": "librosa",
    "perth": "perth",
}
# Module -> name -> where it is: "module:name", or a module itself.
NAMES: dict[str, dict[str, str]] = {
    "chatterbox.tts": _SPEECH,
    "chatterbox.mtl_tts": _SPEECH
    | {
        "MTLTokenizer": "chatterbox.models.tokenizers:MTLTokenizer",
        "T3Config": "chatterbox.models.t3.modules.t3_config:T3Config",
        "load_safetensors": "safetensors.torch:load_file",
        "os": "os",
    },
    "chatterbox.tts_turbo": _SPEECH
    | {
        "S3GEN_SIL": "chatterbox.models.s3gen.const:S3GEN_SIL",
        "T3Config": "chatterbox.models.t3.modules.t3_config:T3Config",
        "AutoTokenizer": "transformers:AutoTokenizer",
        "math": "math",
        "os": "os",
    },
    "chatterbox.vc": {name: _SPEECH[name] for name in ("librosa", "perth", "load_file", "hf_hub_download")},
    "chatterbox.models.tokenizers.tokenizer": {
        "MTLTokenizer": "chatterbox.models.tokenizers.multilingual:MTLTokenizer",
        "REPO_ID": "chatterbox.tts:REPO_ID",
        "Tokenizer": "tokenizers:Tokenizer",
    },
    "chatterbox.models.t3.t3": {
        "AttrDict": "chatterbox.models.utils:AttrDict",
        "LLAMA_CONFIGS": "chatterbox.models.t3.llama_configs:LLAMA_CONFIGS",
        "LlamaConfig": "transformers:LlamaConfig",
        "LlamaModel": "transformers:LlamaModel",
        "GPT2Config": "transformers:GPT2Config",
        "GPT2Model": "transformers:GPT2Model",
        "tqdm": "tqdm:tqdm",
    },
    "chatterbox.models.voice_encoder.voice_encoder": {
        "VoiceEncConfig": "chatterbox.models.voice_encoder.config:VoiceEncConfig"
    },
}


def names_of(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module (PEP 562): upstream's names in it."""
    homes = NAMES[module]

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, renamed = homes[name].partition(":")
        found = importlib.import_module(home)
        return getattr(found, renamed) if renamed else found

    return get
