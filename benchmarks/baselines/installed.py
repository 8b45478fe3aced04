"""What an installed package weighs; run by the interpreter of its environment: ``PYTHON installed.py DISTRIBUTION``.

Prints one JSON line: how many dependencies it declares (those of extras left out), how many distributions it needs in
all, what of these is not installed, and the size on disk of the rest in MiB, with and without torch, which all share. A
distribution's size is that of the files it lists; an editable one's is its package folder.
"""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import json
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MIB = 2**20


def needs(distribution: metadata.Distribution, extras: set[str]) -> dict[str, set[str]]:
    """Names of direct dependencies here, and the extras asked of each."""
    found = {}
    for line in distribution.requires or ():
        one = Requirement(line)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            found[canonicalize_name(one.name)] = set(one.extras)
    return found


def closure(name: str) -> tuple[dict[str, metadata.Distribution], set[str]]:
    """All that ``name`` needs and that is installed, itself included; and what of it is not installed."""
    found: dict[str, metadata.Distribution] = {}
    lacking, todo = set(), [(canonicalize_name(name), set())]
    while todo:
        name, extras = todo.pop()
        if name in found and not extras:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            lacking.add(name)
            continue
        known = found.keys() | lacking
        todo += [need for need in needs(found[name], extras).items() if need[0] not in known]
    return found, lacking


def size(distribution: metadata.Distribution, package: str | None = None) -> int:
    """Bytes of its files; of the folder of ``package`` where it lists none of them."""
    listed = distribution.files or ()
    files = [Path(distribution.locate_file(file)) for file in listed]
    if package and not any(file.parts[0] == package for file in listed):
        folder = Path(importlib.util.find_spec(package).origin).parent
        files += [file for file in folder.rglob("*") if "__pycache__" not in file.parts]
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> None:
    name = canonicalize_name(sys.argv[1])
    found, lacking = closure(name)
    sizes = {one: size(found[one], "chatterbox" if one == name else None) for one in found}
    direct = needs(found[name], set())
    result = {
        "direct_dependencies": len(direct),
        "not_installed": sorted(lacking),
        "distributions": len(found) - 1,
        "total_mib": round(sum(sizes.values()) / MIB, 1),
        "without_torch_mib": round((sum(sizes.values()) - sizes.get("torch", 0)) / MIB, 1),
        "package_mib": round(sizes[name] / MIB, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
