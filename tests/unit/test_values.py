"""Values from outside: whatever is a number is taken as that number, in every place; all else is one line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from argparse import Namespace
from contextlib import suppress
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatterbox.cli.config import MeasurementConfig, SayCommandConfig
from chatterbox.cli.options import with_flags
from chatterbox.config import (
    EngineConfig,
    KVCacheConfig,
    PressureConfig,
    SamplingConfig,
    SpeechOptions,
    StreamingConfig,
    from_dict,
    to_dict,
)
from chatterbox.engine.request import Request
from chatterbox.kvcache import cache_config
from chatterbox.kvcache.headwindow import HeadWindowKVCache
from chatterbox.kvcache.sliding import SlidingKVCache
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import EnTokenizer
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.tts import ChatterboxTTS
from chatterbox.values import number_of, seed_of, shown, whole_of
from tests.support.folders import recording
from tests.support.small import make_request


class Kind(IntEnum):
    five = 5


FIVE = {
    "int": 5,
    "float": 5.0,
    "digits": "5",
    "digits of a float": " 5.0 ",
    "numpy int": np.int64(5),
    "numpy unsigned": np.uint8(5),
    "numpy float": np.float32(5),
    "numpy half": np.float16(5),
    "numpy long double": np.longdouble(5),
    "numpy array of no dimension": np.array(5),
    "torch int": torch.tensor(5),
    "torch float": torch.tensor(5.0, requires_grad=True),
    "torch bfloat16": torch.tensor(5, dtype=torch.bfloat16),
    "torch parameter": torch.nn.Parameter(torch.tensor(5.0)),
    "fraction": Fraction(10, 2),
    "decimal": Decimal("5"),
    "enum": Kind.five,
}
NO_NUMBER = {
    "bool": True,
    "numpy bool": np.bool_(True),
    "torch bool": torch.tensor(True),
    "word": "five",
    "empty": "",
    "underscores": "1_0",
    "other digits": "٥",
    "hexadecimal": "0x5",
    "nan in letters": "nan",
    "digits without end": "9" * 5000,
    "list": [5],
    "array of one": np.array([5]),
    "tensor of one": torch.tensor([5]),
    "array": np.ones((3, 3)),
    "tensor without memory": torch.tensor(5, device="meta"),
    "complex": 5 + 0j,
    "object": object(),
    "decimal nan": Decimal("sNaN"),
    "bytes": b"5",
    "table": {"value": 5},
    "date": np.datetime64("2020-01-01"),
}
SOME = dict(itertools.islice(NO_NUMBER.items(), 0, None, 3))


@pytest.mark.parametrize("kind", FIVE)
def test_anything_that_is_a_number_is_that_number(kind):
    assert whole_of(FIVE[kind]) == 5 and type(whole_of(FIVE[kind])) is int
    assert number_of(FIVE[kind]) == 5 and type(number_of(FIVE[kind])) in (int, float)


@pytest.mark.parametrize("kind", NO_NUMBER)
def test_what_is_no_number(kind):
    assert number_of(NO_NUMBER[kind]) is None and whole_of(NO_NUMBER[kind]) is None


@pytest.mark.parametrize(
    "value", [1.5, float("inf"), float("nan"), "1.5", np.float32(0.1), Fraction(1, 3), Decimal("0.5")]
)
def test_what_is_not_whole(value):
    assert whole_of(value) is None and isinstance(number_of(value), float)


@given(st.integers() | st.integers().map(str) | st.integers(-(2**53), 2**53).map(float))
def test_whole_numbers_are_exact(value):
    assert whole_of(value) == (int(value) if len(str(value)) <= 40 else whole_of(value))


@given(st.integers())
def test_seeds_fold(value):
    folded = seed_of(value)
    if value == -1:
        assert folded is None
    else:
        assert 0 <= folded < 2**63 and (folded - value) % 2**63 == 0 and seed_of(folded) == folded


@pytest.mark.parametrize(
    ("seed", "folded"),
    [
        (None, None),
        (-1, None),
        ("-1", None),
        (-1.0, None),
        (0, 0),
        (2**64 - 1, 2**63 - 1),
        (2**63, 0),
        (-2, 2**63 - 2),
        ("4030282067", 4030282067),
        (np.int64(5), 5),
        (np.uint64(2**64 - 1), 2**63 - 1),
        (5.0, 5),
        (torch.tensor(5), 5),
    ],
)
def test_seeds(seed, folded):
    assert seed_of(seed) == folded == SpeechOptions(seed=seed).seed == make_changed_request(seed=seed).seed


def make_changed_request(**changes) -> Request:
    return dataclasses.replace(make_request(0), **changes)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=100))
def test_what_an_error_shows_is_one_short_line(value):
    assert len(shown(value)) < 70 and "\n" not in shown(value)
    assert shown(10**9999) == "a value of int" and len(shown(np.ones((99, 99)))) < 70


CONFIGS = (
    SamplingConfig,
    StreamingConfig,
    SpeechOptions,
    KVCacheConfig,
    EngineConfig,
    PressureConfig,
    MeasurementConfig,
)
NUMBERS = [
    (config, one.name)
    for config in CONFIGS
    for one in dataclasses.fields(config)
    if one.type.split(" ")[0] in ("int", "float") and one.name != "seed"
]


def of(config: type, **values):
    return config(**({"hard_mib": 0} if config is PressureConfig else {}) | values)


def takes(config: type, name: str, number: int) -> bool:
    with suppress(ValueError):
        return bool(of(config, **{name: number}))
    return False


@pytest.mark.parametrize(("config", "name"), NUMBERS, ids=str)
def test_every_number_of_every_configuration(config, name):
    """As whatever kind of number it comes, the configuration holds a plain one."""
    floats = {one.name: "float" in one.type for one in dataclasses.fields(config)}
    value = next(number for number in (5, 1, 0, 2048) if takes(config, name, number))
    for number in (float(value), str(value), np.int64(value), np.float32(value), torch.tensor(value), np.array(value)):
        made = of(config, **{name: number})
        assert getattr(made, name) == value and type(getattr(made, name)) is (float if floats[name] else int)
        assert json.dumps(to_dict(made)) and hash(made)
        assert getattr(from_dict(config, {**to_dict(of(config)), name: number}), name) == value
    for value in (*SOME.values(), float("nan"), float("inf"), 10**40, -(10**40), 1e300):
        with pytest.raises(ValueError, match=f"{name}.* must be") as error:
            of(config, **{name: value})
        assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_numpy_and_torch_fractions():
    assert SamplingConfig(temperature=np.float32(0.8)).temperature == float(np.float32(0.8))
    assert StreamingConfig(fade_duration=torch.tensor(0.05)).fade_duration == pytest.approx(0.05)
    assert SpeechOptions(exaggeration="0.7").exaggeration == 0.7


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (SpeechOptions, {"watermark": 0}, "watermark must be true or false, got 0"),
        (SpeechOptions, {"watermark": []}, r"watermark must be true or false, got \[\]"),
        (SpeechOptions, {"use_cache": "no"}, "use_cache must be true or false, got 'no'"),
        (SpeechOptions, {"guard": ["light"]}, r"guard must be a name, got \['light'\]; docs/guards.md lists them"),
        (SpeechOptions, {"exaggeration": np.array([0.5, 0.7])}, r"exaggeration must be a number .* got array\("),
        (SpeechOptions, {"seed": np.array([1, 2])}, r"seed must be a whole number or None, got array\(\[1, 2\]\)"),
        (KVCacheConfig, {"disk_folder": ""}, "disk_folder must name a folder, got ''; null keeps nothing on disk"),
        (KVCacheConfig, {"disk_folder": b"x"}, "disk_folder must name a folder, got b'x'"),
        (KVCacheConfig, {"eviction": 5}, "eviction must be a name, got 5; docs/kvcache.md lists them"),
        (KVCacheConfig, {"policy": ["static"]}, r"policy must be a name, got \['static'\]"),
        (KVCacheConfig, {"host_codec": None}, "host_codec must be a name, got None"),
        (KVCacheConfig, {"window_size": None}, "window_size must be a whole number, got None; 512 is usual"),
        (KVCacheConfig, {"pressure": {"soft_mib": 0}}, "pressure must be of PressureConfig, got {'soft_mib': 0}"),
        (KVCacheConfig, {"silent_tokens": "12"}, "silent_tokens cannot be '12'; give a list"),
        (KVCacheConfig, {"silent_tokens": 5}, "silent_tokens cannot be 5; give a list"),
        (KVCacheConfig, {"silent_tokens": [1, -2]}, "silent_tokens must be a whole number from 0, got -2"),
        (KVCacheConfig, {"prefix_mib": 2**31}, r"prefix_mib must be a whole number from 0 to 2\*\*31 - 1, got 2147"),
        (PressureConfig, {"interval_ms": 10**40}, r"interval_ms must be .* from 0 to 2\*\*31 - 1, got 1000"),
        (SamplingConfig, {"top_k": 2**63}, r"top_k must be .* from 0 to 2\*\*31 - 1, got 9223372036854775808; 0"),
        (SamplingConfig, {"temperature": None}, "temperature must be a number from 0 to 10, got None"),
        (StreamingConfig, {"continuity": ["history"]}, r"continuity must be a name, got \['history'\]; choose from"),
        (EngineConfig, {"batch_invariant": None}, "batch_invariant must be true or false, got None"),
        (SayCommandConfig, {"watermark": "yes"}, "watermark must be true or false, got 'yes'"),
    ],
)  # fmt: skip
def test_one_line_errors(config, values, message):
    with pytest.raises(ValueError, match=message) as error:
        config(**values)
    assert "\n" not in str(error.value)


def test_none_is_the_default_of_what_a_request_may_ask_for():
    for config in (SpeechOptions, StreamingConfig):
        assert config(**{one.name: None for one in dataclasses.fields(config)}) == config()


def test_other_kinds_become_plain():
    made = KVCacheConfig(silent_tokens=np.array([1, 2]), disk_folder=Path("a"), policy=np.str_("static"))
    assert made == KVCacheConfig(silent_tokens=(1, 2), disk_folder="a")
    assert type(made.policy) is str and type(made.silent_tokens[0]) is int
    assert SpeechOptions(use_cache=np.bool_(False), watermark=torch.tensor(False)) == SpeechOptions(
        use_cache=False, watermark=False
    )


def test_caches_made_by_hand():
    sizes = (1, 1, 1, 4, 16)
    cache = SlidingKVCache(*sizes, max_cache_size=np.int64(8), window_size=4.0, uncond_window="2")
    assert (cache.max_cache_size, cache.window_size, cache.uncond_window) == (8, 4, 2)
    assert HeadWindowKVCache(*sizes, max_cache_size=8, window_size=4, full_heads=np.float32(1)).full_heads == 1.0
    with pytest.raises(ValueError, match="window_size must be a whole number from 1, got None"):
        SlidingKVCache(*sizes, max_cache_size=8, window_size=None)
    with pytest.raises(ValueError, match=r"kvcache must be a name, got \['static'\]; give a policy's name"):
        cache_config(["static"])


def test_neither_torch_nor_numpy_is_needed():
    code = "import sys, chatterbox.config; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_seed_of_the_command_line():
    for text, seed in (("7.0", 7), ("-1", None), (str(2**64 - 1), 2**63 - 1)):
        assert with_flags(SayCommandConfig(seed=3), Namespace(seed=text)).seed == seed


# The entries of the package.

PLAIN = {"exaggeration": 0.75, "temperature": 0.5, "max_new_tokens": 6, "seed": 5, "watermark": False}
OTHER = {
    "exaggeration": np.float32(0.75),
    "temperature": torch.tensor(0.5),
    "max_new_tokens": 6.0,
    "seed": str(5 + 2**63),
    "watermark": np.bool_(False),
}


def speak(model, **options) -> torch.Tensor:
    language = {"language_id": "fr"} if isinstance(model, ChatterboxMultilingualTTS) else {}
    return model.generate("Hello.", **language, **options)


@pytest.mark.parametrize("name", ["small_tts", "mtl", "turbo"])
def test_generate_of_all_classes(name, request):
    model = request.getfixturevalue(name)
    top_k = [{"top_k": value} if name == "turbo" else {} for value in (50, 50.0)]
    assert torch.equal(speak(model, **PLAIN, **top_k[0]), speak(model, **OTHER, **top_k[1]))
    drawn = [speak(model, **{**PLAIN, "seed": seed, "temperature": 2.0}) for seed in (-1, -1)]
    assert not torch.equal(*drawn)
    unsaid = dict.fromkeys(("watermark", "use_cache", "guard", "max_new_tokens", "exaggeration"))
    assert torch.equal(speak(model, seed=1, **unsaid), speak(model, seed=1))


@pytest.mark.parametrize("name", ["small_tts", "mtl", "turbo"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("watermark", 0),
        ("use_cache", "no"),
        ("seed", "x"),
        ("guard", ["light"]),
        ("temperature", [1]),
        ("top_p", np.ones(2)),
    ],
)
def test_what_generate_refuses(name, option, value, request):
    with pytest.raises(ValueError, match=f"^{option} must be ") as error:
        speak(request.getfixturevalue(name), **{option: value})
    assert "\n" not in str(error.value)


def test_the_published_seeds_of_a_batch(small_tts):
    plain = small_tts.generate_batch(["Hello.", "World."], seed=5, watermark=False)
    for seed in (np.int64(5), "5", 5.0, torch.tensor(5), 5 + 2**64):
        again = small_tts.generate_batch(["Hello.", "World."], seed=seed, watermark=False)
        assert all(map(torch.equal, plain, again))
    assert len(small_tts.generate_batch(["Hello."], seed=-1)) == 1
    with pytest.raises(ValueError, match="seed must be a whole number or None, got 'x'"):
        small_tts.generate_batch(["Hello."], seed="x")


def test_streams(small_tts):
    def stream(**options):
        return torch.cat([audio for audio, _ in small_tts.generate_stream("Hello.", **options)], dim=1)

    plain = stream(seed=5, chunk_size=4, context_window=2, print_metrics=False)
    assert torch.equal(
        plain, stream(seed=5.0, chunk_size=np.int64(4), context_window="2", print_metrics=np.bool_(False))
    )
    with pytest.raises(ValueError, match="print_metrics must be true or false, got 'no'"):
        small_tts.generate_stream("Hello.", print_metrics="no")
    with pytest.raises(ValueError, match="norm_loudness must be true or false, got 1"):
        small_tts.generate_stream("Hello.", norm_loudness=1)


def test_voices(small_tts, turbo):
    other = ChatterboxTTS(small_tts.t3, small_tts.s3gen, small_tts.ve, small_tts.tokenizer, "cpu")
    other.prepare_conditionals(recording(2.0), exaggeration=np.float32(0.75))
    assert other.conds.t3.emotion_adv.item() == 0.75
    for value in (np.array([0.5, 0.7]), "much", True):
        for call in (other.prepare_conditionals, lambda *_, exaggeration: other.warm(exaggeration=exaggeration)):
            with pytest.raises(ValueError, match="exaggeration must be a number from 0 to 10, got "):
                call(recording(2.0), exaggeration=value)
    with pytest.raises(ValueError, match=r"min_p must be a number .*, got 'some'; this model has no use for it"):
        turbo.generate("Hello.", min_p="some")


def test_voice_conversion(vc):
    plain = vc.generate(recording(1.0, 16_000), seed=5, watermark=False)
    assert torch.equal(plain, vc.generate(recording(1.0, 16_000), seed="5", watermark=np.bool_(False)))
    assert vc.generate(recording(1.0, 16_000), seed=-1, watermark=None).shape == plain.shape
    for options in ({"seed": True}, {"watermark": []}):
        (key,) = options
        with pytest.raises(ValueError, match=f"{key} must be "):
            vc.generate(recording(1.0, 16_000), **options)


def test_t3_inference(t3: T3):
    asked = make_request(0)

    def infer(**options):
        return t3.inference(t3_cond=asked.t3_cond, text_tokens=asked.text_tokens, **options)

    plain = infer(max_new_tokens=6, seed=5, temperature=0.5, num_return_sequences=1)
    other = infer(max_new_tokens=6.0, seed="5", temperature=np.float32(0.5), num_return_sequences=np.int64(1))
    assert torch.equal(plain, other)
    _, cache = infer(max_new_tokens=6, seed=5, return_cache=True)
    offset = t3.hp.cond_len
    after = [
        infer(max_new_tokens=4, seed=5, past_key_values=cache, cache_offset=kind(offset))
        for kind in (int, float, np.int32)
    ]
    assert torch.equal(after[0], after[1]) and torch.equal(after[0], after[2])
    torch.manual_seed(3)
    drawn = infer(max_new_tokens=6, seed=None)
    torch.manual_seed(3)
    assert torch.equal(drawn, infer(max_new_tokens=6, seed=-1))
    for options in ({"use_cache": "no"}, {"do_sample": 1}, {"return_cache": []}, {"stop_on_eos": None}, {"seed": [1]},
                    {"temperature": "hot"}, {"length_penalty": np.ones(2)}, {"max_new_tokens": True}):  # fmt: skip
        (key,) = options
        with pytest.raises(ValueError, match=f"^{key} must be "):
            infer(**options)
    with pytest.raises(ValueError, match="cache_offset must be a whole number from 0, got 'x'"):
        infer(past_key_values=cache, cache_offset="x")


def test_settings_of_a_model(small_tts):
    parts = (small_tts.t3, small_tts.s3gen, small_tts.ve, small_tts.tokenizer, "cpu")
    assert isinstance(small_tts.tokenizer, EnTokenizer)
    with pytest.raises(ValueError, match=r"kvcache must be a name, got \['static'\]"):
        ChatterboxTTS(*parts, kvcache=["static"])
    with pytest.raises(ValueError, match=r"engine must be of EngineConfig, got \{'max_rows': 4\}"):
        ChatterboxTTS(*parts, engine={"max_rows": 4})
