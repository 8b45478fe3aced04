"""The tables of docs/configuration.md, made of the dataclasses and the folder of YAML.

``python docs/configuration_tables.py`` writes them anew; a test fails where they are not what it would write.

Owns: what stands between the marks ``<!-- table NAME -->`` and ``<!-- end -->``. Does not know: the text around them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from chatterbox.cli.config import BenchmarkCommandConfig, ServeCommandConfig
from chatterbox.cli.schema import Choice, Setting, groups_of, settings_of, shown

PAGE = Path(__file__).parent / "configuration.md"
_MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables() -> dict[str, list[str]]:
    """Lines by name: the choices and keys of each group, and ``top``, the keys that are in none."""
    groups = groups_of(BenchmarkCommandConfig) | groups_of(ServeCommandConfig)
    settings = list(dict.fromkeys([*settings_of(BenchmarkCommandConfig), *settings_of(ServeCommandConfig)]))
    of_group = {name: [one for one in settings if one.key.startswith(f"{name}.")] for name in groups}
    made = {name: [*_choices(groups[name]), "", *_keys(of_group[name])] for name in groups}
    return made | {"top": list(_keys([one for one in settings if "." not in one.key]))}


def filled(page: str) -> str:
    """``page`` with every table as it should be. Raises ValueError if one is missing or has no such name."""
    made = tables()
    marked = [name for _, name, _ in _MARKED.findall(page)]
    if sorted(marked) != sorted(made):
        raise ValueError(f"the page has tables {marked}, it should have {list(made)}")
    return _MARKED.sub(lambda found: "\n".join([found[1], *made[found[2]], "", found[3]]), page)


def _choices(choices: list[Choice]) -> Iterator[str]:
    yield from ("| choice | |", "| --- | --- |")
    yield from (f"| `{one.name}` | {one.about} |" for one in choices)


def _keys(settings: list[Setting]) -> Iterator[str]:
    yield from ("| key | kind | default | |", "| --- | --- | --- | --- |")
    for one in settings:
        default = "see the YAML" if isinstance(one.default, tuple) else f"`{shown(one.default)}`"
        yield f"| `{one.key}` | {one.kind} | {default} | {one.about} |"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
