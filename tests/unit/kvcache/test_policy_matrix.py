"""Every policy on every model: Llama and GPT-2, guidance on and off, one request and three, float32 and bfloat16.

A new policy is a line in `CASES`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chatterbox.config import KVCacheConfig, SamplingConfig
from chatterbox.engine.decode import generate
from chatterbox.engine.request import Request, allocate_cache, prefill_embeds
from chatterbox.kvcache import POLICIES, KVCache, policy
from chatterbox.models.config import T3Config
from chatterbox.models.t3 import T3
from tests.support.decoding import generate_batch
from tests.support.full_cache import FullCache
from tests.support.small import SMALL, SMALL_GPT2, build, make_request

ROOT = Path(__file__).resolve().parents[3]
NUM_STEPS = 40
# Hidden states are of order 1 after the final norm. bfloat16 has 8 bits of mantissa, and a stack adds up its roundings.
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class Case:
    """One policy: ``roomy`` settings keep all as it is, ``tight`` ones make it do what it is for.

    ``error``: of hidden states, what tight settings may add to rounding. None: the policy forgets, and is compared with
    attention over what it holds.
    """

    roomy: KVCacheConfig
    tight: KVCacheConfig
    error: float | None = 0.0


def exact(name: str) -> Case:
    return Case(KVCacheConfig(name), KVCacheConfig(name))


def forgetting(name: str, **settings: str | tuple[int, ...]) -> Case:
    tight = KVCacheConfig(name, max_cache_size=42, window_size=6, uncond_window=4, **settings)
    return Case(KVCacheConfig(name, **settings), tight, None)


def packed(**settings: str) -> KVCacheConfig:
    return KVCacheConfig("compressed", group_size=8, residual_size=4, **settings)


CASES = {
    "compressed": Case(KVCacheConfig("compressed", residual_size=500), packed(), 0.005),
    "compressed-int4": Case(
        KVCacheConfig("compressed", residual_size=500, decode_codec="int4"), packed(decode_codec="int4"), 0.05
    ),
    "dynamic": exact("dynamic"),
    "evicting": forgetting("evicting", eviction="silence+attention+prosody", silent_tokens=tuple(range(2200))),
    "headwindow": forgetting("headwindow"),
    "none": exact("none"),
    "sliding": forgetting("sliding"),
    "static": exact("static"),
}
MODELS = {"llama": (SMALL, 0.0), "llama-guided": (SMALL, 0.5), "gpt2": (SMALL_GPT2, 0.0)}  # GPT-2's have no guidance
CACHED = [name for name, case in CASES.items() if policy(case.tight.policy) is not None]


def test_every_policy_is_here() -> None:
    assert {case.tight.policy for case in CASES.values()} == POLICIES.keys()


def test_every_policy_has_its_yaml_and_its_row_in_the_docs() -> None:
    table = (ROOT / "docs" / "kvcache.md").read_text(encoding="utf-8").partition("## Policies of the decode cache")[2]
    rows = {name for name in POLICIES if re.search(rf"^\| `{name}`", table, re.MULTILINE)}
    assert rows == POLICIES.keys()
    assert {path.stem for path in (ROOT / "configs" / "kvcache").glob("*.yaml")} >= POLICIES.keys()


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[T3, float]:
    hp, cfg_weight = request.param
    return build(hp), cfg_weight


def requests_of(hp: T3Config, cfg_weight: float, count: int) -> list[Request]:
    requests = [make_request(seed, hp) for seed in range(count)]
    return [
        dataclasses.replace(
            one,
            sampling=dataclasses.replace(one.sampling, cfg_weight=cfg_weight),
            max_new_tokens=NUM_STEPS,
            stop_on_eos=False,
        )
        for one in requests
    ]


@dataclass
class Forced:
    """Rows of requests, prefix by prefix, and then the same random tokens for whoever decodes them."""

    t3: T3
    prefixes: list[Tensor]  # of each row, (T, hidden)
    tokens: Tensor  # (rows, steps)

    @classmethod
    def of(cls, t3: T3, cfg_weight: float, num_requests: int) -> Forced:
        prefixes = [row for one in requests_of(t3.hp, cfg_weight, num_requests) for row in prefill_embeds(t3, one)]
        generator = torch.Generator().manual_seed(num_requests)
        return cls(t3, prefixes, torch.randint(6561, (len(prefixes), NUM_STEPS), generator=generator))

    @property
    def capacity(self) -> int:
        return max(map(len, self.prefixes)) + NUM_STEPS

    def embedded(self, step: int) -> Tensor:
        """(rows, 1, hidden)."""
        tokens = self.tokens[:, step : step + 1]
        return self.t3.embed_speech(tokens, torch.full_like(tokens, step + 1))

    def through(self, cache: KVCache, rows_per_request: int) -> Tensor:
        """Hidden states (rows, steps, hidden) of the tokens."""
        for row, prefix in enumerate(self.prefixes):
            cache.begin(row, range(len(prefix)), is_conditional=row % rows_per_request == 0)
            positions = cache.reserve(len(prefix), slice(row, row + 1))
            self.t3.tfmr(prefix[None], cache, positions=positions)
        outputs = []
        for step in range(NUM_STEPS):
            positions = cache.reserve(1)
            assert positions[:, 0].tolist() == [len(prefix) + step for prefix in self.prefixes]
            if cache.wants_tokens:
                cache.note_tokens(self.tokens[:, step : step + 1])
            outputs.append(self.t3.tfmr(self.embedded(step), cache, positions=positions))
            cache.check_integrity()
        return torch.cat(outputs, dim=1)

    def uncached(self) -> Tensor:
        speech = torch.cat([self.embedded(step) for step in range(NUM_STEPS)], dim=1)
        whole = [torch.cat([prefix, mine])[None] for prefix, mine in zip(self.prefixes, speech, strict=True)]
        return torch.cat([self.t3.tfmr(one)[:, -NUM_STEPS:] for one in whole])


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("num_requests", [1, 3])
@pytest.mark.parametrize("name", CACHED)
def test_hidden_states(model: tuple[T3, float], name: str, num_requests: int, dtype: torch.dtype) -> None:
    case, cfg_weight, t3 = CASES[name], model[1], build(model[0].hp).to(dtype)
    forced = Forced.of(t3, cfg_weight, num_requests)
    rows, share = len(forced.prefixes), 1 + (cfg_weight > 0.0)
    uncached = forced.uncached()
    roomy = forced.through(allocate_cache(t3, rows, forced.capacity, case.roomy), share)
    torch.testing.assert_close(roomy, uncached, rtol=0.0, atol=ROUNDING[dtype])
    cache = allocate_cache(t3, rows, forced.capacity, case.tight)
    tight = forced.through(cache, share)
    if case.error is not None:
        torch.testing.assert_close(tight, uncached, rtol=0.0, atol=ROUNDING[dtype] + case.error)
        assert case.error == 0.0 or not torch.equal(tight, roomy)  # it did pack
    else:
        full = FullCache.beside(t3, rows, forced.capacity, case.tight)
        assert torch.equal(tight, forced.through(full, share)) and full.trims
        assert [cache.held(row) for row in range(rows)] == full._holds()
        assert not torch.equal(tight, roomy)
    assert cache.row_lens == tuple(len(prefix) + NUM_STEPS for prefix in forced.prefixes)
    if case.error != 0.0:
        assert cache.nbytes < allocate_cache(t3, rows, forced.capacity, "static").nbytes


@pytest.mark.parametrize("name", CASES)
def test_tokens_of_a_batch_are_those_alone(model: tuple[T3, float], name: str) -> None:
    (t3, cfg_weight), case = model, CASES[name]
    requests = requests_of(t3.hp, cfg_weight, 3)
    uncached = [generate(t3, one, use_cache=False).tolist() for one in requests]
    assert [tokens.tolist() for tokens in generate_batch(t3, requests, cache_policy=case.roomy)] == uncached
    alone = [generate(t3, one, cache_policy=case.tight).tolist() for one in requests]
    assert [tokens.tolist() for tokens in generate_batch(t3, requests, cache_policy=case.tight)] == alone
    if case.error == 0.0:
        assert alone == uncached


@torch.inference_mode()
@pytest.mark.parametrize("name", CACHED)
def test_tokens_in_bfloat16(model: tuple[T3, float], name: str) -> None:
    """Three requests, decoded at random: each gets all its tokens, on a cache of that dtype."""
    t3, cfg_weight = build(model[0].hp).to(torch.bfloat16), model[1]
    requests = [
        dataclasses.replace(one, sampling=SamplingConfig(cfg_weight=cfg_weight))
        for one in requests_of(t3.hp, cfg_weight, 3)
    ]
    for config in (CASES[name].roomy, CASES[name].tight):
        decoded = generate_batch(t3, requests, cache_policy=config)
        assert [len(tokens) for tokens in decoded] == [NUM_STEPS] * 3
        assert all(int(tokens.max()) < t3.hp.speech_tokens_dict_size for tokens in decoded)
        assert allocate_cache(t3, 1, 10, config).dtype == torch.bfloat16
