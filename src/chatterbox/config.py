"""What a user sets, as frozen dataclasses: sampling, caches, streaming, the engine.

Owns: defaults, their validation, and the conversion to and from plain dictionaries.
Does not know: torch, files, Hydra, sizes of networks (`models.config`), runs of the command line (`cli.config`). The
YAML under ``configs/`` mirrors these classes and holds no number of its own.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

from chatterbox.values import Fields, number, number_of, seed_of, shown, whole, whole_of, word

T = TypeVar("T")


def option(default: T, about: str) -> T:
    """A field with its meaning, which help and docs/configuration.md show; values in it are written as in YAML."""
    return field(default=default, metadata={"about": about})


# Numbers of a request: lowest, highest, and what to say of others; of whole numbers the lowest.
SAMPLING_RANGES = {
    "temperature": (0.0, 10.0, "0 is greedy, 0.8 is usual"),
    "cfg_weight": (0.0, 10.0, "0 turns guidance off, 0.5 is usual"),
    "repetition_penalty": (0.1, 10.0, "1 turns it off, 1.2 is usual"),
    "min_p": (0.0, 1.0, "0 turns it off, 0.05 is usual"),
    "top_p": (0.0, 1.0, "1 turns it off"),
}
SAMPLING_COUNTS = {"top_k": (0, "0 turns it off"), "max_new_tokens": (1, "1000 is 40 s")}


@dataclass(frozen=True)
class SamplingConfig:
    """How the next speech token is decoded, and how many at most. ``temperature`` 0 is greedy."""

    temperature: float = option(0.8, "how much is left to chance; 0 takes the likeliest token")
    cfg_weight: float = option(0.5, "guidance by the text; 0 turns it off and halves the work")
    repetition_penalty: float = option(1.2, "divides the logits of tokens that were decoded before; 1 turns it off")
    min_p: float = option(0.05, "tokens below this share of the likeliest one's probability are out; 0 turns it off")
    top_p: float = option(1.0, "the likeliest tokens that make up this probability stay; 1 turns it off")
    top_k: int = option(0, "so many of the likeliest tokens stay; 0 turns it off")
    max_new_tokens: int = option(1000, "speech tokens at most, 25 a second")

    def __post_init__(self) -> None:
        own = Fields(self)
        for name, within in SAMPLING_RANGES.items():
            own.number(name, *within)
        if self.top_p == 0.0:
            raise ValueError("top_p must be above 0, got 0.0; 1 turns it off")
        for name, (low, remedy) in SAMPLING_COUNTS.items():
            own.whole(name, low, remedy)


def window_of(name: str, window: object, max_cache_size: object) -> int | None:
    """``window`` as a plain number, None as it is.

    Raises:
        ValueError: a row of ``max_cache_size`` cannot keep so many positions and take a step.
    """
    most, size = whole_of(max_cache_size), None if window is None else whole_of(window)
    if most is None or (size is None and window is not None):
        raise ValueError(
            f"max_cache_size and {name} must be whole numbers, got {shown(max_cache_size)} and {shown(window)}"
        )
    if size is not None and not 1 <= size < most:
        raise ValueError(
            f"{name} must be from 1 to {most - 1}, one step less than max_cache_size {most}, "
            f"got {shown(size)}; raise max_cache_size or lower {name}"
        )
    return size


@dataclass(frozen=True)
class PressureConfig:
    """Free memory, in MiB, below which the prefix cache gives way. docs/kvcache.md, Pressure, has the order."""

    soft_mib: int = option(512, "prefixes leave, until so much is free again; 0 never looks")
    hard_mib: int = option(256, "nothing new is kept, and requests wait for others to end")
    process_mib: int | None = option(None, "what this process may take; null is what the machine or its container has")
    interval_ms: int = option(100, "between two looks at least")

    def __post_init__(self) -> None:
        own = Fields(self)
        for name in ("soft_mib", "hard_mib", "interval_ms"):
            own.whole(name, 0, "soft_mib 0 never looks")
        if self.hard_mib > self.soft_mib > 0:
            raise ValueError(f"hard_mib must be at most soft_mib, {self.soft_mib}, got {self.hard_mib}")
        own.whole_or_none("process_mib", 1, "null sets no limit")


@dataclass(frozen=True)
class KVCacheConfig:
    """What T3 keeps of what it has computed; sizes in MiB (2**20 bytes). docs/kvcache.md explains each."""

    policy: str = option("static", 'of the rows being decoded; "none" recomputes everything at every step')
    max_cache_size: int = option(1024, "positions a row holds at most, where the policy is bounded")
    window_size: int = option(512, "positions beside prefix that a row keeps when it is trimmed")
    uncond_window: int | None = option(None, "the same for the row that guidance adds; null is window_size")
    eviction: str = option("silence", 'who leaves first: attention, prosody, recency, silence; "+" adds, "*2" weighs')
    silent_tokens: tuple[int, ...] | None = option(None, "speech tokens of silence; null is as the checkpoint says")
    decode_codec: str = option("int8", "of the rows being decoded, where the policy packs them")
    group_size: int = option(32, "positions whose keys share a scale, packed at once")
    residual_size: int = option(32, "newest positions that stay in full precision")
    full_heads: float = option(0.5, "share of heads that keep every position, where the policy tells them apart")
    prefix_mib: int | None = option(None, "prefixes that requests share, on the device; null is an eighth of T3's size")
    host_mib: int = option(0, "prefixes that left the device, in host memory")
    host_codec: str = option("none", 'how they are packed there: "none", "int8", "int4"')
    disk_folder: str | None = option(None, "prefixes that outlive the process; null is nowhere")
    disk_mib: int = option(1024, "prefixes on disk")
    total_mib: int | None = option(None, "prefixes on device and host together; null is the sum of the two")
    replacement: str = option("cost", 'which prefix leaves first: "cost", "lfu", "lru"')
    pressure: PressureConfig = field(default_factory=PressureConfig)

    def __post_init__(self) -> None:
        own = Fields(self)
        for name in ("policy", "eviction", "decode_codec", "host_codec", "replacement"):
            own.word(name, "docs/kvcache.md lists them")
        own.whole("max_cache_size", 1, "1024 is usual")
        if self.window_size is None:
            raise ValueError("window_size must be a whole number, got None; 512 is usual")
        for name in ("window_size", "uncond_window"):
            own.put(name, window_of(name, getattr(self, name), self.max_cache_size))
        for name in ("group_size", "residual_size"):
            own.whole(name, 1, "32 is usual")
        own.number("full_heads", 0.0, 1.0, "1 keeps every position of every head")
        for name in ("host_mib", "disk_mib"):
            own.whole(name, 0, "0 keeps nothing there")
        for name in ("prefix_mib", "total_mib"):
            own.whole_or_none(name, 0, "0 keeps nothing there")
        own.put("silent_tokens", _tokens(self.silent_tokens))
        own.put("disk_folder", _folder(self.disk_folder))
        own.table("pressure", PressureConfig)


def _tokens(tokens: Any) -> tuple[int, ...] | None:
    if tokens is None:
        return None
    remedy = "give a list of speech tokens; null is the checkpoint's"
    if isinstance(tokens, str) or not hasattr(tokens, "__len__"):
        raise ValueError(f"silent_tokens cannot be {shown(tokens)}; {remedy}")
    return tuple(whole("silent_tokens", token, 0, remedy) for token in tokens)


def _folder(folder: Any) -> str | None:
    path = os.fspath(folder) if isinstance(folder, os.PathLike) else folder
    if path is not None and (not isinstance(path, str) or not path.strip()):
        raise ValueError(f"disk_folder must name a folder, got {shown(folder)}; null keeps nothing on disk")
    return path


@dataclass(frozen=True)
class EngineConfig:
    """How requests share a model's decode steps, and what rows may take. docs/architecture.md, The engine."""

    max_rows: int = option(32, "rows that decode at once at most; guidance takes two a request")
    cache_mib: int | None = option(None, "of all rows, MiB; null is half of what is free when the first request comes")
    idle_seconds: float = option(60.0, "until rows that nobody uses are given back")
    park_seconds: float = option(10.0, "until a stream that nobody reads, or whose text is late, gives its rows back")
    max_waiting: int = option(256, "requests that wait for rows at most; one more is refused")
    prefill_len: int = option(256, "positions of a prefix that are run between two steps")
    stop_stride: int | None = option(None, "steps between two looks at the tokens; null is 1 on CPUs, 4 elsewhere")
    batch_invariant: bool = option(False, "bits do not depend on other requests; T3 takes 1.1 to 2.6 times as long")

    def __post_init__(self) -> None:
        own = Fields(self)
        for name, low in (("max_rows", 2), ("max_waiting", 1), ("prefill_len", 1)):
            own.whole(name, low)
        for name in ("cache_mib", "stop_stride"):
            own.whole_or_none(name, 1, "null leaves it to the engine")
        for name in ("idle_seconds", "park_seconds"):
            own.number(name, 0.0, 1e9, "in seconds")
        own.switch("batch_invariant")


MEMORIES = ("none", "prompt", "past")


@dataclass(frozen=True)
class S3GenOptions:
    """How S3Gen makes audio of speech tokens. See docs/streaming.md, What S3Gen remembers."""

    memory: str = option("none", 'what it does not compute again: "none", "prompt" (the voice\'s), "past" (and before)')
    steps: int | None = option(
        None, "of its solver, at most; fewer are faster and less exact; null is the model's own number"
    )
    unguided_steps: int = option(0, "of them, the first ones, without guidance: half the work each; less exact")
    prompt_seconds: float | None = option(None, "of a voice's recording that it integrates; null is all, 10 at most")

    def __post_init__(self) -> None:
        own = Fields(self, none_is_default=True)
        own.word("memory", f"choose from {', '.join(MEMORIES)}")
        if self.memory not in MEMORIES:
            raise ValueError(f"memory must be one of {', '.join(MEMORIES)}, got {self.memory!r}")
        own.whole_or_none("steps", 1, "null is the model's own number")
        own.whole("unguided_steps", 0)
        if self.steps is not None and self.unguided_steps > self.steps:
            raise ValueError(f"unguided_steps must be at most steps, {self.steps}, got {self.unguided_steps}")
        if self.prompt_seconds is not None:
            own.number("prompt_seconds", 0.5, 60.0, "null is the whole recording; 4 is usual where it is to be fast")

    @property
    def departures(self) -> list[str]:
        """Settings under which the flow is solved by this package's own call, with a seed of its own, as messages."""
        given = {"memory": self.memory != "none", "unguided_steps": self.unguided_steps > 0}
        return [f"s3gen.{name}={getattr(self, name)}" for name, is_given in given.items() if is_given]


PRECISIONS = ("auto", "float32", "float16", "bfloat16", "int8")


@dataclass(frozen=True)
class PrecisionConfig:
    """The type of the weights of each network's linear layers. See docs/performance.md."""

    t3: str = option("auto", 'of T3: "float32", "float16", "bfloat16", "int8"; "auto" is float32 on CPUs')
    s3gen: str | None = option(None, "of S3Gen; null is what suits T3's on this machine")

    def __post_init__(self) -> None:
        own = Fields(self)
        for name in ("t3",) if self.s3gen is None else ("t3", "s3gen"):
            own.word(name, f"choose from {', '.join(PRECISIONS)}")
            if (value := getattr(self, name)) not in PRECISIONS:
                raise ValueError(f"precision of {name} must be one of {', '.join(PRECISIONS)}, got {value!r}")


def precision_config(precision: str | PrecisionConfig) -> PrecisionConfig:
    """Settings as they are; one name is for both networks. Raises ValueError if it is neither."""
    if isinstance(precision, PrecisionConfig):
        return precision
    return PrecisionConfig(word("precision", precision, f"choose from {', '.join(PRECISIONS)}"))


SPEECH_RANGES = {  # as SAMPLING_RANGES
    "exaggeration": (0.0, 10.0, "0.5 is neutral"),
    "paragraph_pause": (0.0, 60.0, "in seconds; 0 speaks on"),
    "speed": (0.5, 2.0, "1 is as the voice speaks"),
    "loudness": (-70.0, 0.0, "in LUFS; -16 is usual, None leaves it as it is"),
}


def exaggeration_of(value: object) -> float:
    """Emotion as a plain number, 0.5 for None. Raises ValueError if it is no number, or out of range."""
    given = SpeechOptions.exaggeration if value is None else value
    return number("exaggeration", given, *SPEECH_RANGES["exaggeration"])


CLEANINGS = ("full", "characters", "none")


@dataclass(frozen=True, kw_only=True)
class SpeechOptions:
    """What a request may ask for beside its text, its voice and how its tokens are sampled.

    A new option is a field here and in `SpeechArguments`, a null in ``configs/say.yaml``, and whoever reads it. None is
    the default. Values become plain Python ones; of ``seed`` -1 is None, and `chatterbox.values.seed_of` folds others.
    """

    exaggeration: float = option(0.5, "emotion; 0.5 is neutral")
    seed: int | None = option(None, "the same seed says it the same way; null is another way each time")
    use_cache: bool = option(True, "false computes the whole sequence anew at every step: slow, for checking")
    watermark: bool = option(True, "inaudible, says that the speech is synthetic")
    guard: str = option("light", 'against loops and runaways: "light", "alignment" (multilingual models), "none"')
    cleaning: str = option(
        "full", 'of the text: "full", "characters" (leaves markup), "none" (as chatterbox-tts 0.1.7)'
    )
    normalize: bool | None = option(None, "numbers, dates, times, money, units in words; null is the model's default")
    paragraph_pause: float = option(0.5, "seconds of silence between two paragraphs; 0 speaks on")
    speed: float = option(1.0, "of whole speech, 0.5 to 2, at its own pitch; other than 1 needs the extra `speed`")
    loudness: float | None = option(None, "LUFS of each utterance of whole speech, as -16; null leaves it as it is")

    def __post_init__(self) -> None:
        own = Fields(self, none_is_default=True)
        for name, within in SPEECH_RANGES.items():
            if name != "loudness" or self.loudness is not None:
                own.number(name, *within)
        own.put("seed", seed_of(self.seed))
        for name in ("use_cache", "watermark"):
            own.switch(name)
        own.word("guard", "docs/guards.md lists them")
        own.word("cleaning", f"it is one of {', '.join(CLEANINGS)}")
        if self.cleaning not in CLEANINGS:
            raise ValueError(f"cleaning must be one of {', '.join(CLEANINGS)}, got {self.cleaning!r}")
        if self.normalize is not None:
            own.switch("normalize")


class SpeechArguments(TypedDict, total=False):
    """What every `generate` takes by name, beside upstream's arguments.

    max_new_tokens: speech tokens at most, 25 a second, of each utterance; a longer one is cut there with a warning.
    None is the checkpoint's own limit, 1000 as published. seed: own random numbers for this call; None draws from
    torch's global generator, as upstream. use_cache: False recomputes the whole sequence at every step; for checking.
    watermark: False leaves the audio unmarked. guard: ends an utterance that loops or runs away: "light", "alignment"
    (multilingual models: 0.1.7's analyser without its bugs), or "none"; docs/guards.md. cleaning: of the text, "full",
    "characters", which leaves markup, or "none", which feeds the model as 0.1.7 does; docs/text.md. normalize: write
    numbers, dates, times, money and units in words, or not; None is the model's default: yes for "tiny" alone.
    paragraph_pause: seconds of silence between two paragraphs; 0 speaks on. speed: of whole speech, 0.5 to 2, at its
    own pitch; loudness: LUFS that each utterance of it is brought to; docs/configuration.md. sample_rate: in Hz, of
    recordings that are samples without a rate of their own; None is 24 kHz.
    """

    max_new_tokens: int | None
    seed: int | None
    use_cache: bool
    watermark: bool
    guard: str
    cleaning: str
    normalize: bool | None
    paragraph_pause: float
    speed: float
    loudness: float | None
    sample_rate: int | None


class BatchArguments(SpeechArguments, total=False):
    """What every `generate_batch` takes by name beside its other arguments. None is the checkpoint's own."""

    repetition_penalty: float | None
    min_p: float | None
    top_p: float | None
    top_k: int | None
    norm_loudness: bool


class StreamArguments(BatchArguments, total=False):
    """What every `generate_stream` takes by name, beside the arguments of chatterbox-streaming 0.1.2.

    first_chunk, continuity, history_len, decode_ahead, max_chunk: as `StreamingConfig` has them.
    """

    first_chunk: int
    continuity: str
    history_len: int
    decode_ahead: int
    max_chunk: int | None


CONTINUITIES = ("isolated", "history", "append")


@dataclass(frozen=True)
class StreamingConfig:
    """How speech is handed out while it is made. Speech tokens are 25 a second. None is the default.

    docs/streaming.md explains each.
    """

    chunk_size: int = option(25, "speech tokens of a chunk of audio")
    first_chunk: int = option(10, "of the first one; those between double until they reach chunk_size")
    context_window: int = option(50, "speech tokens before a chunk that the flow sees again")
    fade_duration: float = option(0.02, "seconds over which a chunk takes over from the one before")
    continuity: str = option("isolated", 'what a sentence knows of those before: "isolated", "history", "append"')
    history_len: int = option(250, 'speech tokens of the sentence before, at most, that "history" gives to the next')
    decode_ahead: int = option(250, "speech tokens that may wait for S3Gen; 0 decodes and renders in turn")
    max_chunk: int | None = option(None, "that a chunk may grow to while enough is left to hear; null is chunk_size")

    def __post_init__(self) -> None:
        own = Fields(self, none_is_default=True)
        lowest = {"chunk_size": 1, "first_chunk": 1, "context_window": 0, "history_len": 0, "decode_ahead": 0}
        for name, low in lowest.items():
            own.whole(name, low, unit="speech tokens")
        own.whole_or_none("max_chunk", self.chunk_size, "null is chunk_size")
        own.number("fade_duration", 0.0, 0.1, "in seconds; 0.02 is usual, 0 turns it off")
        own.word("continuity", f"choose from {', '.join(CONTINUITIES)}")
        if self.continuity not in CONTINUITIES:
            raise ValueError(f"continuity must be one of {', '.join(CONTINUITIES)}, got {self.continuity!r}")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionary of a configuration (tuples become lists), ready for JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_dict(value)
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(cls: type, values: dict[str, Any], where: str = "config") -> Any:
    """Build ``cls`` from a plain dictionary; missing keys keep their defaults, or become what ``cls.completed`` says.

    Raises:
        ValueError: an unknown key, or a value of the wrong kind; the message names key, value and choices.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a table of settings, got {values!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    arguments = {}
    complete = getattr(cls, "completed", dict)
    for key, value in complete(values).items():
        if key not in known:
            raise ValueError(f"{where} has no setting {key!r}; it has {', '.join(sorted(known))}")
        arguments[key] = _convert(known[key], value, f"{where}.{key}")
    return cls(**arguments)


def _kind_of(value: Any, kinds: list[Any], where: str) -> Any:
    """Which of several dataclasses a table is of: its ``kind`` says so, the first where it says nothing."""
    by_name = {k.kind: k for k in kinds}
    name = value.get("kind", kinds[0].kind) if isinstance(value, dict) else kinds[0].kind
    if name not in by_name:
        raise ValueError(f"{where}.kind must be one of {', '.join(by_name)}, got {name!r}")
    return by_name[name]


def _convert(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        if value is None and len(kinds) < len(typing.get_args(kind)):
            return None
        kind = kinds[0] if len(kinds) == 1 else _kind_of(value, kinds, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        num = "" if items[-1] is Ellipsis else f" of {len(items)}"
        if not isinstance(value, (list, tuple)) or (num and len(value) != len(items)):
            raise ValueError(f"{where} must be a list{num}, got {value!r}")
        return tuple(_convert(items[0], v, where) for v in value)
    kind = typing.get_origin(kind) or kind
    found = {int: whole_of, float: number_of}.get(kind, _itself)(value)
    if found is None or not isinstance(found, (int, float) if kind is float else kind):
        remedy = "; in quotes it is one" * (kind is str and isinstance(value, bool | int | float))
        raise ValueError(f"{where} must be {kind.__name__}, got {shown(value)}{remedy}")
    return float(found) if kind is float else found


def _itself(value: Any) -> Any:
    return value
