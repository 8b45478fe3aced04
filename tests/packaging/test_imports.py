"""What importing costs, and that imports point down only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import structure

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "chatterbox"
HEAVY = ("librosa", "perth", "transformers", "tokenizers", "hydra", "soundfile", "huggingface_hub", "scipy", "numba")

# Height of each part, longest prefix first to match: a module may import what is not above it.
LEVELS = {
    "chatterbox.config": 0,
    "chatterbox.runtime": 0,
    "chatterbox.upstream_names": 0,
    "chatterbox.values": 0,
    "chatterbox.audio": 1,
    "chatterbox.evaluation": 1,
    "chatterbox.integrations": 6,
    "chatterbox.kvcache": 1,
    "chatterbox.text": 1,
    "chatterbox.models": 2,
    "chatterbox.watermark": 2,
    "chatterbox.engine": 3,
    "chatterbox.voice": 3,
    "chatterbox.checkpoints": 4,
    "chatterbox.synthesis": 5,
    "chatterbox.synthesis.aio": 0,
    "chatterbox.base": 6,
    "chatterbox.mtl_tts": 7,
    "chatterbox.tts": 7,
    "chatterbox.tts_turbo": 7,
    "chatterbox.vc": 7,
    "chatterbox.serve": 6,
    "chatterbox.serve.config": 0,
    "chatterbox.cli": 8,
    "chatterbox": 9,
}
KNOWN = structure.modules()
FORBIDDEN = re.compile(r"Must not\s+import:(.*?)[.;]\s", re.DOTALL)


def loaded_after(statement: str, *, whole: bool = False) -> set[str]:
    """Packages that it imports, or with ``whole`` all modules."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.splitlines()[-1].split()
    return {name if whole else name.partition(".")[0] for name in names}


def test_importing_the_package_loads_nothing_else():
    loaded = loaded_after("import chatterbox; chatterbox.__version__; dir(chatterbox)")
    assert "chatterbox" in loaded and loaded.isdisjoint({"torch", "numpy", *HEAVY})


@pytest.mark.parametrize(("given", "kept"), [(None, "128"), ("7", "7")])
def test_kernels_kept_per_shape_are_few_unless_the_user_says_otherwise(given, kept, monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv(name, given)
    code = f"import os, chatterbox; print(os.environ[{name!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == kept


@pytest.mark.parametrize("statement", ["import chatterbox.models.t3", "import chatterbox.tts, chatterbox.vc"])
def test_heavy_libraries_wait_until_they_are_needed(statement):
    loaded = loaded_after(statement)
    assert "torch" in loaded and loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("policy", ["static", "compressed"])
def test_speaking_never_needs_torchs_compiler(policy, precision, tmp_path):
    """It takes a second and 70 MB to import, which torch does for some shapes that are computed without memory."""
    words = ["say", "Hi.", "-o", str(tmp_path / "hi.wav"), f"kvcache={policy}", f"precision={precision}"]
    loaded = loaded_after(f"from chatterbox.cli import main; assert main({words}) == 0", whole=True)
    assert "torch" in loaded and loaded.isdisjoint({"torch._dynamo", "torch.fx.experimental.symbolic_shapes", "sympy"})


def test_names_of_the_package():
    import chatterbox
    from chatterbox.tts import ChatterboxTTS
    from chatterbox.vc import ChatterboxVC

    assert chatterbox.ChatterboxTTS is ChatterboxTTS and chatterbox.ChatterboxVC is ChatterboxVC
    assert {"ChatterboxTTS", "ChatterboxVC", "__version__"} <= set(dir(chatterbox))
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = chatterbox.Nope


def test_upstreams_import_paths():
    from chatterbox.models.s3gen import S3GEN_SR, S3Gen  # noqa: F401
    from chatterbox.models.s3tokenizer import S3_SR, SPEECH_VOCAB_SIZE, S3Tokenizer, drop_invalid_tokens  # noqa: F401
    from chatterbox.models.t3 import T3  # noqa: F401
    from chatterbox.models.t3.modules.cond_enc import T3Cond  # noqa: F401
    from chatterbox.models.t3.modules.t3_config import T3Config  # noqa: F401
    from chatterbox.models.tokenizers import EnTokenizer  # noqa: F401
    from chatterbox.models.voice_encoder import VoiceEncoder  # noqa: F401
    from chatterbox.tts import REPO_ID, ChatterboxTTS, Conditionals, punc_norm  # noqa: F401
    from chatterbox.vc import ChatterboxVC  # noqa: F401

    assert (S3GEN_SR, S3_SR, SPEECH_VOCAB_SIZE) == (24_000, 16_000, 6561)


def level(module: str) -> int:
    while module not in LEVELS:
        module = module.rpartition(".")[0]
    return LEVELS[module]


@pytest.mark.parametrize("module", sorted(KNOWN))
def test_imports_point_down(module):
    if "chatterbox." in module:
        assert any(module == part or module.startswith(f"{part}.") for part in LEVELS if part != "chatterbox"), (
            f"{module} has no place in LEVELS"
        )
    used = structure.imports(KNOWN[module], KNOWN) - {"chatterbox"}  # its version
    upward = {name for name in used if level(name) > level(module)}
    assert {(module, name) for name in upward} <= structure.LATE


FOLDERS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parents[1] == PACKAGE)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_imports_nothing_that_it_says_it_must_not(folder):
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    said = FORBIDDEN.search(text + " ")
    assert "Owns: " in text and said is not None, "its first lines say what it owns and must not import"
    forbidden = [f"chatterbox.{name}" for name in re.findall(r"`(\w+)`", said[1])]
    assert forbidden and all(name in KNOWN for name in forbidden)
    users = {name: path for name, path in KNOWN.items() if path.is_relative_to(folder)}
    found = {(user, other) for user, path in users.items() for other in structure.imports(path, KNOWN)}
    wrong = {(user, other) for user, other in found for name in forbidden if f"{other}.".startswith(f"{name}.")}
    assert wrong <= structure.LATE


def test_kvcache_knows_no_model():
    for path in (PACKAGE / "kvcache").rglob("*.py"):
        allowed = ("chatterbox.config", "chatterbox.kvcache", "chatterbox.runtime", "chatterbox.values")
        assert all(name.startswith(allowed) for name in structure.imports(path, KNOWN)), path


def test_one_module_imports_hydra():
    users = {p.name for p in PACKAGE.rglob("*.py") if {"hydra", "omegaconf"} & top_level_names(p)}
    assert users == {"hydra_config.py"}


def test_libraries_that_this_package_does_without():
    forbidden = {"torchaudio", "diffusers", "einops", "conformer", "onnx", "s3tokenizer", "gradio"}
    assert not {(p.name, name) for p in PACKAGE.rglob("*.py") for name in forbidden & top_level_names(p)}


def top_level_names(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}
