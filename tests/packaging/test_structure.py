"""The shape of the package, by what `make structure` measures without loading a model."""

from __future__ import annotations

from tools import structure


def test_no_circle_of_files():
    known = structure.modules()
    graph = {name: structure.imports(path, known) for name, path in known.items()}
    late = {(user, other) for user, others in graph.items() for other in others} & structure.LATE
    assert late == structure.LATE, "an exception that is none any more"
    for user, other in late:
        graph[user].remove(other)
    assert structure.circles(graph) == []


def test_a_circle_is_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"e"}}
    assert structure.circles(graph) == [["a", "b", "c"]]
