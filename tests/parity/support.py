"""Goldens of chatterbox-tts 0.1.7, their tolerances, and models filled with the weights they were made with."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from tools.synthetic import SEED, fill_module

DATA = Path(__file__).resolve().parents[1] / "data"


@cache
def _tolerances() -> dict:
    return json.loads((DATA / "tolerances.json").read_text())


@cache
def load_golden(case: str) -> dict[str, torch.Tensor]:
    """Tensors of one case: ``in.*``, ``out.*`` and ``const.*``. Shared between tests: do not write into them."""
    return load_file(str(DATA / "goldens" / f"{case}.safetensors"))


def load_meta(case: str) -> dict:
    """The ``meta`` header of one case."""
    from safetensors import safe_open

    with safe_open(str(DATA / "goldens" / f"{case}.safetensors"), "pt") as f:
        return json.loads(f.metadata()["meta"])


def load_json(case: str) -> dict:
    return json.loads((DATA / "goldens" / f"{case}.json").read_text())


def manifest(layout: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of one published checkpoint file."""
    tensors = json.loads((DATA / "manifests" / f"{layout}.json").read_text())["tensors"]
    return {key: tuple(entry["shape"]) for key, entry in tensors.items()}


def fill(module: torch.nn.Module, prefix: str = "", seed: int = SEED) -> torch.nn.Module:
    """Fill ``module``, at ``prefix`` in its checkpoint, with the goldens' weights; returns it in eval mode."""
    return fill_module(module, prefix=prefix, seed=seed).eval()


def tolerance(case: str, key: str) -> tuple[float, float]:
    entry = _tolerances()["cases"].get(case, {})
    rtol, atol = entry.get("tensors", {}).get(key) or entry.get("default") or _tolerances()["default"]
    return rtol, atol


def check(case: str, key: str, actual: torch.Tensor) -> None:
    """Assert that ``actual`` is the stored tensor: integers equal, floats within the case's tolerance."""
    golden = load_golden(case)[key]
    actual = actual.detach().cpu()
    assert actual.shape == golden.shape, f"{case}/{key}: shape {tuple(actual.shape)}, golden {tuple(golden.shape)}"
    if not golden.is_floating_point():
        assert torch.equal(actual.long(), golden), (
            f"{case}/{key}: {int((actual.long() != golden).sum())} integers differ"
        )
        return
    rtol, atol = tolerance(case, key)
    torch.testing.assert_close(
        actual.double(), golden.double(), rtol=rtol, atol=atol, msg=lambda m: f"{case}/{key}: {m}"
    )
