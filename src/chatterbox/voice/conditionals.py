"""What a voice is: `Conditionals`, made from a reference recording or read from a file.

Owns: which part of a recording each model reads, and both file forms (``conds.pt``, ``.safetensors``). Does not know:
text, sampling, where checkpoints live.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from chatterbox.audio.loudness import normalize_loudness
from chatterbox.audio.recordings import VOICE, AudioInput, Purpose, load_reference, resample_hq
from chatterbox.config import exaggeration_of
from chatterbox.models.config import T3Config
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3gen.flow import FRAMES_PER_TOKEN
from chatterbox.models.s3tokenizer import S3_SR
from chatterbox.models.t3.modules.cond_enc import T3Cond
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.runtime.pickles import load_plain
from chatterbox.runtime.torch_context import own_context

DEC_COND_SECONDS = 10  # of the reference, for S3Gen
MAX_SURPLUS_FRAMES = 10  # of a voice's mel beyond its tokens; `S3Gen.embed_ref` leaves one at most

Reference = AudioInput

_GEN_KEYS = ("prompt_token", "prompt_token_len", "prompt_feat", "prompt_feat_len", "embedding")


@dataclass
class Conditionals:
    """One voice: ``t3`` conditions the speech tokens, ``gen`` (the dict of `S3Gen.embed_ref`) the waveform.

    Nothing in this package changes one after it was made; every method returns a new one.
    """

    t3: T3Cond
    gen: dict[str, Any]

    def to(self, device: torch.device | str) -> Conditionals:
        gen = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in self.gen.items()}
        return Conditionals(self.t3.to(device=device), gen)

    @own_context()
    def clone(self) -> Conditionals:
        """A copy that shares nothing."""
        t3, gen = ({key: _cloned(value) for key, value in part.items()} for part in (vars(self.t3), self.gen))
        return Conditionals(T3Cond(**t3), gen)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(value.nbytes for value in self._tensors())

    @property
    def is_finite(self) -> bool:
        """Whether no tensor holds NaN or infinite values."""
        return all(bool(value.isfinite().all()) for value in self._tensors())

    def _tensors(self) -> list[Tensor]:
        return [value for value in (*vars(self.t3).values(), *self.gen.values()) if isinstance(value, Tensor)]

    @own_context()
    def with_exaggeration(self, exaggeration: float) -> Conditionals:
        """The same voice with another emotion (0.5 is neutral). Raises ValueError if it is no number from 0 to 10."""
        value, device = exaggeration_of(exaggeration), self.t3.speaker_emb.device
        emotion = torch.full((1, 1, 1), value, dtype=torch.float32, device=device)
        return Conditionals(dataclasses.replace(self.t3, emotion_adv=emotion), self.gen)

    def save(self, fpath: str | Path | IO[bytes]) -> None:
        """Write upstream's ``conds.pt`` form, or safetensors if ``fpath`` is a name that ends in ``.safetensors``."""
        if not isinstance(fpath, str | os.PathLike) or Path(fpath).suffix != ".safetensors":
            torch.save({"t3": dict(vars(self.t3)), "gen": self.gen}, fpath)
            return
        from safetensors.torch import save_file

        save_file(self.as_tensors(), str(fpath))

    def as_tensors(self) -> dict[str, Tensor]:
        """What the safetensors form holds, on the CPU."""
        t3 = dict(vars(self.t3))
        t3["emotion_adv"] = torch.as_tensor(t3["emotion_adv"], dtype=torch.float32).reshape(-1, 1, 1)
        values = {f"{part}.{key}": value for part, d in (("t3", t3), ("gen", self.gen)) for key, value in d.items()}
        return {key: value.contiguous().cpu() for key, value in values.items() if value is not None}

    @classmethod
    @own_context()
    def load(cls, fpath: str | Path | IO[bytes], map_location: str | torch.device = "cpu") -> Conditionals:
        """Read either form; a file object holds upstream's. Pickles are read as plain data, half precision as float32.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file holds something else.
        """
        path = Path(fpath) if isinstance(fpath, str | os.PathLike) else None
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"conditionals {str(fpath)!r} do not exist; save makes them")
        try:
            if path is not None and path.suffix == ".safetensors":
                parts = _read_safetensors(path, map_location)
            else:
                parts = load_plain(fpath, map_location)
            gen = {key: _restored(parts["gen"].get(key)) for key in _GEN_KEYS}
            t3 = T3Cond(**{key: _restored(value) for key, value in parts["t3"].items()})
        except Exception as error:  # truncated, no pickle, not plain data, other keys: each library has its own class
            reason = f"{type(error).__name__}: " + str(error).partition("\n")[0]
            if isinstance(error, pickle.UnpicklingError):  # torch advises to run what is in it
                reason = "it is no pickle of tensors and plain values alone"
            raise ValueError(f"{fpath} holds no conditionals of a voice ({reason})") from None
        if lacking := [key for key in ("prompt_token", "prompt_feat", "embedding") if gen[key] is None]:
            raise ValueError(f"{fpath} holds no conditionals of a voice: gen lacks {', '.join(lacking)}")
        if flaw := _flaw(t3, gen):
            raise ValueError(f"{fpath} holds no conditionals of a voice: {flaw}; save it again")
        return cls(t3, gen)


@dataclass(frozen=True)
class Hearing:
    """How a recording is heard.

    sample_rate: of samples, as `audio.recordings.Recording` has it. norm_loudness: bring it to -27 LUFS first, where
    the model wants it. enc_cond_len, dec_cond_len: samples at 16 kHz that T3's prompt is made of, and at 24 kHz that
    S3Gen hears; None is as the model has it, and 10 s. purpose: what messages call the recording.
    """

    sample_rate: int | None = None
    norm_loudness: bool = True
    enc_cond_len: int | None = None
    dec_cond_len: int | None = None
    purpose: Purpose = VOICE


@own_context()
def prepare_conditionals(
    s3gen: S3Gen,
    voice_encoder: VoiceEncoder,
    reference: Reference,
    *,
    hp: T3Config,
    exaggeration: float = 0.5,
    hearing: Hearing = Hearing(),
) -> Conditionals:
    """Conditionals of the voice in a reference recording.

    Args:
        reference: as `audio.recordings.Recording` has it.
        hp: of the T3 that the voice is for; it says how long a recording must be and how much of it is its prompt.
        exaggeration: emotion, 0.5 is neutral.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `audio.recordings.load_reference`, or too short for the model.
    """
    exaggeration = exaggeration_of(exaggeration)
    purpose = hearing.purpose
    wav_24 = load_reference(reference, S3GEN_SR, source_rate=hearing.sample_rate, purpose=purpose)
    if (seconds := len(wav_24) / S3GEN_SR) <= (least := hp.min_recording_seconds):
        raise ValueError(f"{purpose.name} is {seconds:.1f} s long; this model needs more than {least} s of speech")
    if hearing.norm_loudness and hp.norm_loudness:
        wav_24 = normalize_loudness(wav_24, S3GEN_SR)
    wav_16 = resample_hq(wav_24, S3GEN_SR, S3_SR)
    with torch.no_grad():
        heard = wav_24[: DEC_COND_SECONDS * S3GEN_SR if hearing.dec_cond_len is None else hearing.dec_cond_len]
        gen = s3gen.embed_ref(heard, S3GEN_SR, device=s3gen.device)
        prompt = wav_16[: hp.prompt_seconds * S3_SR if hearing.enc_cond_len is None else hearing.enc_cond_len]
        speech_tokens, _ = s3gen.tokenizer([prompt], max_len=hp.speech_cond_prompt_len)  # (1, <= prompt_len)
    speaker = torch.from_numpy(voice_encoder.embeds_from_wavs([wav_16], sample_rate=S3_SR)).to(s3gen.device)  # (1, 256)
    t3 = T3Cond(
        speaker_emb=speaker,
        cond_prompt_speech_tokens=speech_tokens.to(s3gen.device),
        emotion_adv=torch.full((1, 1, 1), exaggeration, dtype=torch.float32, device=s3gen.device),
    )
    return Conditionals(t3, gen)


@own_context()
def prepare_target_voice(
    s3gen: S3Gen, reference: Reference, *, sample_rate: int | None = None, dec_cond_len: int | None = None
) -> dict[str, Any]:
    """The ``gen`` half alone, which voice conversion needs; reads no more than 10 s, or ``dec_cond_len`` samples."""
    seconds = DEC_COND_SECONDS if dec_cond_len is None else dec_cond_len / S3GEN_SR
    wav = load_reference(reference, S3GEN_SR, source_rate=sample_rate, max_seconds=seconds)[:dec_cond_len]
    with torch.no_grad():
        return s3gen.embed_ref(wav, S3GEN_SR, device=s3gen.device)


def _flaw(t3: T3Cond, gen: Mapping[str, Any]) -> str | None:
    """What is wrong with a voice that a file holds; None if nothing is. Tensors without values have none that is."""
    forms = {  # whole numbers or not, dimensions
        "t3.speaker_emb": (t3.speaker_emb, False, (1, 2)),
        "t3.cond_prompt_speech_tokens": (t3.cond_prompt_speech_tokens, True, (2,)),
        "t3.cond_prompt_speech_emb": (t3.cond_prompt_speech_emb, False, (3,)),
        "gen.prompt_token": (gen["prompt_token"], True, (1, 2)),
        "gen.prompt_feat": (gen["prompt_feat"], False, (3,)),
        "gen.embedding": (gen["embedding"], False, (1, 2)),
    }
    for name, (value, is_whole, num_dims) in forms.items():
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.is_nested or value.is_quantized or value.layout != torch.strided:
            return f"{name} is no plain tensor"
        if value.ndim not in num_dims or (value.ndim > 1 and len(value) != 1) or not (value.numel() or name[0] == "t"):
            return f"{name} is {tuple(value.shape)}"
        if not is_whole and not value.is_floating_point():
            return f"{name} is {str(value.dtype).removeprefix('torch.')}"
        if not value.is_meta and not bool(value.isfinite().all()):
            return f"{name} has NaN or infinite values"
        if is_whole and not value.is_meta and not bool(((value >= 0) & (value == value.long())).all()):
            return f"{name} has what is no speech token"
    return _flaw_of_lengths(gen)


def _flaw_of_lengths(gen: Mapping[str, Any]) -> str | None:
    """Where there are fewer frames than the prompt's tokens make, the rest of it would be heard."""
    num_tokens, num_frames, told = gen["prompt_token"].shape[-1], gen["prompt_feat"].shape[1], gen["prompt_token_len"]
    if isinstance(told, Tensor) and told.is_meta:
        return None
    if told is not None:
        told = torch.as_tensor(told)
        if told.numel() != 1 or not 0 < float(told) <= num_tokens:
            return f"gen.prompt_token_len is {told.tolist()} for {num_tokens} tokens"
        num_tokens = int(told)
    if not 0 <= num_frames - FRAMES_PER_TOKEN * num_tokens <= MAX_SURPLUS_FRAMES:
        return f"gen.prompt_feat has {num_frames} frames for {num_tokens} tokens, not {FRAMES_PER_TOKEN} for each"
    return None


def _read_safetensors(path: Path, map_location: str | torch.device) -> dict[str, dict[str, Any]]:
    from safetensors.torch import load_file

    parts: dict[str, dict[str, Any]] = {"t3": {}, "gen": {}}
    for key, value in load_file(str(path)).items():
        part, _, name = key.partition(".")
        parts[part][name] = value.to(map_location)
    return parts


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _restored(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
