"""``chatterbox config``: what a command would run with, as YAML.

Owns: the defaults that only the checkpoint knows. Does not know: what the settings do.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from chatterbox.cli.config import SayCommandConfig
from chatterbox.cli.options import add_command, add_settings, add_speaker, configuration
from chatterbox.cli.schema import PRIMARY
from chatterbox.cli.speaker import checked, sampling_of
from chatterbox.config import to_dict

EXAMPLES = """
    examples:
      chatterbox config kvcache=sliding kvcache.window_size=256
      chatterbox config stream streaming=low_latency
      chatterbox config benchmark benchmark=long
"""


def add_to(commands: Any) -> None:
    parser = add_command(
        commands,
        "config",
        run,
        help="print a configuration with every default filled in",
        description="Print as YAML what a command would run with, every default filled in.",
    )
    parser.add_argument(
        "primary", nargs="?", default="say", metavar="|".join(PRIMARY), help="whose configuration (default: say)"
    )
    add_speaker(parser)
    add_settings(parser, "benchmark", examples=EXAMPLES)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from chatterbox.cli.hydra_config import to_yaml

    if "=" in arguments.primary:  # the first setting, where no configuration is named
        arguments.primary, overrides = "say", [arguments.primary, *overrides]
    if arguments.primary not in PRIMARY:
        arguments.parser.error(f"no configuration {arguments.primary!r}; choose from {', '.join(PRIMARY)}")
    config = configuration(arguments, overrides, arguments.primary)
    print(to_yaml(filled(config)), end="")
    return 0


def filled(config: SayCommandConfig) -> SayCommandConfig:
    """``config`` with what the checkpoint says about sampling, as far as it can be known without loading it."""
    from chatterbox.checkpoints import PUBLISHED, Files, config_of, find_model, read_folder

    config, source = checked(config), config.model.source
    if source in PUBLISHED:
        checkpoint = PUBLISHED[source].config
    else:
        choice = config.model
        given = Files(choice.t3_model, choice.s3gen_model, choice.tokenizer)
        folder, _ = find_model(source, given)
        checkpoint = config_of(read_folder(folder, given=given))
    return dataclasses.replace(config, sampling=to_dict(sampling_of(config, checkpoint.sampling)))
