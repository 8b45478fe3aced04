"""Layers of T3 are modules: what replaces, wraps or hooks one takes effect, and untouched ones cost no more."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from chatterbox.config import KVCacheConfig
from chatterbox.kvcache import KVCache, make_cache
from chatterbox.models import linear
from chatterbox.models.config import T3Config
from chatterbox.models.shared_input import SharedInput
from chatterbox.models.t3 import T3
from tests.support.small import SMALL, SMALL_GPT2, build

LLAMA = [f"tfmr.layers.1.self_attn.{name}_proj" for name in "qkvo"]
LLAMA += [f"tfmr.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")]
GPT2 = [f"tfmr.h.1.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
HEADS = ["speech_head", "text_head"]
LAYERS = [*((SMALL, name) for name in LLAMA + HEADS), *((SMALL_GPT2, name) for name in GPT2 + HEADS)]
EMBEDS = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))


class Scaled(nn.Module):
    """A wrapper that has nothing of a linear layer's own."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.factor


class LowRank(nn.Module):
    """An adapter in the manner of peft: beside the base layer, or merged into it through ``weight.data``."""

    def __init__(self, base_layer: nn.Module, num_in: int, num_out: int, is_transposed: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.base_layer, self.is_transposed = base_layer, is_transposed
        self.lora_A = nn.Parameter(torch.randn(2, num_in, generator=generator))
        self.lora_B = nn.Parameter(torch.randn(num_out, 2, generator=generator))
        self.merged = False

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def delta(self) -> Tensor:
        product = self.lora_B @ self.lora_A
        return product.T if self.is_transposed else product

    def merge(self) -> None:
        self.base_layer.weight.data += self.delta()
        self.merged = True

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        return out if self.merged else out + F.linear(F.linear(x, self.lora_A), self.lora_B)


def sizes_of(layer: nn.Module, hp: T3Config) -> tuple[int, int, bool]:
    """Inputs, outputs, and whether the weight is stored (in, out)."""
    is_transposed = type(layer).__name__ == "Conv1D"
    rows, columns = layer.weight.shape
    return (rows, columns, True) if is_transposed else (columns, rows, False)


def put(t3: T3, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(t3.get_submodule(parent), child, layer)


@contextmanager
def replaced(t3: T3, name: str, layer: nn.Module) -> Iterator[None]:
    old = t3.get_submodule(name)
    put(t3, name, layer)
    yield
    put(t3, name, old)


@contextmanager
def wrapped(t3: T3, name: str) -> Iterator[None]:
    with replaced(t3, name, Scaled(t3.get_submodule(name), 3.0)):
        yield


@contextmanager
def put_into_the_table_of_modules(t3: T3, name: str) -> Iterator[None]:
    """As quantising libraries do."""
    parent, _, child = name.rpartition(".")
    modules, old = t3.get_submodule(parent)._modules, t3.get_submodule(name)
    modules[child] = Scaled(old, 3.0)
    yield
    modules[child] = old


@contextmanager
def hooked(t3: T3, name: str) -> Iterator[None]:
    handle = t3.get_submodule(name).register_forward_hook(lambda module, args, out: out * 3.0)
    yield
    handle.remove()


@contextmanager
def pre_hooked(t3: T3, name: str) -> Iterator[None]:
    handle = t3.get_submodule(name).register_forward_pre_hook(lambda module, args: (args[0] * 3.0,))
    yield
    handle.remove()


@contextmanager
def forward_assigned(t3: T3, name: str) -> Iterator[None]:
    layer = t3.get_submodule(name)
    plain = layer.forward
    layer.forward = lambda x: plain(x) * 3.0
    yield
    del layer.forward


@contextmanager
def hooked_everywhere(t3: T3, name: str) -> Iterator[None]:
    layer = t3.get_submodule(name)
    handle = register_module_forward_hook(lambda module, args, out: out * 3.0 if module is layer else None)
    yield
    handle.remove()


@contextmanager
def pre_hooked_everywhere(t3: T3, name: str) -> Iterator[None]:
    layer = t3.get_submodule(name)
    handle = register_module_forward_pre_hook(lambda module, args: (args[0] * 3.0,) if module is layer else None)
    yield
    handle.remove()


@contextmanager
def parametrized(t3: T3, name: str) -> Iterator[None]:
    class Tripled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 3.0

    layer = t3.get_submodule(name)
    nn.utils.parametrize.register_parametrization(layer, "weight", Tripled())
    yield
    nn.utils.parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


@contextmanager
def subclassed(t3: T3, name: str) -> Iterator[None]:
    layer = t3.get_submodule(name)
    own = type(layer)
    layer.__class__ = type("Tripled", (own,), {"forward": lambda self, x: own.forward(self, x) * 3.0})
    yield
    layer.__class__ = own


TOUCHES = [
    wrapped,
    put_into_the_table_of_modules,
    hooked,
    pre_hooked,
    forward_assigned,
    hooked_everywhere,
    pre_hooked_everywhere,
    parametrized,
    subclassed,
]


def cache_of(t3: T3, rows: int, capacity: int) -> KVCache | None:
    size = t3.hp.backbone
    shape = size.num_layers, rows, size.num_heads, size.head_dim, capacity
    return make_cache(KVCacheConfig(), *shape, dtype=t3.dtype, device=t3.device)


@torch.inference_mode()
def outputs(t3: T3) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (2, 7, 32), and what both heads make of them, through a cache, in a prefill and a step."""
    cache = cache_of(t3, 2, 16)
    hidden = torch.cat([t3.tfmr(EMBEDS[:, :6], cache), t3.tfmr(EMBEDS[:, 6:], cache)], dim=1)
    return hidden, t3.predict_speech(hidden), t3.text_head(hidden)


def with_tripled_weight(t3: T3, name: str) -> T3:
    """A model whose layer has three times the weight, which is what all touches amount to."""
    other = build(t3.hp)
    other.load_state_dict(t3.state_dict())
    with torch.no_grad():
        other.get_submodule(name).weight.mul_(3.0)
    return other


def assert_same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], **tolerances: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerances)


@pytest.fixture(params=LAYERS, ids=lambda case: f"{case[0].backbone.kind}-{case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[T3, str]:
    hp, name = request.param
    t3 = build(hp)
    if name == "speech_head" and t3.speech_head.bias is not None:  # what triples outputs triples a bias, too
        nn.init.zeros_(t3.speech_head.bias)
    return t3, name


@pytest.mark.parametrize("touch", TOUCHES)
def test_a_touched_layer_takes_effect_and_leaves_nothing(case: tuple[T3, str], touch: Callable[..., Any]) -> None:
    t3, name = case
    before, wanted = outputs(t3), outputs(with_tripled_weight(t3, name))
    assert any(not torch.allclose(one, other) for one, other in zip(before, wanted, strict=True))
    with touch(t3, name):
        assert_same(outputs(t3), wanted)
    assert_same(outputs(t3), before, rtol=0, atol=0)


def test_an_adapter_takes_effect_beside_its_layer_and_merged(case: tuple[T3, str]) -> None:
    t3, name = case
    layer, before = t3.get_submodule(name), outputs(t3)
    adapter = LowRank(layer, *sizes_of(layer, t3.hp))
    other = build(t3.hp)
    other.load_state_dict(t3.state_dict())
    with torch.no_grad():
        other.get_submodule(name).weight.add_(adapter.delta())
    wanted, untouched = outputs(other), layer.weight.detach().clone()
    with replaced(t3, name, adapter):
        assert_same(outputs(t3), wanted, rtol=1e-4, atol=1e-4)
        adapter.merge()
        assert_same(outputs(t3), wanted, rtol=1e-4, atol=1e-4)
    assert_same(outputs(t3), wanted, rtol=0, atol=0)  # merged, the layer is in its place again
    layer.weight.data.copy_(untouched)
    assert_same(outputs(t3), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", LLAMA)
def test_a_layer_of_another_kind(name: str) -> None:
    t3 = build(SMALL)
    layer = t3.get_submodule(name)
    plain = nn.Linear(layer.in_features, layer.out_features)
    wanted = with_tripled_weight(t3, name)
    with torch.no_grad():
        plain.weight.copy_(3.0 * layer.weight)
        plain.bias.zero_()
    before = outputs(t3)
    with replaced(t3, name, plain):
        assert_same(outputs(t3), outputs(wanted))
        with torch.no_grad():
            plain.bias.fill_(1.0)
        assert not torch.allclose(outputs(t3)[0], outputs(wanted)[0])
    assert_same(outputs(t3), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", [*LLAMA[:3], *LLAMA[4:6]])
def test_a_bias_that_a_layer_is_given(name: str) -> None:
    t3 = build(SMALL)
    layer, before = t3.get_submodule(name), outputs(t3)
    layer.bias = nn.Parameter(torch.full((layer.out_features,), 2.0))
    found = outputs(t3)
    layer.bias = None
    with replaced(t3, name, nn.Linear(layer.in_features, layer.out_features)):
        with torch.no_grad():
            t3.get_submodule(name).weight.copy_(layer.weight)
            t3.get_submodule(name).bias.fill_(2.0)
        assert_same(found, outputs(t3))
    assert_same(outputs(t3), before, rtol=0, atol=0)


def change_data(layer: nn.Module, weight: Tensor) -> None:
    layer.weight.data = weight


def change_parameter(layer: nn.Module, weight: Tensor) -> None:
    layer.weight = nn.Parameter(weight)


def change_in_place(layer: nn.Module, weight: Tensor) -> None:
    layer.weight.data.copy_(weight)


@pytest.mark.parametrize("change", [change_data, change_parameter, change_in_place])
def test_weights_that_change(case: tuple[T3, str], change: Callable[[nn.Module, Tensor], None]) -> None:
    t3, name = case
    outputs(t3)
    layer = t3.get_submodule(name)
    wanted = outputs(with_tripled_weight(t3, name))
    change(layer, 3.0 * layer.weight.detach())
    assert_same(outputs(t3), wanted)


def groups(t3: T3) -> list[SharedInput]:
    return [module for module in t3.modules() if isinstance(module, SharedInput)]


def assert_joined(t3: T3) -> None:
    """Each group's weights are consecutive rows of one matrix, which no other group has."""
    storages = set()
    for group in groups(t3):
        weights = [group.get_submodule(name).weight for name in group.JOINED]
        starts = [weight.storage_offset() for weight in weights]
        assert starts == [sum(weight.numel() for weight in weights[:place]) for place in range(len(weights))]
        assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
        storages.add(weights[0].untyped_storage().data_ptr())
    assert len(storages) == len(groups(t3)) == 2 * SMALL.backbone.num_layers


def test_a_copy_has_weights_of_its_own_and_joins_them_anew() -> None:
    t3 = build(SMALL)
    before = outputs(t3)
    twin = copy.deepcopy(t3)
    file = io.BytesIO()
    torch.save(t3, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (twin, loaded):
        assert all(group._joined is None for group in groups(other))
        assert_same(outputs(other), before, rtol=0, atol=0)
        assert_joined(other)
        with torch.no_grad():
            other.tfmr.layers[0].self_attn.k_proj.weight.zero_()
        assert not torch.equal(outputs(other)[0], before[0])
        assert_same(outputs(t3), before, rtol=0, atol=0)
    assert_joined(t3)


def test_state_dict_and_casts_of_joined_layers() -> None:
    t3, fresh = build(SMALL), build(SMALL)
    outputs(t3)
    state = t3.state_dict()
    assert state.keys() == fresh.state_dict().keys()
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in state.items())
    other = T3(SMALL).eval()
    outputs(other)
    other.load_state_dict(state)
    assert_same(outputs(other), outputs(t3), rtol=0, atol=0)
    other.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    assert_same(outputs(other), outputs(t3), rtol=0, atol=0)
    assert_joined(other)
    double = outputs_in(t3.double(), torch.float64)
    assert_joined(t3)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), outputs(other)[0], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def outputs_in(t3: T3, dtype: torch.dtype) -> Tensor:
    return t3.tfmr(EMBEDS.to(dtype))


def test_weights_that_cannot_share_a_matrix_are_multiplied_one_by_one() -> None:
    t3 = build(SMALL)
    attention = t3.tfmr.layers[1].self_attn
    tied = attention.k_proj.weight
    attention.q_proj.weight = tied
    before = outputs(t3)
    assert attention.q_proj.weight is attention.k_proj.weight is tied and attention._joined is None
    attention.q_proj.weight = nn.Parameter(tied.detach().clone())
    assert_same(outputs(t3), before)
    assert attention._joined is not None


def test_training_goes_through_the_layers() -> None:
    t3 = build(SMALL)
    outputs(t3)
    with hooked(t3, LLAMA[0]):
        t3.tfmr(EMBEDS).square().mean().backward()
    for name in LLAMA:
        gradient = t3.get_submodule(name).weight.grad
        assert gradient is not None and gradient.abs().sum() > 0
    trained = t3.tfmr(EMBEDS)
    with torch.inference_mode():
        torch.testing.assert_close(t3.tfmr(EMBEDS), trained.detach())
    assert all(parameter.requires_grad and not parameter.is_inference() for parameter in t3.parameters())


class CountOperations(TorchDispatchMode):
    num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(torch.__version__ < "2.6", reason="the numbers are of a torch that takes fewer for the same call")
@pytest.mark.parametrize(
    ("hp", "rows", "most"), [(SMALL, 1, 144), (SMALL, 2, 151), (SMALL_GPT2, 1, 109), (SMALL_GPT2, 2, 125)]
)
@torch.inference_mode()
def test_untouched_layers_dispatch_no_more_operations(
    hp: T3Config, rows: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decode step of two layers; ``most``: when the weights were read past the layers.

    Products are those of large matrices: how small ones are computed is no part of what layers add.
    """
    monkeypatch.setattr(linear, "SMALL", 0)
    t3 = build(hp)
    cache = cache_of(t3, rows, 64)
    for embeds in (EMBEDS[:rows, :5], EMBEDS[:rows, 5:6]):
        t3.predict_speech(t3.tfmr(embeds, cache))
    embeds = EMBEDS[:rows, 6:]
    with CountOperations() as count:
        t3.predict_speech(t3.tfmr(embeds, cache))
    assert count.num <= most
