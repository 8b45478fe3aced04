"""How fast does T3 decode, and how does a step grow with the position? The published size, with random weights.

``python -m benchmarks.kvcache.t3_decode -o build/results/t3_decode.json``: milliseconds per step by cache policy,
rows (guidance takes two) and position. With ``--peer PYTHON``, a Python that has chatterbox-tts 0.1.7 (``make
peer-env``), its own loop runs in turn with ours at two rows, A B A B, and the table gets the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.baselines.client import own_packages
from benchmarks.lib.harness import ROOT, report, synchronize
from chatterbox.config import SamplingConfig
from chatterbox.engine.decode import decoder_on
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.prefill import CachedPrefix
from chatterbox.engine.request import Request, allocate_cache
from chatterbox.kvcache import GlobalKVCacheManager, Segment
from chatterbox.models.t3 import T3
from chatterbox.models.t3.modules.cond_enc import T3Cond

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

PEER = "chatterbox-tts 0.1.7"
ROWS = (1, 2, 4, 8, 16)
POSITIONS = (100, 250, 500, 750, 1000)
PEER_POSITIONS = (100, 500, 1000)
RECOMPUTED_POSITIONS = (100, 500)  # `none` takes a whole prefill a step
WARM_UP = 2  # steps that do not count


class Bench:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.t3 = T3().eval().to(self.device, self.dtype)
        self.prefixes = GlobalKVCacheManager(budget_bytes=2**34)
        hp = self.t3.hp
        speaker, prompt = torch.randn(1, hp.speaker_embed_size), torch.randint(0, 6561, (1, hp.speech_cond_prompt_len))
        self.cond = T3Cond(speaker.to(self.dtype), cond_prompt_speech_tokens=prompt, emotion_adv=0.5)

    def steps(self, policy: str, rows: int, position: int, count: int) -> list[float]:
        """Milliseconds of ``count`` steps, the first at ``position``."""
        cfg_weights = [0.0] if rows == 1 else [0.5] * (rows // 2)
        cache = None
        if policy != "none":
            cache = allocate_cache(self.t3, rows, position + count + WARM_UP + 8, policy)
        engine = DecodeEngine(self.t3, decoder_on(self.t3, cache))
        for seed, cfg_weight in enumerate(cfg_weights):
            request = self._request(position, cfg_weight, count + WARM_UP + 1, seed)
            if cache is None:
                engine.join(request)
                continue
            with ExitStack() as held:
                leases = [held.enter_context(self._prefix_of(position - 2)) for _ in range(request.num_rows)]
                engine.join(request, prefix=CachedPrefix(tuple(leases)))
        times = []
        for _ in range(count + WARM_UP):
            synchronize()
            started = time.perf_counter()
            engine.step()
            synchronize()
            times.append(1000 * (time.perf_counter() - started))
        return times[WARM_UP:]

    def _request(self, position: int, cfg_weight: float, limit: int, seed: int) -> Request:
        hp = self.t3.hp
        text = torch.full((position - hp.cond_len - 2,), 7)
        text[0], text[-1] = hp.start_text_token, hp.stop_text_token
        sampling = SamplingConfig(cfg_weight=cfg_weight)
        return Request(self.cond, text, sampling, max_new_tokens=limit, stop_on_eos=False, seed=seed)

    def _prefix_of(self, length: int):
        """A lease on random keys and values: a step takes as long whatever they are."""
        backbone = self.t3.hp.backbone
        shape = (backbone.num_layers, backbone.num_heads, length, backbone.head_dim)

        def fill(_: object) -> Segment:
            return Segment(*(torch.randn(shape, dtype=self.dtype, device=self.device) for _ in range(2)), 0)

        return self.prefixes.acquire(f"length {length}", (), fill)


class T3Loop:
    """The peer's process, which keeps its model between questions."""

    def __init__(self, python: str) -> None:
        script = ROOT / "benchmarks" / "baselines" / "t3_loop.py"
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [python, str(script)], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=own_packages()
        )

    def steps(self, position: int, count: int) -> list[float]:
        print(json.dumps({"position": position, "steps": count}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{PEER} ended with code {self._process.wait()}; run it by hand to see why")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()


def row(policy: str, rows: int, position: int, times: Sequence[float]) -> dict[str, object]:
    median = statistics.median(times)
    requests = max(1, rows // 2)
    low, _, high = statistics.quantiles(times, n=4)
    return {
        "policy": policy,
        "rows": rows,
        "position": position,
        "ms_per_step": round(median, 2),
        "quartiles_ms": [round(low, 2), round(high, 2)],
        "tokens_per_second": round(1000 * requests / median, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--peer", metavar="PYTHON", help="a Python with chatterbox-tts 0.1.7")
    parser.add_argument("--steps", type=int, default=5, help="steps at each position, every turn")
    parser.add_argument("--turns", type=int, default=3, help="times that all cases come round")
    arguments = parser.parse_args()
    bench, rows = Bench(), []
    about: dict[str, object] = {"dtype": str(bench.dtype).removeprefix("torch.")}
    if arguments.peer:
        with T3Loop(arguments.peer) as peer:
            rows += against(bench, peer, arguments.steps, arguments.turns)
    measured: dict[tuple[str, int, int], list[float]] = {}
    for num_rows in ROWS:
        for _ in range(arguments.turns):  # policies and positions in turn, so that what slows a while slows all
            for position in POSITIONS:
                for policy in ("static", "dynamic"):
                    times = bench.steps(policy, num_rows, position, arguments.steps)
                    measured.setdefault((policy, num_rows, position), []).extend(times)
    for position in RECOMPUTED_POSITIONS:
        measured["none", 2, position] = bench.steps("none", 2, position, 2)
    rows += [row(*case, times) for case, times in measured.items()]
    growth = {
        num_rows: statistics.median(measured["static", num_rows, POSITIONS[-1]])
        / statistics.median(measured["static", num_rows, POSITIONS[0]])
        for num_rows in ROWS
    }
    about["static_step_at_last_over_first_position"] = {num_rows: round(times, 3) for num_rows, times in growth.items()}
    report("t3_decode", rows, arguments.output, **about)


def against(bench: Bench, peer: T3Loop, count: int, turns: int) -> list[dict[str, object]]:
    """Ours and theirs in turn at two rows, and the ratio of their medians."""
    rows = []
    for position in PEER_POSITIONS:
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(turns):
            theirs += peer.steps(position, count)
            ours += bench.steps("static", 2, position, count)
        both = [row("static, in turn with the peer", 2, position, ours), row(PEER, 2, position, theirs)]
        speedup = both[1]["ms_per_step"] / both[0]["ms_per_step"]
        rows += [{**both[0], "times_the_peer": round(speedup, 3)}, both[1]]
        print(*rows[-2:], sep="\n", flush=True)
    return rows


if __name__ == "__main__":
    main()
