"""From trained stages to a checkpoint folder in the published layout, in half precision."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chatterbox.checkpoints.code_tables import PARTS, code_table
from chatterbox.checkpoints.loading import load_s3gen
from chatterbox.config import to_dict
from chatterbox.models.config import NUM_SPEECH_TOKENS
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3gen.flow import CausalMaskedDiffWithXvec
from chatterbox.models.t3 import T3
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.voice.conditionals import prepare_conditionals
from tools.tiny_voice.loop import Stage, averaged_weights
from tools.tiny_voice.recordings import CHARACTER_IDS, Recordings
from tools.tiny_voice.tables import SymbolTable, compact_state, factorize, fit
from tools.tiny_voice.teacher import VOICES
from tools.tiny_voice.tiny import BUILT_IN_VOICE, JUDGING_FLOW, NATURAL_SPEED, SPECIAL_TOKENS, TINY

logger = logging.getLogger(__name__)

REFERENCE_SECONDS = 4.0


def export(work: Path, recordings: Recordings, folder: Path, voice: str = BUILT_IN_VOICE) -> None:
    """Write config.json, tokenizer.json, the three weight files and the built-in voice to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    voice_encoder, s3gen, t3 = assemble(work)
    for name, module in (("ve", voice_encoder), ("s3gen", s3gen), ("t3_cfg", t3)):
        save_file(compact(module), str(folder / f"{name}.safetensors"))
    s3gen = load_s3gen(folder / "s3gen.safetensors", torch.device("cpu"), TINY.s3gen)
    (folder / "config.json").write_text(json.dumps(to_dict(TINY), indent=1) + "\n")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_file(), indent=1) + "\n")
    reference = reference_of(recordings, VOICES.index(voice))
    conditionals = prepare_conditionals(s3gen, voice_encoder, reference, hp=TINY.t3)
    conditionals.save(folder / "conds.safetensors")
    stored = load_file(str(folder / "conds.safetensors"))
    save_file({key: _halved(key, value) for key, value in stored.items()}, str(folder / "conds.safetensors"))
    for path in folder.iterdir():
        path.chmod(0o644)


def assemble(work: Path) -> tuple[VoiceEncoder, S3Gen, T3]:
    """The models with the averaged weights of their stages, their code tables still in parts."""
    voice_encoder, s3gen, t3 = VoiceEncoder(TINY.voice_encoder), S3Gen(config=TINY.s3gen), T3(TINY.t3)
    speakers = averaged_weights(work, "speakers")
    voice_encoder.load_state_dict(_part(speakers, "voice_encoder."))
    s3gen.speaker_encoder.load_state_dict(_part(speakers, "campplus."))
    s3gen.tokenizer.load_state_dict(averaged_weights(work, "tokenizer"))
    s3gen.mel2wav.load_state_dict(averaged_weights(work, "vocoder"))
    s3gen.flow = trained_flow(work)
    t3_state = averaged_weights(work, "t3")
    for table in (t3.speech_emb, t3.speech_head):
        factorize(table, std=0.0)
    t3.load_state_dict(t3_state)
    return voice_encoder.eval(), s3gen.eval(), t3.eval()


FLOWS = {"flow": TINY.s3gen.flow, "judging_flow": JUDGING_FLOW}  # by stage


def trained_flow(work: Path, stage: str = "flow") -> CausalMaskedDiffWithXvec:
    """The flow with its averaged weights, in evaluation mode; its speech token table is still factorised."""
    state = averaged_weights(work, stage)
    flow = CausalMaskedDiffWithXvec(FLOWS[stage])
    factorize(flow.input_embedding, std=0.0)
    flow.load_state_dict(state)
    return flow.eval()


# Where a stage's module stands in the exported files: file, then module prefix to key prefix.
PLACES = {
    "speakers": (("ve", "voice_encoder.", ""), ("s3gen", "campplus.", "speaker_encoder.")),
    "tokenizer": (("s3gen", "", "tokenizer."),),
    "flow": (("s3gen", "", "flow."),),
    "judging_flow": (("s3gen", "", "flow."),),
    "vocoder": (("s3gen", "", "mel2wav."),),
    "t3": (("t3_cfg", "", ""),),
}
INSIDE, STORED = ".parametrizations.weight.", ".code_table."


@torch.no_grad()
def warm_start(stage: Stage[Any], folder: Path) -> None:
    """Fill a stage's module with an exported folder's weights, so that training goes on without its checkpoint.

    A token table that is dense or of another rank becomes the parts that come nearest to it. What the export leaves
    out (prototypes, derived buffers) keeps its fresh values.
    """
    for file, module_prefix, key_prefix in PLACES[stage.name]:
        stored = load_file(str(folder / f"{file}.safetensors"))
        for key, target in stage.module.state_dict().items():
            if not key.startswith(module_prefix):
                continue
            name = key_prefix + key.removeprefix(module_prefix)
            table, inside, part = name.partition(INSIDE)
            if inside and part == "original":  # of all parts, which come together
                owner = stage.module.get_submodule(key.partition(INSIDE)[0])
                if f"{table}.weight" in stored:
                    _fit_table(owner, stored[f"{table}.weight"])
                else:
                    _take_table(owner, [stored[f"{table}{STORED}{one}"] for one in PARTS])
            elif not inside and name in stored:
                target.copy_(stored[name])


def _take_table(module: nn.Module, parts: Sequence[Tensor]) -> None:
    """The parts themselves, or of another rank what comes nearest to them."""
    symbols = module.get_submodule("parametrizations.weight.0")
    assert isinstance(symbols, SymbolTable)
    if parts[PARTS.index("mix")].shape != symbols.mix.shape:
        _fit_table(module, code_table(*(part.float() for part in parts)))
        return
    module.get_parameter("parametrizations.weight.original").copy_(parts[-1])
    for name, value in zip(PARTS[:-1], parts, strict=False):
        symbols.get_parameter(name).copy_(value)


def _fit_table(module: nn.Module, weight: Tensor) -> None:
    symbols = module.get_submodule("parametrizations.weight.0")
    assert isinstance(symbols, SymbolTable)
    missed = fit(symbols, weight)
    module.get_parameter("parametrizations.weight.original").copy_(weight[NUM_SPEECH_TOKENS:])
    logger.info("a code table of rank %d misses %.1f%% of its variance", symbols.mix.shape[0], 100 * missed)


def compact(module: nn.Module) -> dict[str, Tensor]:
    """State dict in float16, but for running statistics; what the speech tokenizer computes itself is left out."""
    return {
        key: _halved(key, value)
        for key, value in compact_state(module).items()
        if key.rsplit(".", 1)[-1] not in ("_mel_filters", "window")
    }


def _halved(key: str, value: Tensor) -> Tensor:
    keep = not value.is_floating_point() or "running_" in key
    return value.detach().to(value.dtype if keep else torch.float16).contiguous()


def reference_of(recordings: Recordings, voice: int) -> np.ndarray:
    """(N,) float32 at 24 kHz: recordings of a voice, joined to a few seconds."""
    pieces, total = [], 0
    for index in recordings.by_voice[voice]:
        pieces.append(recordings.audio(index, NATURAL_SPEED, S3GEN_SR))
        total += len(pieces[-1])
        if total >= REFERENCE_SECONDS * S3GEN_SR:
            break
    return np.concatenate(pieces)


def tokenizer_file() -> dict[str, object]:
    """A character tokenizer in the file format of the published one: no merges, text is lower-cased first."""
    special = [
        {
            "id": CHARACTER_IDS[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": CHARACTER_IDS,
            "merges": [],
        },
    }


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
