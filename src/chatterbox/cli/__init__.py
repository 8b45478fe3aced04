"""The ``chatterbox`` command, one module for each of its commands; `main` is the entry point.

Owns: the terminal, and all that knows Hydra. Nothing else of the package imports it. Must not import: `integrations`.
"""

import importlib
import sys

try:
    importlib.import_module("chatterbox.runtime")
except ImportError as error:  # another package lies over this one
    sys.exit(f"chatterbox: error: {error}")
try:
    from chatterbox.cli.main import main
except KeyboardInterrupt:  # before there is anything to end
    sys.stderr.write("chatterbox: error: interrupted\n")
    sys.exit(130)

__all__ = ["main"]
