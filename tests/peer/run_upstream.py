"""Runs inside the environment of chatterbox-tts 0.1.7 (``make peer-env``); writes down what it makes of a checkpoint.

    python run_upstream.py MODEL FOLDER REFERENCE.wav SOURCE.wav TEXT SEED MAX_NEW_TOKENS RESULT.safetensors [options]

Upstream's `generate` asks T3 for up to 1000 tokens, which random weights never end; T3's method of the one instance is
wrapped to lower that number and to keep the tokens. Random weights also draw ids that are no speech; English and Turbo
drop them, Multilingual would hand them on to S3Gen, which raises, so the wrapper drops them there. Turbo's loudness
normalisation is off, because it raises under numpy 2. Unless ``--analyser`` is given, the alignment analyser of the
multilingual model returns the logits as they are. Everything else is the installed package, untouched.
"""

import argparse
from typing import Any

import torch
from safetensors.torch import save_file

from chatterbox.models.t3.t3 import AlignmentStreamAnalyzer
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS
from chatterbox.vc import ChatterboxVC

MODELS = {"english": ChatterboxTTS, "multilingual": ChatterboxMultilingualTTS, "turbo": ChatterboxTurboTTS}
STOP_SPEECH_TOKEN = 6562  # the largest id that upstream's clean-up knows


def main() -> None:
    arguments = parse()
    if not arguments.analyser:
        AlignmentStreamAnalyzer.step = lambda self, logits, next_token=None: logits
    tts = MODELS[arguments.model].from_local(arguments.folder, "cpu")
    is_turbo = arguments.model == "turbo"
    tts.prepare_conditionals(arguments.reference, **({"norm_loudness": False} if is_turbo else {}))
    if is_turbo:  # it draws one token more than it is asked for
        drawn = shorten(tts.t3, "inference_turbo", max_gen_len=arguments.max_new_tokens - 1)
    else:
        drawn = shorten(tts.t3, "inference", max_new_tokens=arguments.max_new_tokens)
    language = {} if arguments.language is None else {"language_id": arguments.language}
    torch.manual_seed(arguments.seed)
    values = {"wav": tts.generate(arguments.text, **language), "tokens": drawn[0][0]}
    vc = ChatterboxVC(tts.s3gen, "cpu", dict(tts.conds.gen))  # its watermarker draws random numbers when it is made
    torch.manual_seed(arguments.seed)
    values["converted"] = vc.generate(arguments.source)
    values |= {f"t3.{key}": value for key, value in vars(tts.conds.t3).items()}
    values |= {f"gen.{key}": value for key, value in tts.conds.gen.items()}
    tensors = {key: value.detach().contiguous() for key, value in values.items() if torch.is_tensor(value)}
    save_file(tensors, arguments.result)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    for name in ("folder", "reference", "source", "text"):
        parser.add_argument(name)
    for name in ("seed", "max_new_tokens"):
        parser.add_argument(name, type=int)
    parser.add_argument("result")
    parser.add_argument("--language")
    parser.add_argument("--analyser", action="store_true", help="leave the alignment analyser on")
    return parser.parse_args()


def shorten(t3: Any, method: str, **limit: int) -> list[torch.Tensor]:
    """Bound what ``t3`` draws; returns the list that every call's tokens are added to."""
    drawn, draw = [], getattr(t3, method)

    def draw_fewer(**arguments: Any) -> torch.Tensor:
        tokens = draw(**{**arguments, **limit})
        drawn.append(tokens)
        return tokens[:, tokens[0] <= STOP_SPEECH_TOKEN] if t3.hp.is_multilingual else tokens

    setattr(t3, method, draw_fewer)
    return drawn


if __name__ == "__main__":
    main()
