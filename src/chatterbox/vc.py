"""`ChatterboxVC`: upstream's voice conversion façade over `chatterbox.synthesis.synthesizer`.

Owns: upstream's names and signatures, nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatterbox.audio.recordings import rates_of
from chatterbox.checkpoints import (
    REPO_ID,
    Files,
    Layout,
    find_s3gen,
    folder_at,
    load_conditionals,
    load_s3gen,
    read_s3gen,
    resolve_device,
)
from chatterbox.config import PrecisionConfig, precision_config
from chatterbox.models.config import T3Config
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3tokenizer import S3_SR
from chatterbox.models.weights_watch import state_of
from chatterbox.runtime.notice import Notice
from chatterbox.runtime.reloadable import Reloadable
from chatterbox.runtime.replaceable import replaceable, replacement
from chatterbox.synthesis.conversion import convert
from chatterbox.upstream_names import names_of
from chatterbox.values import seed_of, switch
from chatterbox.voice.conditionals import DEC_COND_SECONDS, Reference, prepare_target_voice
from chatterbox.watermark.perth import watermarker_of

__getattr__ = names_of(__name__)  # what upstream's module has because it imports it
__all__ = ["REPO_ID", "ChatterboxVC"]


class ChatterboxVC:
    """Says what one recording says in the voice of another.

    ``ref_dict`` is the target voice used when a call names none; only `set_target_voice` and the caller assign it.
    """

    ENC_COND_LEN = T3Config.prompt_seconds * S3_SR
    DEC_COND_LEN = DEC_COND_SECONDS * S3GEN_SR

    def __init__(self, s3gen: S3Gen, device: str | torch.device, ref_dict: dict[str, Any] | None = None) -> None:
        self.sr = S3GEN_SR
        self._notice = Notice(
            "the target voice is not that of the last recording: one that is given to generate is of that call alone. "
            "chatterbox-tts would go on with it; to do so call set_target_voice(recording)"
        )
        self._model = Reloadable(s3gen)
        self.device = device
        self.watermarker = watermarker_of(sys.modules[__name__])
        self.ref_dict = ref_dict and {k: v.to(device) if isinstance(v, Tensor) else v for k, v in ref_dict.items()}

    @classmethod
    def from_local(
        cls,
        ckpt_dir: str | Path,
        device: str | torch.device,
        *,
        s3gen_model: str | None = None,
        precision: str = "auto",
    ) -> ChatterboxVC:
        """Load the S3Gen part of a checkpoint folder; its built-in voice, if any, is the first target.

        Args:
            s3gen_model: a file of the folder, "v1" or "v3"; None finds it.
            precision: type of its weights, as `chatterbox.tts.ChatterboxTTS.from_local`.

        Raises:
            ValueError: a file is missing, broken or of another model, or the device or precision does not exist.
        """
        folder, given = folder_at(ckpt_dir), Files(s3gen_model=s3gen_model)
        return cls._load(folder, resolve_device(device), given, None, folder, precision)

    @classmethod
    def from_pretrained(
        cls,
        device: str | torch.device,
        *,
        model: str | Path = "chatterbox",
        local_files_only: bool = False,
        s3gen_model: str | None = None,
        precision: str = "auto",
    ) -> ChatterboxVC:
        """Load the S3Gen of a model: "chatterbox", "multilingual", "turbo" or "nano" (published, from the hub), "tiny"
        (part of this package) or a folder of any of them.

        Raises:
            ValueError: no such model or device, or the hub is out of reach; "tiny" works offline.
        """
        device, given = resolve_device(device), Files(s3gen_model=s3gen_model)
        found = find_s3gen(model, given.s3gen_model, repo=REPO_ID, local_files_only=local_files_only)
        folder, layout, voice = found
        return cls._load(folder, device, given, layout, voice, precision)

    @classmethod
    def _load(
        cls, folder: Path, device: torch.device, given: Files, layout: Layout | None, voice: Path, precision: str
    ) -> ChatterboxVC:
        """``voice``: the folder that has one. Of the folders no more is read than S3Gen and that."""
        load = partial(_s3gen_of, folder.absolute(), device, given, layout, precision_config(precision))
        s3gen, conds = load({}), load_conditionals((folder, voice), device)
        vc = cls(s3gen, str(device), None if conds is None else conds.gen)
        vc._model.load_by(load, state_of)
        return vc

    @property
    def s3gen(self) -> S3Gen:
        """The network; loaded again where it was unloaded. One that is assigned is used from then on."""
        return self._model.get()

    @s3gen.setter
    def s3gen(self, s3gen: S3Gen) -> None:
        self._model = Reloadable(s3gen)

    def unload(self) -> None:
        """Give back the memory of the weights; the next use loads them again from where they were loaded. ``ref_dict``
        is kept. Conversions under way go on to their end with the weights that they have, which are given back then.

        Raises:
            RuntimeError: it was built from parts, or changed since it was loaded.
        """
        self._model.give_up(lambda s3gen: {}, lambda s3gen: None)

    @property
    def ref_dict(self) -> dict[str, Any] | None:
        """The target voice of calls that name none; only `set_target_voice` and the caller assign it."""
        self._notice.tell()
        return self._ref_dict

    @ref_dict.setter
    def ref_dict(self, voice: dict[str, Any] | None) -> None:
        self._ref_dict = voice
        self._notice.is_due = False

    @replaceable
    def set_target_voice(self, wav_fpath: Reference, *, sample_rate: int | None = None) -> None:
        """Make the voice of a recording the target of later calls; the arguments are `prepare_conditionals`'s.

        Raises:
            FileNotFoundError, TypeError, ValueError: the recording cannot be used; the message says why.
        """
        self.ref_dict = self._target_of(wav_fpath, sample_rate)

    def generate(
        self,
        audio: Reference,
        target_voice_path: Reference | None = None,
        *,
        seed: int | None = None,
        watermark: bool = True,
        sample_rate: int | None = None,
    ) -> Tensor:
        """What ``audio`` says, up to four hours of it, in the target voice: (1, N) float32 on the CPU, at ``sr`` Hz.

        Args:
            audio: a file, its bytes, (rate, samples), a dict of both, or samples at ``sample_rate``.
            target_voice_path: recording of the target for this call alone; None and "" use ``ref_dict``.
            sample_rate: in Hz, of what is samples without a rate of their own; None is 24 kHz.
            seed: as `chatterbox.tts.ChatterboxTTS.generate`; so is ``watermark``.

        Raises:
            FileNotFoundError, TypeError, ValueError: a recording cannot be used, or there is no target voice.
        """
        seed, watermarker = seed_of(seed), self.watermarker if switch("watermark", watermark, True) else None
        target = None if isinstance(target_voice_path, str) and not target_voice_path else target_voice_path
        rate, target_rate = rates_of([audio, target], sample_rate)
        gen = self._target(target, target_rate)
        if gen is None:
            raise ValueError("no target voice yet: pass target_voice_path, or call set_target_voice first")
        return convert(self.s3gen, audio, gen, sample_rate=rate, seed=seed, watermarker=watermarker)

    def _target(self, reference: Reference | None, sample_rate: int | None) -> dict[str, Any] | None:
        if reference is not None and replacement(self, "set_target_voice") is not None:
            arguments = {} if sample_rate is None else {"sample_rate": sample_rate}
            self.set_target_voice(reference, **arguments)
            reference = None
        if reference is None:
            return self.ref_dict
        self._notice.is_due = True
        return self._target_of(reference, sample_rate)

    def _target_of(self, reference: Reference, sample_rate: int | None) -> dict[str, Any]:
        length = None if self.DEC_COND_LEN == DEC_COND_SECONDS * S3GEN_SR else self.DEC_COND_LEN
        return prepare_target_voice(self.s3gen, reference, sample_rate=sample_rate, dec_cond_len=length)


def _s3gen_of(
    folder: Path,
    device: torch.device,
    given: Files,
    layout: Layout | None,
    precision: PrecisionConfig,
    kept: Mapping[str, Any],
) -> S3Gen:
    path, config = read_s3gen(folder, given.s3gen_model, layout)
    return load_s3gen(path, device, config, precision)
