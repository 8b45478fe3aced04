"""Configurations: YAML mirrors the dataclasses, overrides and sweeps are Hydra's, nothing of Hydra's is left behind."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.version import getbase

from chatterbox.cli.config import BenchmarkCommandConfig, MeasurementConfig, ModelChoice
from chatterbox.cli.hydra_config import ConfigError, compose_config, compose_say, split_sweep, to_yaml
from chatterbox.cli.schema import PRIMARY, configs_folder, groups_of, settings_of
from chatterbox.config import (
    EngineConfig,
    KVCacheConfig,
    PrecisionConfig,
    PressureConfig,
    S3GenOptions,
    SamplingConfig,
    StreamingConfig,
    from_dict,
    to_dict,
)
from chatterbox.serve.config import ServerConfig

# A value other than the default for every setting that a command line may give.
GIVEN = {
    "model": {
        "source": "s",
        "device": "cpu",
        "local_files_only": True,
        "t3_model": "v3",
        "s3gen_model": "v1",
        "tokenizer": "t.json",
    },
    "kvcache": {
        "policy": "dynamic",
        "max_cache_size": 9,
        "window_size": 4,
        "uncond_window": 2,
        "eviction": "silence*2+attention",
        "silent_tokens": (3, 4),
        "decode_codec": "int4",
        "group_size": 16,
        "residual_size": 8,
        "full_heads": 0.25,
        "prefix_mib": 5,
        "host_mib": 6,
        "host_codec": "int8",
        "disk_folder": "d",
        "disk_mib": 7,
        "total_mib": 8,
        "replacement": "lru",
        "pressure": {"soft_mib": 9, "hard_mib": 8, "process_mib": 7, "interval_ms": 6},
    },
    "engine": {
        "max_rows": 8,
        "cache_mib": 64,
        "idle_seconds": 5.0,
        "park_seconds": 2.0,
        "max_waiting": 16,
        "prefill_len": 128,
        "stop_stride": 2,
        "batch_invariant": True,
    },
    "s3gen": {"memory": "past", "steps": 4, "unguided_steps": 1, "prompt_seconds": 4.0},
    "precision": {"t3": "int8", "s3gen": "float16"},
    "sampling": {
        "temperature": 0.5,
        "cfg_weight": 0.25,
        "repetition_penalty": 1.5,
        "min_p": 0.1,
        "top_p": 0.75,
        "top_k": 40,
        "max_new_tokens": 5,
    },
    "language": "fr",
    "voice": "v.wav",
    "exaggeration": 0.75,
    "seed": 5,
    "use_cache": False,
    "watermark": False,
    "guard": "none",
    "cleaning": "characters",
    "normalize": True,
    "paragraph_pause": 1.5,
    "speed": 1.25,
    "loudness": -16.0,
    "streaming": {
        "chunk_size": 30,
        "first_chunk": 4,
        "context_window": 20,
        "fade_duration": 0.01,
        "continuity": "history",
        "history_len": 100,
        "decode_ahead": 0,
        "max_chunk": 45,
    },
    "benchmark": {"texts": ("one", "two"), "warmup": 0, "repeats": 2},
    "server": {
        "host": "localhost",
        "port": 9,
        "wyoming_port": 10,
        "wyoming_host": "localhost",
        "models": ("turbo", "turbo:int8"),
        "default_voice": "mary",
        "voices": "there",
        "jobs": "jobs",
        "max_job_input": 9999,
        "key_file": "keys",
        "open_lists": False,
        "no_keys": True,
        "strict": True,
        "max_input": 4096,
        "max_upload_mib": 5,
        "max_streams": 8,
        "key_streams": 4,
        "key_rate": 60,
        "origins": ("https://example.org",),
        "hosts": ("example.org",),
        "preload": True,
        "warm": ("mary",),
        "unload_seconds": 600.0,
        "log_requests": True,
        "drain_seconds": 3.0,
    },
}
TABLES = {
    "model": ModelChoice,
    "kvcache": KVCacheConfig,
    "engine": EngineConfig,
    "s3gen": S3GenOptions,
    "precision": PrecisionConfig,
    "streaming": StreamingConfig,
    "benchmark": MeasurementConfig,
    "server": ServerConfig,
    "sampling": dict,
    "pressure": PressureConfig,
}


def built(values: dict) -> dict:
    """Tables as the dataclasses they are of, innermost first."""
    return {key: TABLES[key](**built(value)) if isinstance(value, dict) else value for key, value in values.items()}


def overrides(values: dict, prefix: str = "") -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += overrides(value, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}={list(value) if isinstance(value, tuple) else value}")
    return lines


def keys(values: dict, prefix: str = "") -> list[str]:
    return [line.partition("=")[0] for line in overrides(values, prefix)]


@pytest.mark.parametrize("name", PRIMARY)
def test_composed_defaults_are_the_dataclasses(name):
    assert compose_config(name) == PRIMARY[name]()


@pytest.mark.parametrize("name", ["stream", "benchmark"])
def test_realtime_names_memory_steps_and_precision(name):
    """A preset of several groups; what is given beside it counts more."""
    config = compose_config(name, ["streaming=realtime"])
    assert (config.streaming, config.s3gen, config.precision) == (
        StreamingConfig(max_chunk=100),
        S3GenOptions("past", 4, 1),
        PrecisionConfig("int8"),
    )
    beside = ["s3gen=prompt", "precision=float16", "streaming.max_chunk=50", "s3gen.steps=7"]
    config = compose_config(name, ["streaming=realtime", *beside])
    assert (config.streaming, config.s3gen, config.precision) == (
        StreamingConfig(max_chunk=50),
        S3GenOptions("prompt", 7),
        PrecisionConfig("float16"),
    )


@pytest.mark.parametrize("name", PRIMARY)
def test_every_setting_of_the_dataclasses_is_in_yaml(name):
    """`GIVEN` has every key, none of them its default, and each can be given."""
    primary = PRIMARY[name]
    given = {one.name: GIVEN[one.name] for one in dataclasses.fields(primary)}
    assert keys(given) == [one.key for one in settings_of(primary)]
    default, expected = primary(), primary(**built(given))
    assert not set(overrides(to_dict(default))) & set(overrides(to_dict(expected)))
    assert compose_config(name, overrides(given)) == expected


def test_every_group_has_a_choice_for_each_table_and_yaml_repeats_no_number():
    """Choices that mirror a dataclass hold its defaults as null."""
    mirrors = {
        "kvcache": "static",
        "engine": "default",
        "s3gen": "default",
        "precision": "auto",
        "sampling": "checkpoint",
        "streaming": "default",
        "benchmark": "default",
    }
    mirrors["model"] = "tiny"
    assert groups_of(BenchmarkCommandConfig).keys() == mirrors.keys()
    for group, choice in mirrors.items():
        values = yaml.safe_load((configs_folder() / group / f"{choice}.yaml").read_text())
        numbers = [value for value in values.values() if isinstance(value, (int, float, bool))]
        table = SamplingConfig if group == "sampling" else TABLES[group]
        assert not numbers and list(values) == [one.name for one in dataclasses.fields(table)]


CHOICES = [(group, choice.name) for group, choices in groups_of(BenchmarkCommandConfig).items() for choice in choices]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_says_what_it_is(group, choice):
    given = [f"{group}={choice}", *(["model.source=here"] if choice == "folder" else [])]
    default, config = to_dict(BenchmarkCommandConfig()), to_dict(compose_config("benchmark", given))
    differs = {key for key in config if config[key] != default[key]}
    is_default = choice in ("tiny", "static", "checkpoint", "default", "auto")
    also = {"s3gen", "precision"} if (group, choice) == ("streaming", "realtime") else set()
    assert differs == (set() if is_default else {group} | also)
    assert all(one.about.endswith(".") or one.name == "folder" for one in groups_of(BenchmarkCommandConfig)[group])


@pytest.mark.parametrize(
    ("override", "sampling", "source", "policy"),
    [
        ("sampling=greedy", {"temperature": 0}, "tiny", "static"),
        ("model=chatterbox", {}, "chatterbox", "static"),
        ("kvcache=none", {}, "tiny", "none"),
        ("kvcache=sliding", {}, "tiny", "sliding"),
    ],
)
def test_choices(override, sampling, source, policy):
    config = compose_say([override])
    assert config.sampling == sampling and config.model.source == source and config.kvcache.policy == policy


def test_folder_needs_its_source():
    with pytest.raises(ConfigError, match=r"model.source: Missing mandatory value"):
        compose_say(["model=folder"])
    assert compose_say(["model=folder", "model.source=/a/b"]).model.source == "/a/b"


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("say", "streaming=smooth", "say has no setting 'streaming'; it has model, kvcache, engine, s3gen, precision"),
        ("stream", "benchmark.repeats=1", "stream has no setting 'benchmark.repeats'"),
        ("stream", "streaming=fast", "streaming has no choice 'fast'; it has append, default, history, low_latency"),
        ("stream", "streaming.chunk=1", "streaming has no setting 'chunk'; it has chunk_size, first_chunk"),
        ("stream", "streaming.chunk_size=1.5", "stream.streaming.chunk_size must be int, got 1.5"),
        ("stream", "streaming.chunk_size=0", "chunk_size must be a whole number of speech tokens from 1, got 0"),
        ("stream", "streaming.continuity=true", "stream.streaming.continuity must be str, got True"),
        ("stream", "streaming=[smooth,history]", "streaming has no choice ['smooth', 'history']; it has append"),
        ("stream", "streaming.continuity=loose", "continuity must be one of isolated, history, append, got 'loose'"),
        ("benchmark", "benchmark.repeats=0", "repeats must be a whole number of turns from 1, got 0"),
        ("benchmark", "benchmark.texts=[]", "texts must be a list of at least one text, got []"),
        ("benchmark", "benchmark.texts=Hello", "benchmark.benchmark.texts must be a list, got 'Hello'"),
        ("benchmark", "+benchmark.more=1", "benchmark has no setting 'more'; it has texts, warmup, repeats"),
        ("say", "kvcache.pressure=3", "say.kvcache.pressure must be a table of settings, got 3"),
        ("say", "hydra.run.dir=x", "say has no setting 'hydra.run.dir'"),
        ("say", "kvcache.window_size=${nothing}", "kvcache.window_size: Interpolation key 'nothing' not found"),
        ("say", "kvcache={a:1}", "kvcache has no choice {'a': 1}"),
        ("say", "+seed=1", "+seed=1: settings are neither added (+) nor deleted (~); write seed=VALUE"),
        ("say", "++kvcache.window_size=8", "write kvcache.window_size=VALUE"),
        ("say", "~seed=0", "~seed=0: settings are neither added (+) nor deleted (~); write seed=VALUE"),
        ("say", "~kvcache", "~kvcache: settings are neither added (+) nor deleted (~); write kvcache=VALUE"),
        ("say", "+kvcache=sliding", "write kvcache=VALUE"),
        ("say", "voice=it's me", """as it stands a value is taken in quotes: 'voice="VALUE"'"""),
        ("say", "voice=a,b", """runs one after the other, as it stands a value is taken in quotes: 'voice="VALUE"'"""),
        ("say", "voice=7", "say.voice must be str, got 7; in quotes it is one"),
        ("say", "model=folder", "model.source: Missing mandatory value: source; give model.source=VALUE"),
    ],
)
def test_what_cannot_be_set(name, override, message):
    with pytest.raises(ConfigError) as error:
        compose_config(name, [override])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["/tmp/ü", "a,b", "a=b", "it's me", "7", "~/x", "a(b){c}", "$HOME"])
def test_a_value_in_quotes_is_taken_as_it_stands(value):
    assert compose_say([f'voice="{value}"']).voice == value


@pytest.fixture
def own_yaml(tmp_path):
    """A user's folder, at a path that needs quoting."""
    folder = tmp_path / 'my "own", folder'
    (folder / "kvcache").mkdir(parents=True)
    (folder / "kvcache" / "phone.yaml").write_text("# Little memory.\ndefaults:\n  - static\nmax_cache_size: 256\n")
    (folder / "kvcache" / "wrong.yaml").write_text("defaults:\n  - static\nwindow: 5\n")
    return folder


def test_a_users_own_folder_joins(own_yaml):
    kvcache = compose_config("say", ["kvcache=phone", "kvcache.window_size=128"], config_dir=own_yaml).kvcache
    assert kvcache == KVCacheConfig(max_cache_size=256, window_size=128)
    assert compose_config("say", ["kvcache=sliding"], config_dir=own_yaml).kvcache.policy == "sliding"
    with pytest.raises(ConfigError, match="kvcache has no choice 'phone'"):
        compose_say(["kvcache=phone"])
    with pytest.raises(ConfigError, match=r"say.kvcache has no setting 'window'; it has decode_codec, "):
        compose_config("say", ["kvcache=wrong"], config_dir=own_yaml)
    with pytest.raises(ConfigError, match=r"it has .*none, phone, sliding, static, .*wrong"):
        compose_config("say", ["kvcache=other"], config_dir=own_yaml)


@pytest.mark.parametrize(
    ("given", "jobs"),
    [
        (["seed=3"], [["seed=3"]]),
        (
            ["kvcache=none,static", "seed=range(0,2)"],
            [[f"kvcache={policy}", f"seed={seed}"] for policy in ("none", "static") for seed in (0, 1)],
        ),
        (["sampling.temperature=choice(0.1,0.2)"], [["sampling.temperature=0.1"], ["sampling.temperature=0.2"]]),
        (["sampling=glob(*)"], [["sampling=checkpoint"], ["sampling=greedy"]]),
        (["benchmark.texts=[a,b],[c]"], [["benchmark.texts=[a,b]"], ["benchmark.texts=[c]"]]),
        (["kvcache=none,paged"], [["kvcache=none"], ["kvcache=paged"]]),  # that job's error
    ],
)
def test_sweeps(given, jobs):
    assert split_sweep("benchmark", given) == jobs


def test_sweeps_know_a_users_own_folder(own_yaml):
    jobs = split_sweep("benchmark", ["kvcache=glob([p*,s*])"], config_dir=own_yaml)
    assert jobs == [["kvcache=phone"], ["kvcache=sliding"], ["kvcache=static"]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kvcache.windo=1,2", "kvcache has no setting 'windo'"),
        ("sampling.temperature=interval(0,1)", "is no list of values"),
        ("seed=range(", "cannot read 'seed=range\\('"),
    ],
)
def test_sweeps_that_cannot_be(override, message):
    with pytest.raises(ConfigError, match=message):
        split_sweep("benchmark", [override])


@pytest.mark.parametrize("name", PRIMARY)
def test_yaml_of_a_configuration_is_the_configuration(name):
    config = compose_config(name, overrides({one.name: GIVEN[one.name] for one in dataclasses.fields(PRIMARY[name])}))
    assert from_dict(PRIMARY[name], yaml.safe_load(to_yaml(config))) == config


def test_a_program_that_uses_hydra_is_not_disturbed(tmp_path):
    """It goes on where it was, with its own Hydra, version, folder, handlers and singletons."""
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    root = logging.getLogger()
    with initialize_config_dir(str(tmp_path), job_name="theirs", version_base="1.2"):
        theirs = GlobalHydra.instance()
        before = os.getcwd(), list(root.handlers), root.level, getbase(), theirs.hydra, dict(Singleton._instances)
        known = before[-1].keys()
        assert compose_config("stream", ["kvcache=sliding"]).kvcache.policy == "sliding"
        with pytest.raises(ConfigError):
            compose_say(["kvcache=paged"])
        with pytest.raises(ConfigError):
            compose_say(["kvcache.window_size=${nothing}"])  # after Hydra was asked
        split_sweep("benchmark", ["kvcache=none,static"])
        singletons = {kind: one for kind, one in Singleton._instances.items() if kind in known}
        after = os.getcwd(), list(root.handlers), root.level, getbase(), theirs.hydra, singletons
        assert after == before and GlobalHydra.instance() is theirs
        assert compose("theirs", overrides=["a=2"]) == {"a": 2}


def test_a_program_that_will_use_hydra_finds_it_untouched():
    code = (
        "import os, logging; from hydra.core.global_hydra import GlobalHydra; from hydra.version import getbase;"
        "found = lambda: (os.getcwd(), list(logging.getLogger().handlers), sorted(os.listdir()), getbase());"
        "before = found(); from chatterbox.cli.hydra_config import compose_say; compose_say(['kvcache=sliding']);"
        "assert before == found() and not GlobalHydra.instance().is_initialized()"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_library_takes_names_or_dataclasses_without_hydra(small_folder):
    code = (
        "import sys; from chatterbox import ChatterboxTTS; from chatterbox.config import KVCacheConfig;"
        f"folder = {str(small_folder)!r};"
        "settings = KVCacheConfig(policy='sliding', window_size=100);"
        "said = [ChatterboxTTS.from_local(folder, 'cpu', kvcache=one).generate('Hi.', seed=1, watermark=False)"
        " for one in ('sliding', settings)];"
        "assert said[0].shape == said[1].shape and (said[0] == said[1]).all();"
        "assert not {'hydra', 'omegaconf', 'antlr4'} & set(sys.modules), 'Hydra was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
