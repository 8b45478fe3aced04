"""Which word of a command line is the text: any may be, whatever it looks like.

Owns: telling a text from options and settings, which argparse cannot. Does not know: what is done with the text.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from chatterbox.cli.schema import PRIMARY, groups_of, settings_of

_SETTING = re.compile(r"[+~]*(\w+)[\w./@]*=(\S*|[\[{'\"].*)", re.DOTALL)
_INLINE = re.compile(r"-\w.+", re.DOTALL)  # -oFILE


def take_text(
    parser: argparse.ArgumentParser, words: Sequence[str], primary: str, *, may_lack: bool
) -> tuple[str | None, list[str]]:
    """The text among the words after a command, None if there is none, and the other words.

    What stands behind ``--`` is the text; else the first word that is neither an option, its value nor a setting of
    ``primary``. Where there is none, and a text cannot be lacking, a word that looks like an option and is none, then
    the first setting. ``-h`` is the text where nothing else is and ``-o`` says where its audio goes.

    Args:
        may_lack: the text may come from elsewhere.
    """
    options, words = _Options(parser), list(words)
    plain: list[int] = []  # places of words that may be the text, by how they look
    dashed: list[int] = []
    helps: list[int] = []
    given: set[str] = set()
    place = 0
    while place < len(words):
        word = words[place]
        if word == "--" and place + 1 < len(words):
            return words[place + 1], [*words[:place], *words[place + 2 :]]
        action = options.action(word, is_first=place == 0)
        if not word.startswith("-") or word == "-":
            plain.append(place)
        elif action is None:
            dashed.append(place)
        elif action.dest == "help":
            helps.append(place)
        else:
            given.add(action.dest)
            place += action.nargs != 0 and word in options.names
        place += 1
    may_lack = may_lack or "file" in given
    chosen = [one for one in plain if not is_setting(words[one], primary)]
    chosen += [] if may_lack else dashed
    chosen += helps if "output" in given and "file" not in given else []
    chosen += [] if may_lack else plain
    if not chosen:
        return None, words
    return words[chosen[0]], [*words[: chosen[0]], *words[chosen[0] + 1 :]]


def is_setting(word: str, primary: str) -> bool:
    """Whether ``word`` gives a value to a setting, or to one of a table, that there is."""
    match = _SETTING.fullmatch(word)
    known = {one.key.partition(".")[0] for one in settings_of(PRIMARY[primary])}
    return match is not None and match[1] in known | groups_of(PRIMARY[primary]).keys()


class _Options:
    """What argparse would take for an option."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._actions = {name: action for action in parser._actions for name in action.option_strings}
        long = [name for name in self._actions if name.startswith("--")]
        self.names = {name[:end] for name in long for end in range(3, len(name) + 1)} | self._actions.keys()

    def action(self, word: str, *, is_first: bool) -> argparse.Action | None:
        """The option that ``word`` is or begins with: ``--name``, ``--na``, ``--name=value``, ``-oVALUE``.

        A first word ``-oVALUE`` is none: it is rather a text that begins with a dash.
        """
        name, _, _ = word.partition("=")
        if word in self._actions:
            return self._actions[word]
        if name.startswith("--") and name in self.names:
            return next(action for option, action in self._actions.items() if option.startswith(name))
        short = self._actions.get(word[:2]) if _INLINE.fullmatch(word) and not is_first else None
        return short if short is not None and short.nargs != 0 else None
