"""Another distribution that installs the package ``chatterbox``: found, said, with the remedy.

Owns: whose files these are. Does not know: what is in them. Imported with the package, so it imports nothing heavy.

``chatterbox-tts`` and ``chatterbox-streaming`` write their files over those of this package if they are installed
later, and take them away if they are uninstalled; a program or a server that requires one may cause either.
"""

from __future__ import annotations

import os
import sys
import warnings

OTHERS = ("chatterbox-tts", "chatterbox-streaming")
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REPAIR = "pip uninstall -y {} && pip install --force-reinstall --no-deps chatterbox-kvcache"


def require_own_package() -> None:
    """Raises:
    ImportError: the package that this module was imported with is not the one that it belongs to.
    """
    if not hasattr(sys.modules["chatterbox"], "_HOMES"):
        raise ImportError(
            f"files of {owner() or OTHERS[0]} lie over those of chatterbox-kvcache, or some are missing; "
            f"{remedy(owner())}"
        )


def warn_of_other_owner() -> None:
    """Warn if another distribution, installed beside this one, will take files of the package with it."""
    if other := owner():
        warnings.warn(
            f"{other} is installed too and owns files of this package, which an upgrade or uninstalling it takes away; "
            f"{remedy(other)}",
            stacklevel=3,
        )


def remedy(other: str | None) -> str:
    """The command that mends it, and where it is explained."""
    return f"run: {REPAIR.format(other or ' '.join(OTHERS))} (docs/migrating.md, Installed beside chatterbox-tts)"


def owner(package: str = PACKAGE) -> str | None:
    """The distribution beside the folder ``package`` that lists files of it; the file-less chatterbox-tts does not."""
    site, name = os.path.split(package)
    try:
        installed = sorted(one for one in os.listdir(site) if one.endswith(".dist-info"))
    except OSError:  # in a zip archive
        return None
    for other in OTHERS:
        for folder in installed:
            if folder.startswith(f"{other.replace('-', '_')}-") and _lists(os.path.join(site, folder, "RECORD"), name):
                return other
    return None


def _lists(record: str, name: str) -> bool:
    try:
        with open(record, encoding="utf-8") as lines:
            return any(line.startswith(f"{name}/") for line in lines)
    except OSError:  # a distribution without a list
        return False
