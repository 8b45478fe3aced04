"""A flow by which to judge what S3Gen leaves out, and what that costs in units of its own noise.

``python -m benchmarks.quality.judging_flow -o judging_flow.json`` needs flite (Debian package) and `make quality-env`.

The embedded voice's flow answers in one step, without noise or guidance, so it cannot tell what steps, guidance or
attention are worth. `judging_flow.safetensors` beside this is a flow of the embedded voice that has all of them as the
published one has (`tools.tiny_voice`, stage ``judging_flow``). It is fed with true speech tokens, those of flite's
recordings, in the embedded voice. Each case is compared with the mel that is made at once from the same tokens and
noise; the unit is the distance of two mels of the same tokens from different noise, which a listener takes for the same
sentence.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib.harness import command, environment, save
from benchmarks.lib.mel_stream import MelStream
from chatterbox.checkpoints.loading import load_module
from chatterbox.evaluation.meters import Score, Spoken, at_rate, interval, scores_of
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3gen.cfm import DEFAULT_STEPS, Steps
from chatterbox.models.s3gen.flow import CausalMaskedDiffWithXvec
from chatterbox.models.s3gen.stream import with_prompt_seconds
from chatterbox.text.in_words import in_words
from chatterbox.tts import ChatterboxTTS
from tools.arguments import whole_number
from tools.tiny_voice.corpus import evaluation_set
from tools.tiny_voice.recordings import PitchScale, load, trimmed_symbols
from tools.tiny_voice.speech_tokens import to_speech_tokens
from tools.tiny_voice.teacher import VOICES, build
from tools.tiny_voice.tiny import BUILT_IN_VOICE, JUDGING_FLOW

WEIGHTS = Path(__file__).parent / "judging_flow.safetensors"
METERS = ("whisper", "dnsmos", "distillmos")
SEED, OTHER_SEED = 1, 2
DECIBELS = 20 / np.log(10)  # in a nat of a magnitude
FEWER_STEPS = (8, 7, 6, 5, 4, 3, 2, 1)
UNGUIDED_STEPS = (1, 2, 3, 4, 5, 6, 8)  # of ten
PIECE_LEN = 25  # speech tokens, a second


def judging_s3gen() -> S3Gen:
    """The embedded voice's S3Gen, with the flow to judge by in place of its own.

    Raises:
        FileNotFoundError: nobody has trained it here; the message says how.
    """
    if not WEIGHTS.is_file():
        remedy = 'make train-tiny STAGES="data speakers judging_flow export_judging_flow"'
        raise FileNotFoundError(f"{WEIGHTS} does not exist; train it: {remedy}")
    s3gen = ChatterboxTTS.from_pretrained("cpu", model="tiny").s3gen
    s3gen.flow = load_module(lambda: CausalMaskedDiffWithXvec(JUDGING_FLOW), WEIGHTS, torch.device("cpu"))
    return s3gen


def true_speech_tokens(texts: Sequence[str], voice: str) -> list[Tensor]:
    """The speech tokens (T,) that name what flite's ``voice`` says of each text."""
    with tempfile.TemporaryDirectory() as folder:
        build(folder, [(text, voice) for text in texts], num_processes=1)
        spoken = load(Path(folder))
    scale = PitchScale.of(spoken)
    return [torch.from_numpy(to_speech_tokens(trimmed_symbols(one, scale))) for one in spoken]


@dataclass(frozen=True)
class Case:
    """How the mel of a text is made."""

    seed: int = SEED
    piece_len: int | None = None  # speech tokens; None is all at once
    memory: str = "none"
    steps: Steps = DEFAULT_STEPS
    guidance: float = JUDGING_FLOW.guidance_rate
    prompt_seconds: float | None = None


CASES = {
    "at once": Case(),
    "at once, other noise": Case(seed=OTHER_SEED),
    "in pieces": Case(piece_len=PIECE_LEN),
    "at once, prompt remembered": Case(memory="prompt"),
    "in pieces, prompt remembered": Case(piece_len=PIECE_LEN, memory="prompt"),
    "in pieces, past remembered": Case(piece_len=PIECE_LEN, memory="past"),
    **{f"at once, {num} steps": Case(steps=Steps(num)) for num in FEWER_STEPS},
    **{f"at once, {num} of ten without guidance": Case(steps=Steps(num_unguided=num)) for num in UNGUIDED_STEPS},
    "at once, no guidance": Case(guidance=0.0),
    **{
        f"in pieces, past remembered, {steps.num} steps, {steps.num_unguided} without guidance": Case(
            piece_len=PIECE_LEN, memory="past", steps=steps
        )
        for steps in (Steps(7, 2), Steps(5, 0), Steps(5, 1), Steps(5, 2), Steps(4, 1))
    },
    **{f"at once, {seconds} s of the recording": Case(prompt_seconds=seconds) for seconds in (1, 2)},
}


HEARD = (  # by the meters, which take most of the time; of all others there is the distance alone
    "at once",
    "at once, other noise",
    "in pieces",
    "in pieces, prompt remembered",
    "in pieces, past remembered",
    "at once, 5 steps",
    "at once, 2 steps",
    "at once, 2 of ten without guidance",
    "at once, no guidance",
    "in pieces, past remembered, 5 steps, 2 without guidance",
    "at once, 1 s of the recording",
)


@torch.inference_mode()
def mel_of(s3gen: S3Gen, speech_tokens: Tensor, voice: Mapping[str, Any], case: Case) -> Tensor:
    """(80, frames) of log magnitudes."""
    s3gen.flow.decoder.inference_cfg_rate = case.guidance
    voice = with_prompt_seconds(voice, case.prompt_seconds)
    stream = MelStream(s3gen, voice, seed=case.seed, steps=case.steps, memory=case.memory)
    pieces = speech_tokens.split(case.piece_len or len(speech_tokens))
    made = [*(stream.push(piece) for piece in pieces[:-1]), stream.finish(pieces[-1])]
    return torch.cat([one for one in made if one.dim() == 3], dim=2)[0]


@torch.inference_mode()
def wav_of(s3gen: S3Gen, mel: Tensor) -> np.ndarray:
    """(N,) at the meters' rate."""
    wav, _ = s3gen.mel2wav.inference(mel[None], generator=torch.Generator().manual_seed(SEED))
    return at_rate(wav[0].numpy(), S3GEN_SR)


def distance(one: Tensor, other: Tensor) -> float:
    """Root mean square difference of two mels, in dB, averaged over frames; a shorter one lacks the first."""
    length = min(one.shape[1], other.shape[1])
    one, other = one[:, -length:], other[:, -length:]
    return float(DECIBELS * (one - other).square().mean(0).sqrt().mean())


def measure(num_texts: int, voice: str) -> dict[str, Any]:
    """Words and sound of each case, and how far it is from the unchanged one, with intervals over texts."""
    tts, s3gen = ChatterboxTTS.from_pretrained("cpu", model="tiny"), judging_s3gen()
    assert tts.conds is not None
    texts = [in_words(text) for text in evaluation_set("everyday")[:num_texts]]
    spoken_tokens = true_speech_tokens(texts, voice)
    made = {
        name: [mel_of(s3gen, tokens, tts.conds.gen, case) for tokens in spoken_tokens] for name, case in CASES.items()
    }
    rows = {}
    for name, mels in made.items():
        apart = [distance(mel, exact) for mel, exact in zip(mels, made["at once"], strict=True)]
        noise = [distance(mel, exact) for mel, exact in zip(made["at once, other noise"], made["at once"], strict=True)]
        spoken = [Spoken(text, wav_of(s3gen, mel)) for text, mel in zip(texts, mels, strict=True) if name in HEARD]
        scores = {
            "decibels": [Score(x, 1) for x in apart],
            "in_noise": [Score(x, unit) for x, unit in zip(apart, noise, strict=True)],
            **(scores_of(spoken, METERS) if name in HEARD else {}),
        }
        rows[name] = {figure: [round(x, 4) for x in interval(these)[:3]] for figure, these in scores.items()}
        print(name, json.dumps(rows[name]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.judging_flow", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--texts", type=whole_number(1, 40), default=40)
    parser.add_argument("--voice", default=BUILT_IN_VOICE, choices=VOICES, help="whose speech tokens")
    arguments = parser.parse_args()
    about = {"benchmark": "judging_flow", "texts": arguments.texts, "voice": arguments.voice, "seed": SEED}
    about |= {"command": command(), "environment": environment()}
    save(about | {"rows": measure(arguments.texts, arguments.voice)}, arguments.output)


if __name__ == "__main__":
    main()
