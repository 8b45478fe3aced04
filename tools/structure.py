"""How heavy the house is: circles of files, files that a call enters, what importing brings, long signatures, lines.

``python tools/structure.py``, or ``make structure``, prints a table of figures with their bounds and goals and
fails where one is over its bound. Only the embedded voice is loaded, for the files that one warm `generate` enters.
"""

from __future__ import annotations

import ast
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "chatterbox"
# `T3.inference` is upstream's name for what `engine.decode` does; it imports it when called.
LATE = {("chatterbox.models.t3.t3", f"chatterbox.engine.{name}") for name in ("decode", "request")}
# Upstream's signatures: who calls them passes their arguments by place.
UPSTREAM = {
    "generate", "generate_stream", "agenerate_stream", "generate_batch", "inference", "inference_turbo",
    "flow_inference", "hift_inference", "__init__",
}  # fmt: skip
MANY_ARGUMENTS = 8
# Figures that have not come to their goal, as they are: they may fall, not rise.
ENTERED, IMPORTED, LINES = 82, 94, 34_000


class Figure(NamedTuple):
    """``most``: the bound that holds now; None reports alone. ``goal``: where it is to come to."""

    name: str
    value: int
    most: int | None = None
    goal: int | None = None
    named: Sequence[str] = ()  # what is counted, where it is few


def modules() -> dict[str, Path]:
    """All modules of the package by name."""
    return {_name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, known: dict[str, Path], *, late: bool = True) -> set[str]:
    """Modules of the package that a file imports for use. ``late``: inside of functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node) for top in ast.walk(tree) if _is_type_checking(top) for node in ast.walk(top)}
    if not late:
        skipped |= {id(node) for top in ast.walk(tree) if _is_function(top) for node in ast.walk(top)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(SOURCE).parts[: -node.level] if node.level else ()
            source = ".".join([*package, *filter(None, [node.module])])
            below = {f"{source}.{alias.name}" for alias in node.names}
            # Of `from package import module` the module is meant, of `from package import name` the package's file.
            found |= {name for name in below if name in known}
            if any(name not in known for name in below):
                found.add(source)
    return found & known.keys()


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, whatever the way (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in order:
            visit(name)
    return found


def closure(start: str, graph: dict[str, set[str]]) -> set[str]:
    """All modules that importing ``start`` imports, the packages around them among them."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in graph:
            continue
        seen.add(name)
        waiting += [*graph[name], *[name.rpartition(".")[0]]]
    return seen


def signatures(known: dict[str, Path]) -> Iterator[str]:
    """Functions with many arguments that are not upstream's."""
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in UPSTREAM:
                asked = node.args
                given = [one for one in (*asked.posonlyargs, *asked.args, *asked.kwonlyargs) if one.arg != "self"]
                if len(given) >= MANY_ARGUMENTS:
                    yield f"{name}.{node.name} ({len(given)})"


def entered_by_generate() -> set[str]:
    """Files of the package of which one warm `generate` of the embedded voice runs a function, in any thread."""
    from chatterbox.tts import ChatterboxTTS

    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    threading.setprofile(note)  # before the model starts its threads: those that exist are not seen
    sys.setprofile(note)
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
    try:
        tts.generate("This one warms it.", seed=1)
        seen.clear()
        tts.generate("Hello there.", seed=1)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        tts.close()
    return {str(Path(name).relative_to(SOURCE)) for name in seen if name.startswith(str(PACKAGE))}


def figures() -> list[Figure]:
    known = modules()
    every = {name: imports(path, known) - {late for user, late in LATE if user == name} for name, path in known.items()}
    at_import = {name: imports(path, known, late=False) for name, path in known.items()}
    groups = circles(every)
    outside = sorted(name for name in closure("chatterbox.tts", at_import) if "chatterbox.models" not in name)
    long = list(signatures(known))
    entered = sorted(entered_by_generate())
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in known.values())
    return [
        Figure("circles of files", len(groups), 0, 0, [" ".join(group) for group in groups]),
        Figure("files that one warm generate enters", len(entered), ENTERED, 35, entered),
        Figure("files that importing chatterbox.tts brings, models apart", len(outside), IMPORTED, 45, outside),
        Figure(f"functions with {MANY_ARGUMENTS} arguments or more, upstream's apart", len(long), 12, 12, long),
        Figure("files of the package", len(known)),
        Figure("lines of the package", lines, LINES, 16_349),
    ]


def main() -> None:
    is_over = False
    for figure in figures():
        over = figure.most is not None and figure.value > figure.most
        is_over |= over
        bound = "" if figure.most is None else f"at most {figure.most}"
        goal = "" if figure.goal is None or figure.value <= figure.goal else f"goal {figure.goal}"
        print(f"{figure.name:62} {figure.value:6}  {bound:14} {goal:12} {'OVER' if over else ''}".rstrip())
        for name in figure.named if over or "--verbose" in sys.argv else ():
            print(f"    {name}")
    sys.exit(is_over)


if __name__ == "__main__":
    main()
