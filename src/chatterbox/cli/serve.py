"""``chatterbox serve``: speech for OpenAI's clients, until it is told to stop.

Owns: its arguments, which models are served under which names, the line that says where. Does not know: routes, HTTP
(`chatterbox.serve`).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from chatterbox.cli.config import ServeCommandConfig
from chatterbox.cli.errors import UsageError, as_usage
from chatterbox.cli.options import add_command, add_settings, add_speaker, configuration
from chatterbox.cli.output import Progress, progress, tell
from chatterbox.cli.speaker import checked, models_of
from chatterbox.config import PRECISIONS, PrecisionConfig
from chatterbox.runtime.allocator import share_arenas
from chatterbox.voice.library import BUILT_IN

if TYPE_CHECKING:
    from chatterbox.serve.models import Loading, ServedModel

EXTRA = "pip install 'chatterbox-kvcache[serve]'"
KEY_VARIABLE = "CHATTERBOX_API_KEY"
EXAMPLES = """
    examples:
      chatterbox serve
      chatterbox serve --port 9000 --model turbo precision=int8 server.models=[tiny]
      curl localhost:8000/v1/audio/speech -d '{"input": "Hello there.", "voice": "alloy"}' > hello.mp3
"""


def add_to(commands: Any) -> None:
    parser = add_command(
        commands,
        "serve",
        run,
        help="serve speech over HTTP, as OpenAI's clients ask for it",
        description="Serve speech over HTTP, as OpenAI's clients ask for it (POST /v1/audio/speech), in every format "
        f"while it is made. Another address than this machine's own needs a key ({KEY_VARIABLE}, or server.key_file). "
        "SIGTERM and Ctrl-C let answers under way end.",
    )
    parser.add_argument("--host", metavar="ADDRESS", help="to listen at; default 127.0.0.1, this machine alone")
    parser.add_argument("--port", metavar="N", help="default 8000; 0 takes a free one")
    parser.add_argument("--wyoming-port", metavar="N", help="of Wyoming, for Home Assistant; 10200 is usual")
    add_speaker(parser)
    add_settings(parser, "serve", examples=EXAMPLES)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    flags = [
        f"server.{name}={value}"
        for name in ("host", "port", "wyoming_port")
        if (value := getattr(arguments, name)) is not None
    ]
    config = checked(cast(ServeCommandConfig, configuration(arguments, [*overrides, *flags], "serve")))
    if config.voice not in (None, BUILT_IN):
        raise UsageError(f"--voice {config.voice}: a server speaks in voices by name; server.default_voice=NAME is one")
    try:
        from chatterbox.serve.config import keys_of
        from chatterbox.serve.running import serve
    except ModuleNotFoundError as error:
        raise UsageError(f"serving needs {error.name}: {EXTRA}") from None
    with as_usage():
        keys = keys_of(config.server, os.environ.get(KEY_VARIABLE))
        loadings = list(_loadings(config))
    share_arenas()  # before there are threads
    with progress() as report:
        report.stage(f"loading {loadings[0].name}")

        def started(url: str) -> None:
            report.clear()
            tell(f"{loadings[0].name} speaks at {url}/v1/audio/speech; Ctrl-C ends it")

        serve(loadings, config.server, keys, started)
    return 0


def _loadings(config: ServeCommandConfig) -> Iterator[Loading]:
    """The model of the configuration, and those beside it, by the names that clients give."""
    from chatterbox.checkpoints import check_name
    from chatterbox.serve.models import Loading

    names = set[str]()
    for given in [config.model.source, *config.server.models]:
        source, _, precision = given.rpartition(":")
        if precision not in PRECISIONS or not source:
            source, precision = given, ""
        check_name(source)
        own = dataclasses.replace(config, model=dataclasses.replace(config.model, source=source))
        if precision:
            own = dataclasses.replace(own, precision=PrecisionConfig(precision))
        name = "-".join(part for part in (Path(source).name, precision) if part)
        if name in names:
            raise UsageError(f"two models would be called {name!r}; give each folder a name of its own")
        names.add(name)
        yield Loading(name, partial(_model, checked(own), name))


def _model(config: ServeCommandConfig, name: str) -> ServedModel:
    from chatterbox.config import SpeechOptions
    from chatterbox.serve.models import Defaults, ServedModel, library_of
    from chatterbox.synthesis.synthesizer import Synthesizer, SynthesizerConfig

    models = models_of(config, Progress(), any_language=True)
    parts = models.t3, models.s3gen, models.tokenizer, models.voice_encoder
    synthesizer = Synthesizer(*parts, SynthesizerConfig(config.kvcache, config.engine, config.s3gen))
    options = SpeechOptions(**{one.name: getattr(config, one.name) for one in dataclasses.fields(SpeechOptions)})
    defaults = Defaults(options, config.sampling, config.kvcache, config.streaming, config.language)
    return ServedModel(name, models, synthesizer, library_of(config.server), defaults)
