"""Train the embedded voice: ``python -m tools.tiny_voice STAGE --work DIR``, in the order of the stages."""

from __future__ import annotations

import argparse
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from chatterbox.checkpoints import EMBEDDED_VOICES
from tools.arguments import whole_number
from tools.tiny_voice import festival, flite, kokoro
from tools.tiny_voice.corpus import (
    dictionary_lists,
    name_sentences,
    number_sentences,
    sentences,
    short_texts,
    word_lists,
)
from tools.tiny_voice.export import FLOWS, compact, export, trained_flow, warm_start
from tools.tiny_voice.loop import Schedule, Stage, averaged_weights, train
from tools.tiny_voice.recordings import PitchScale, Recordings, SpeakerBank, Utterance, Utterances, load
from tools.tiny_voice.teacher import VOICES, build, rotate
from tools.tiny_voice.tiny import DEFAULT_VOICE, TINY

NUM_FLITE, NUM_FESTIVAL, NUM_KOKORO, NUM_HELD_OUT = 4800, 1200, 2400, 160  # recordings, of all their voices
KOKORO_SHARD = 25  # utterances: it takes about as long as they last
OTHERS = (*flite.VOICES, *festival.VOICES)  # than the default voice's teacher
NUM_MADE_MELS = 600
ALIGNMENTS = Path(__file__).parent / "data" / "alignments"  # half of T3's texts by others, half by the default voice
STAGES = ("speakers", "tokenizer", "flow", "vocoder", "t3", "judging_flow")
JUDGING_WEIGHTS = Path(__file__).parents[2] / "benchmarks" / "quality" / "judging_flow.safetensors"

SCHEDULES = {
    "speakers": Schedule(steps=1000, learning_rate=2e-3, warmup_steps=100),
    "tokenizer": Schedule(steps=8000, learning_rate=1.5e-3),
    "flow": Schedule(steps=15600, learning_rate=2e-3, warmup_steps=300),
    "vocoder": Schedule(steps=2500, learning_rate=1e-3, weight_decay=0.0, grad_clip=10.0, average_decay=0.995),
    "judging_flow": Schedule(steps=6000, learning_rate=1.5e-3, warmup_steps=300),
    "t3": Schedule(steps=13000, learning_rate=1e-3, warmup_steps=400, weight_decay=0.05),
}


def make_data(work: Path) -> None:
    """Let the teachers speak the corpus: alignments for T3 that the repository lacks, then recordings for the rest."""
    for name, texts in texts_of_t3().items():
        build(ALIGNMENTS / name / "others", rotate(texts[0::2], 1, OTHERS))
        build(ALIGNMENTS / name / "default", [(text, DEFAULT_VOICE) for text in texts[1::2]])
    spoken = sentences(NUM_FLITE + NUM_FESTIVAL + NUM_KOKORO, seed=11)
    build(work / "acoustic" / "flite", rotate(spoken[:NUM_FLITE], 1, flite.VOICES), with_audio=True)
    rest = spoken[NUM_FLITE:]
    build(work / "acoustic" / "festival", rotate(rest[:NUM_FESTIVAL], 1, festival.VOICES), with_audio=True)
    voices = rotate(rest[NUM_FESTIVAL:], 1, kokoro.VOICES)
    build(work / "acoustic" / "kokoro", voices, with_audio=True, shard_size=KOKORO_SHARD)


def texts_of_t3() -> dict[str, list[str]]:
    """What T3 learns to read, by kind."""
    return {
        "sentences": sentences(9500, seed=12),
        "rare": word_lists(3000, seed=13),
        "dictionary": dictionary_lists(26_500, seed=14),
        "names": name_sentences(4000, seed=15),
        "numbers": number_sentences(5000, seed=16),
        "short": short_texts(1000, seed=17),
    }


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
    if name == "vocoder":
        from tools.tiny_voice.vocoder import VocoderStage

        return VocoderStage(TINY.s3gen.vocoder, recordings, held_out, schedule, made_mels=flow_mels(work, recordings))
    voices, xvectors = speaker_banks(work, recordings)
    if name in FLOWS:
        from tools.tiny_voice.flow import FlowStage

        return FlowStage(FLOWS[name], recordings, held_out, xvectors, schedule, name=name)
    from tools.tiny_voice.text_to_speech import TextToSpeechStage

    learnt: list[Utterance] = []
    rest: list[Utterance] = []
    for folder in sorted(ALIGNMENTS.glob("*/*")):
        aligned = load(folder)
        kept = NUM_HELD_OUT if folder.parent.name == "sentences" else 0
        learnt += aligned[kept:]
        rest += aligned[:kept]
    return TextToSpeechStage(TINY.t3, Utterances(learnt, scale), Utterances(rest, scale), voices, schedule)


def load_recordings(work: Path) -> tuple[Recordings, Recordings, PitchScale]:
    """Recordings to train on, those held out, and the pitch scale of the voices."""
    learnt: list[Utterance] = []
    rest: list[Utterance] = []
    if not (work / "acoustic").is_dir():
        raise FileNotFoundError(f"{work} has no recordings; make them: python -m tools.tiny_voice data --work {work}")
    for folder in sorted((work / "acoustic").iterdir()):
        spoken = load(folder)
        held_out = max(1, NUM_HELD_OUT * len(spoken) // (NUM_FLITE + NUM_FESTIVAL + NUM_KOKORO))
        learnt += spoken[held_out:]
        rest += spoken[:held_out]
    scale = PitchScale.of(learnt)
    return Recordings(learnt, scale), Recordings(rest, scale), scale


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


def flow_mels(work: Path, recordings: Recordings) -> dict[int, Tensor]:
    """What the trained flow makes of recordings, once per state of it and kept in ``work``; nothing before it.

    All of the default voice, and as many of the others, drawn from all of them, as `NUM_MADE_MELS` leaves.
    """
    from tools.tiny_voice.flow import resynthesize

    flow_path, path = work / "flow.pt", work / "flow_mels.pt"
    if not flow_path.exists():
        return {}
    _, xvectors = speaker_banks(work, recordings)
    if not path.exists() or path.stat().st_mtime < flow_path.stat().st_mtime:
        default = recordings.by_voice[VOICES.index(DEFAULT_VOICE)][:NUM_MADE_MELS]
        others = [int(i) for i in np.random.default_rng(3).permutation(len(recordings)) if int(i) not in set(default)]
        chosen = [*default, *others[: NUM_MADE_MELS - len(default)]]
        torch.save(resynthesize(trained_flow(work), recordings, xvectors, chosen), path)
    return torch.load(path, weights_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_voice", description=__doc__)
    parser.add_argument("stage", choices=("data", *STAGES, "export", "export_judging_flow"))
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of data and checkpoints; a stage resumes from it"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this long; the next run goes on")
    parser.add_argument("--threads", type=whole_number(1, 1024))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--warm-start", type=Path, help="exported folder to begin from when there is no checkpoint yet")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.warm_start and not arguments.warm_start.is_dir():
        parser.error(f"--warm-start {arguments.warm_start} is no folder; an exported one is src/chatterbox/voices/tiny")
    try:
        run(arguments)
    except FileNotFoundError as error:
        raise SystemExit(f"{parser.prog}: {error}") from None


def run(arguments: argparse.Namespace) -> None:
    """A stage, or what is made of stages. Raises FileNotFoundError: what it needs is not there."""
    if arguments.stage == "data":
        make_data(arguments.work)
    elif arguments.stage == "export":
        export(arguments.work, load_recordings(arguments.work)[0], EMBEDDED_VOICES / "tiny")
    elif arguments.stage == "export_judging_flow":
        save_file(compact(trained_flow(arguments.work, "judging_flow")), str(JUDGING_WEIGHTS))
    else:
        stage = make_stage(arguments.stage, arguments.work)
        if arguments.warm_start:
            warm_start(stage, arguments.warm_start)
        # A GPU is faster than one process can draw batches.
        workers = 0 if arguments.device == "cpu" else min(8, os.cpu_count() or 1)
        train(stage, arguments.work, minutes=arguments.minutes, device=arguments.device, workers=workers)


if __name__ == "__main__":
    main()
