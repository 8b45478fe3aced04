"""Runs inside the environment of chatterbox-tts 0.1.7 (``make peer-env``); writes down what it makes of a checkpoint.

    python run_upstream.py FOLDER REFERENCE.wav SOURCE.wav TEXT SEED MAX_NEW_TOKENS RESULT.safetensors

Upstream's `generate` asks T3 for up to 1000 tokens, which random weights never end; `T3.inference` of the one instance
is wrapped to lower that number and to keep the tokens. Everything else is the installed package, untouched.
"""

import sys

import torch
from safetensors.torch import save_file

from chatterbox.tts import ChatterboxTTS
from chatterbox.vc import ChatterboxVC


def main() -> None:
    folder, reference, source, text, seed, max_new_tokens, result = sys.argv[1:]
    tts = ChatterboxTTS.from_local(folder, "cpu")
    tts.prepare_conditionals(reference)
    drawn, inference = [], tts.t3.inference

    def short_inference(**arguments):
        drawn.append(inference(**{**arguments, "max_new_tokens": int(max_new_tokens)}))
        return drawn[-1]

    tts.t3.inference = short_inference
    torch.manual_seed(int(seed))
    wav = tts.generate(text)
    vc = ChatterboxVC(tts.s3gen, "cpu", dict(tts.conds.gen))  # its watermarker draws random numbers when it is made
    torch.manual_seed(int(seed))
    converted = vc.generate(source)
    values = {f"t3.{key}": value for key, value in vars(tts.conds.t3).items()}
    values |= {f"gen.{key}": value for key, value in tts.conds.gen.items()}
    values |= {"tokens": drawn[0][0], "wav": wav, "converted": converted}
    save_file({key: value.detach().contiguous() for key, value in values.items() if torch.is_tensor(value)}, result)


if __name__ == "__main__":
    main()
