"""A configuration to a model that speaks: weights, voice and caches, for every command that says something.

Owns: the checks before anything is loaded, which voice is meant, the one place where requests are made. Does not know:
the terminal, what is done with the speech.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from chatterbox.cli.config import SayCommandConfig, StreamCommandConfig
from chatterbox.cli.errors import UsageError, as_usage
from chatterbox.cli.options import Config
from chatterbox.cli.output import Progress
from chatterbox.config import SamplingConfig, SpeechOptions, StreamingConfig, from_dict, to_dict
from chatterbox.voice.library import BUILT_IN, find_voice, load_prepared

if TYPE_CHECKING:
    from pathlib import Path

    from chatterbox.checkpoints import Layout, LoadedModels
    from chatterbox.engine.request import Request
    from chatterbox.synthesis.request import SynthesisRequest
    from chatterbox.synthesis.speech_stream import SpeechChunk
    from chatterbox.synthesis.synthesizer import SpeechResult, Synthesizer
    from chatterbox.synthesis.utterances import TokenChunk
    from chatterbox.voice.conditionals import Conditionals


@dataclass(frozen=True)
class Speaker:
    """A loaded model with one voice, its caches and the settings it speaks with."""

    config: SayCommandConfig
    models: LoadedModels
    voice: Conditionals
    synthesizer: Synthesizer

    def request(self, text: str | Iterable[str], seed: int | None = None) -> SynthesisRequest:
        """``text`` as the configuration says, but for a ``seed`` that is given.

        Raises UsageError for a setting that this model does not have.
        """
        from chatterbox.engine.guards import check_guard
        from chatterbox.synthesis.request import SynthesisRequest

        config = self.config if seed is None else dataclasses.replace(self.config, seed=seed)
        with as_usage():
            check_guard(config.guard, self.models.t3.hp)
            return SynthesisRequest(
                text=text,
                conditionals=self.voice,
                sampling=sampling_of(config, self.models.config.sampling),
                cache_policy=config.kvcache,
                language_id=config.language or self.models.language,
                **{one.name: getattr(config, one.name) for one in dataclasses.fields(SpeechOptions)},
            )

    def speak(
        self, text: str, on_token: Callable[[int], None] | None = None, *, seed: int | None = None
    ) -> SpeechResult:
        """Speech of ``text``; ``on_token`` is told how many speech tokens were decoded; ``seed`` as `request`."""
        return self.synthesizer.speak(self.request(text, seed), on_token=on_token)

    def stream(
        self, text: str | Iterable[str], on_token: Callable[[int], None] | None = None
    ) -> Generator[SpeechChunk, None, None]:
        """Speech of ``text``, or of its pieces as they come, as `StreamCommandConfig.streaming` says."""
        return self.synthesizer.stream(self.request(text), self._streaming, on_token=on_token)

    def decode(self, text: str) -> Iterator[TokenChunk]:
        """Speech tokens of ``text`` as T3 decodes them, without any audio."""
        return self.synthesizer.decode(self.request(text), self._streaming)

    def decode_requests(self, text: str) -> list[Request]:
        """What T3 is asked for when ``text`` is spoken, one utterance after the other."""
        by_sentence = self._streaming.continuity != "isolated"
        return self.synthesizer.decode_requests(self.request(text), by_sentence=by_sentence)

    def close(self) -> None:
        """End what is under way, and the model's threads; it speaks no more."""
        self.synthesizer.close()

    @property
    def _streaming(self) -> StreamingConfig:
        return self.config.streaming if isinstance(self.config, StreamCommandConfig) else StreamingConfig()


def load_speaker(config: SayCommandConfig, report: Progress) -> Speaker:
    """Load what ``config`` names.

    Raises:
        UsageError: a setting that does not exist or does not fit the model.
        ValueError, OSError: weights or a recording that cannot be found or read; one line.
    """
    config = checked(config)
    if config.voice not in (None, BUILT_IN):
        find_voice(config.voice)  # before the weights are read
    return make_speaker(models_of(config, report), config, report)


def models_of(config: SayCommandConfig, report: Progress, *, any_language: bool = False) -> LoadedModels:
    """The weights that ``config`` (of `checked`) names. ``any_language``: nothing will be spoken.

    Raises:
        CheckpointError: they cannot be found or read.
        UsageError: the language does not fit them.
    """
    from chatterbox import checkpoints

    report.stage("loading the model")
    choice = config.model
    given = checkpoints.Files(choice.t3_model, choice.s3gen_model, choice.tokenizer)
    folder, layout = checkpoints.find_model(choice.source, given, local_files_only=choice.local_files_only)
    if not any_language:
        _check_language(config, folder, layout)
    fetch = partial(checkpoints.fetch_base, local_files_only=choice.local_files_only)
    return checkpoints.load_models(folder, choice.device, layout, given, precision=config.precision, fetch_base=fetch)


def _check_language(config: SayCommandConfig, folder: Path, layout: Layout) -> None:
    """Raise UsageError where the language does not fit what a model is."""
    from chatterbox.checkpoints import MULTILINGUAL_VERSIONS, PUBLISHED
    from chatterbox.models.tokenizers.languages import LANGUAGES

    if layout.language is not None:
        with as_usage():
            layout.check_language(config.language)
        return
    if (config.language is not None) == layout.config.t3.is_multilingual:
        return
    silent = config.language is None
    remedy = "name one with --language" if silent else f"leave out --language {config.language}"
    if not silent and config.model.source not in PUBLISHED:
        found = (name for name, stem in MULTILINGUAL_VERSIONS.items() if any(folder.glob(f"{stem}.*")))
        remedy += "".join(
            f", or speak the folder's multilingual model with model.t3_model={one}" for one in [*found][:1]
        )
    kind = f"speaks {len(LANGUAGES)} languages" if silent else "speaks English alone"
    raise UsageError(f"model {config.model.source} {kind}; {remedy}")


def make_speaker(models: LoadedModels, config: SayCommandConfig, report: Progress) -> Speaker:
    """A speaker on loaded weights, with caches of its own. ``config`` is of `checked`."""
    from chatterbox.models.tokenizers.languages import check_language
    from chatterbox.synthesis.synthesizer import Synthesizer, SynthesizerConfig

    with as_usage():
        check_language(config.language, getattr(models.tokenizer, "has_language", None))
        if models.layout is not None:
            models.layout.check_language(config.language)
    voice = load_voice(models, config, report)
    parts = models.t3, models.s3gen, models.tokenizer, models.voice_encoder
    own = SynthesizerConfig(config.kvcache, config.engine, config.s3gen)
    return Speaker(config, models, voice, Synthesizer(*parts, own))


def checked(config: Config) -> Config:
    """``config`` with every name in it checked, before weights are looked for; raises UsageError."""
    from chatterbox.checkpoints import named_models, resolve_device
    from chatterbox.engine.guards import check_guard
    from chatterbox.kvcache import check_names
    from chatterbox.models.tokenizers.languages import check_language

    with as_usage():
        resolve_device(config.model.device)
        check_names(config.kvcache)
        check_guard(config.guard)
        layout = named_models().get(config.model.source)
        is_marked = None if layout is not None else lambda code: True  # a folder's tokenizer may have more languages
        language = check_language(config.language, is_marked)
        if layout is not None:
            layout.check_language(language)
        return dataclasses.replace(config, language=language)


def load_voice(models: LoadedModels, config: SayCommandConfig, report: Progress) -> Conditionals:
    """The voice that ``config`` means: the checkpoint's own, one that was prepared, or a recording's.

    Raises:
        UsageError: the checkpoint has none of its own, or the voice is of another model.
        FileNotFoundError, ValueError: the voice or recording cannot be used; one line.
    """
    from chatterbox.voice.conditionals import prepare_conditionals

    if config.voice in (None, BUILT_IN):
        if models.conds is None:
            raise UsageError(f"model {config.model.source} has no built-in voice; give a recording with --voice")
        return models.conds
    path = find_voice(config.voice)
    if path.suffix in (".safetensors", ".pt"):
        return load_prepared(path, models)
    report.stage("listening to the voice")
    return prepare_conditionals(models.s3gen, models.voice_encoder, path, hp=models.config.t3)


def sampling_of(config: SayCommandConfig, checkpoint: SamplingConfig) -> SamplingConfig:
    """The checkpoint's sampling with what ``config`` replaces of it."""
    return from_dict(SamplingConfig, {**to_dict(checkpoint), **config.sampling}, "sampling")
