"""Pages of the site that no file of docs/ stands for.

Owns: README and CHANGELOG as pages, one page for each module of the package. Does not know: what docstrings say.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "chatterbox"
COPIES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def modules() -> list[str]:
    """Dotted names of the package's modules, of a package that which holds its `__init__`."""
    paths = (path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted({".".join(path.parts).removesuffix(".__init__") for path in paths})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs' hook: what the site is made of."""
    for page, source in COPIES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for module in modules():
        if not module.endswith("__main__"):
            content = f"# `{module}`\n\n::: {module}\n"
            files.append(File.generated(config, f"api/{module.replace('.', '/')}/index.md", content=content))
    return files
