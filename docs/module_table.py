"""The list of modules in docs/modules.md, made of their docstrings.

``python docs/module_table.py`` writes it anew; a test fails where it is not what this would write.

Owns: what stands between ``<!-- modules -->`` and ``<!-- end -->``. Does not know: the text around them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parent / "modules.md"
PACKAGE = Path(__file__).resolve().parents[1] / "src" / "chatterbox"
_MARKED = re.compile(r"(<!-- modules -->\n).*?(<!-- end -->)", re.DOTALL)


def table() -> Iterator[str]:
    """A line for each module: its path within the package, and the first sentence that it opens with."""
    yield from ("| module | |", "| --- | --- |")
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (len(path.relative_to(PACKAGE).parts) > 1, path)):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        opening = " ".join(docstring.partition("\n\n")[0].split())
        sentence = re.split(r"(?<=\.) (?=[A-Z])", opening)[0]
        yield f"| `{path.relative_to(PACKAGE)}` | {sentence.replace('``', '`').replace('|', '/')} |"


def filled(page: str) -> str:
    """``page`` with the list as it should be. Raises ValueError if it has no place for it."""
    if len(_MARKED.findall(page)) != 1:
        raise ValueError("the page must have one place for the modules, <!-- modules --> to <!-- end -->")
    return _MARKED.sub(lambda found: "\n".join([found[1], *table(), "", found[2]]), page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
