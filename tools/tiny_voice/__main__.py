"""Train the embedded voice: ``python -m tools.tiny_voice STAGE --work DIR``, in the order of the stages."""

from __future__ import annotations

import argparse
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatterbox.checkpoints import EMBEDDED_VOICES
from tools.tiny_voice.corpus import sentences, word_lists
from tools.tiny_voice.export import export, trained_flow, warm_start
from tools.tiny_voice.loop import Schedule, Stage, averaged_weights, train
from tools.tiny_voice.recordings import PitchScale, Recordings, SpeakerBank, Utterances, load
from tools.tiny_voice.teacher import build, rotate
from tools.tiny_voice.tiny import TINY

NUM_ACOUSTIC, NUM_TEXT, NUM_WORD_LISTS, NUM_HELD_OUT = 4800, 9500, 3000, 160
NUM_MADE_MELS = 1600
STAGES = ("speakers", "tokenizer", "flow", "vocoder", "t3")

SCHEDULES = {
    "speakers": Schedule(steps=1000, learning_rate=2e-3, warmup_steps=100),
    "tokenizer": Schedule(steps=8000, learning_rate=1.5e-3),
    "flow": Schedule(steps=15600, learning_rate=2e-3, warmup_steps=300),
    "vocoder": Schedule(steps=8800, learning_rate=1e-3, weight_decay=0.0, grad_clip=10.0),
    "t3": Schedule(steps=12000, learning_rate=1e-3, warmup_steps=400, weight_decay=0.05),
}


def make_data(work: Path) -> None:
    """Speak the corpus with flite: recordings for the acoustic stages, alignments for T3."""
    build(work / "acoustic", rotate(sentences(NUM_ACOUSTIC, seed=11), 1), with_audio=True)
    build(work / "t3", rotate(sentences(NUM_TEXT, seed=12), 2))
    build(work / "words", rotate(word_lists(NUM_WORD_LISTS, seed=13), 2))


def make_stage(name: str, work: Path) -> Stage[Any]:
    """The stage with its data in memory. Raises FileNotFoundError when an earlier stage has not been trained."""
    torch.manual_seed(20250718)
    recordings, held_out, scale = load_recordings(work)
    schedule = SCHEDULES[name]
    if name == "speakers":
        from tools.tiny_voice.speakers import SpeakerStage

        return SpeakerStage(TINY.voice_encoder, TINY.s3gen.speaker_encoder, recordings, held_out, schedule)
    if name == "tokenizer":
        from tools.tiny_voice.tokenizer import TokenizerStage

        return TokenizerStage(TINY.s3gen.tokenizer, recordings, held_out, schedule)
    voices, xvectors = speaker_banks(work, recordings)
    if name == "vocoder":
        from tools.tiny_voice.vocoder import VocoderStage

        made = flow_mels(work, recordings, xvectors)
        return VocoderStage(TINY.s3gen.vocoder, recordings, held_out, schedule, made_mels=made)
    if name == "flow":
        from tools.tiny_voice.flow import FlowStage

        return FlowStage(TINY.s3gen.flow, recordings, held_out, xvectors, schedule)
    from tools.tiny_voice.text_to_speech import TextToSpeechStage

    aligned = load(work / "t3")
    utterances = Utterances(aligned[NUM_HELD_OUT:] + load(work / "words"), scale)
    rest = Utterances(aligned[:NUM_HELD_OUT], scale)
    return TextToSpeechStage(TINY.t3, utterances, rest, voices, schedule)


def load_recordings(work: Path) -> tuple[Recordings, Recordings, PitchScale]:
    """Recordings to train on, those held out, and the pitch scale of the voices."""
    spoken = load(work / "acoustic")
    scale = PitchScale.of(spoken)
    return Recordings(spoken[NUM_HELD_OUT:], scale), Recordings(spoken[:NUM_HELD_OUT], scale), scale


def speaker_banks(work: Path, recordings: Recordings) -> tuple[SpeakerBank, SpeakerBank]:
    """Embeddings of every voice at every speed, for T3 and for the flow; computed once and kept in ``work``."""
    from tools.tiny_voice.speakers import SpeakerStage, embed_voices

    path = work / "speaker_banks.pt"
    if not path.exists():
        stage = SpeakerStage(
            TINY.voice_encoder, TINY.s3gen.speaker_encoder, recordings, recordings, SCHEDULES["speakers"]
        )
        stage.module.load_state_dict(averaged_weights(work, "speakers"))
        torch.save(embed_voices(stage.voice_encoder, stage.campplus, recordings), path)
    voices, xvectors = torch.load(path, weights_only=True)
    return SpeakerBank(voices), SpeakerBank(xvectors)


def flow_mels(work: Path, recordings: Recordings, xvectors: SpeakerBank) -> list[Tensor]:
    """What the trained flow makes of the recordings; computed once per state of the flow and kept in ``work``."""
    from tools.tiny_voice.flow import resynthesize

    flow_path, path = work / "flow.pt", work / "flow_mels.pt"
    if not path.exists() or path.stat().st_mtime < flow_path.stat().st_mtime:
        flow = trained_flow(work)
        torch.save(resynthesize(flow, recordings, xvectors, min(NUM_MADE_MELS, len(recordings))), path)
    return torch.load(path, weights_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_voice", description=__doc__)
    parser.add_argument("stage", choices=("data", *STAGES, "export"))
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of data and checkpoints; a stage resumes from it"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this long; the next run goes on")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--warm-start", type=Path, help="exported folder to begin from when there is no checkpoint yet")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.stage == "data":
        make_data(arguments.work)
    elif arguments.stage == "export":
        export(arguments.work, load_recordings(arguments.work)[0], EMBEDDED_VOICES / "tiny")
    else:
        stage = make_stage(arguments.stage, arguments.work)
        if arguments.warm_start:
            warm_start(stage, arguments.warm_start)
        # A GPU is faster than one process can draw batches.
        workers = 0 if arguments.device == "cpu" else min(8, os.cpu_count() or 1)
        train(stage, arguments.work, minutes=arguments.minutes, device=arguments.device, workers=workers)


if __name__ == "__main__":
    main()
