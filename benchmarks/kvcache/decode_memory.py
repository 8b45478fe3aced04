"""What does a decode step allocate, and how high does a long generation reach? The published T3's size, random weights.

``python -m benchmarks.kvcache.decode_memory -o build/results/decode_memory.json``: 1,000 tokens with guidance on
each cache policy, each in a process of its own. Per policy: bytes of new tensors in a step early and late, and the peak
of the process's resident memory above what it held before the first step. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.lib.harness import ROOT, report
from chatterbox.config import SamplingConfig
from chatterbox.engine.decode import decoder_on
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.request import Request, allocate_cache, required_capacity
from chatterbox.models.t3 import T3
from chatterbox.models.t3.modules.cond_enc import T3Cond

MIB = 2**20
TEXT_LEN = 60
LOOKS = (10, 250, 500, 750, 990)  # tokens after which a step's allocations are counted


class NewBytes(TorchDispatchMode):
    """Sums the bytes of every tensor that an operation returns and that is not a view of what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        made = {_storage(x): x for x in tree_leaves(out) if isinstance(x, Tensor)}
        self.total += sum(x.untyped_storage().nbytes() for key, x in made.items() if key not in given)
        return out


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def measure(policy: str, tokens: int) -> dict[str, object]:
    torch.manual_seed(0)
    t3 = T3().eval()
    cond = T3Cond(
        speaker_emb=torch.randn(1, t3.hp.speaker_embed_size),
        cond_prompt_speech_tokens=torch.randint(0, 6561, (1, t3.hp.speech_cond_prompt_len)),
        emotion_adv=0.5,
    )
    text = torch.full((TEXT_LEN,), 7)
    text[0], text[-1] = t3.hp.start_text_token, t3.hp.stop_text_token
    request = Request(cond, text, SamplingConfig(), max_new_tokens=tokens, stop_on_eos=False, seed=0)
    cache = allocate_cache(t3, request.num_rows, required_capacity(t3, request), policy)
    engine = DecodeEngine(t3, decoder_on(t3, cache))
    engine.join(request)
    engine.step()
    engine.step()
    process = psutil.Process()
    before = process.memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    allocated = {}
    for drawn in range(2, tokens):
        if drawn in LOOKS:
            with NewBytes() as new:
                engine.step()
            allocated[drawn] = new.total
        else:
            engine.step()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0])
    result: dict[str, object] = {"policy": policy}
    result |= {f"new_mib_at_token_{drawn}": round(total / MIB, 3) for drawn, total in allocated.items()}
    result["peak_mib_above_start"] = round(peak / 1024 - before / MIB, 1)
    result["peak_mib"] = round(peak / 1024, 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--policy", help="measure this one here; the default runs each in a process of its own")
    arguments = parser.parse_args()
    if arguments.policy:
        print(json.dumps(measure(arguments.policy, arguments.tokens)))
        return
    rows = []
    for policy in ("static", "dynamic"):
        command = [sys.executable, "-m", "benchmarks.kvcache.decode_memory", "--policy", policy]
        command += ["--tokens", str(arguments.tokens)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    saved = rows[1]["peak_mib"] - rows[0]["peak_mib"]
    report("decode_memory", rows, arguments.output, tokens=arguments.tokens, peak_mib_saved=round(saved, 1))


if __name__ == "__main__":
    main()
