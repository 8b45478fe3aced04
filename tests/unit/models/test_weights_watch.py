"""Weights and layers that change: whatever is kept of the old ones is not served to the new ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from chatterbox.engine.prefill import Prefiller
from chatterbox.kvcache import GlobalKVCacheManager
from chatterbox.kvcache.prefix.keys import weights_fingerprint
from chatterbox.models.config import T3Config
from chatterbox.models.t3 import T3
from chatterbox.models.weights_watch import OTHER, PENDING, SAME
from chatterbox.tts import ChatterboxTTS
from tests.support.small import SMALL, SMALL_GPT2, build, make_request
from tests.unit.models.test_layers import LowRank, Scaled, put, sizes_of

MODELS = pytest.mark.parametrize("hp", [SMALL, SMALL_GPT2], ids=["llama", "gpt2"])


def name_of(t3: T3) -> str:
    return t3.watch.fingerprint(t3)


def scale(weight: nn.Parameter) -> None:
    weight.data.mul_(1.5)


def add_low_rank(weight: nn.Parameter) -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(len(weight), 1, generator=generator) @ torch.randn(1, weight[0].numel(), generator=generator)
    weight.data += 1e-3 * delta.view_as(weight)


def copy_over(weight: nn.Parameter) -> None:
    weight.data.copy_(torch.rand(weight.shape))


def set_data(weight: nn.Parameter) -> None:
    weight.data = torch.rand(weight.shape)


def negate_in_inference_mode(weight: nn.Parameter) -> None:
    with torch.inference_mode():
        weight.neg_()


CHANGES = pytest.mark.parametrize("change", [scale, add_low_rank, copy_over, set_data, negate_in_inference_mode])


@MODELS
@CHANGES
def test_a_change_of_any_whole_matrix_is_noticed(hp: T3Config, change: Callable[[nn.Parameter], None]) -> None:
    t3 = build(hp)
    for weight in t3.parameters():
        nn.init.normal_(weight)
    name = name_of(t3)
    for key, weight in t3.named_parameters():
        before = weight.detach().clone()
        change(weight)
        assert name_of(t3) != name, key
        weight.data.copy_(before)
        assert name_of(t3) == name, key
    assert name == weights_fingerprint(t3)


def noticed_by_requests(t3: T3, change: Callable[[T3], object]) -> None:
    """A prefix that was kept is served again, and after ``change`` is computed anew, as a model does that had it."""
    request = make_request(3, t3.hp)
    source = Prefiller(t3, GlobalKVCacheManager(budget_bytes=2**24))
    source.acquire(request).release()
    with source.acquire(request) as known:
        assert known.num_cached_tokens == request.num_rows * known.length
    change(t3)
    fresh = Prefiller(t3, GlobalKVCacheManager(budget_bytes=2**24))
    with source.acquire(request) as found, fresh.acquire(request) as wanted:
        assert found.num_cached_tokens == wanted.num_cached_tokens < known.num_cached_tokens
        for row, other in zip(found.rows, wanted.rows, strict=True):
            for one, two in zip(row, other, strict=True):
                assert torch.equal(one.keys, two.keys) and torch.equal(one.values, two.values)


@MODELS
@CHANGES
def test_prefixes_of_changed_weights_are_not_served(hp: T3Config, change: Callable[[nn.Parameter], None]) -> None:
    noticed_by_requests(build(hp), lambda t3: change(t3.cond_enc.spkr_enc.weight))


def layer_of(t3: T3) -> str:
    return "tfmr.layers.0.self_attn.q_proj" if t3.hp.backbone.kind == "llama" else "tfmr.h.0.attn.c_attn"


def replace_layer(t3: T3) -> None:
    put(t3, layer_of(t3), Scaled(t3.get_submodule(layer_of(t3)), 2.0))


def hook_layer(t3: T3) -> None:
    t3.get_submodule(layer_of(t3)).register_forward_hook(lambda module, args, out: 2.0 * out)


def pre_hook_layer(t3: T3) -> None:
    t3.get_submodule(layer_of(t3)).register_forward_pre_hook(lambda module, args: (2.0 * args[0],))


def assign_forward(t3: T3) -> None:
    layer = t3.get_submodule(layer_of(t3))
    plain = layer.forward
    layer.forward = lambda x: 2.0 * plain(x)


@MODELS
@pytest.mark.parametrize("change", [replace_layer, hook_layer, pre_hook_layer, assign_forward])
def test_prefixes_of_touched_layers_are_not_served(hp: T3Config, change: Callable[[T3], None]) -> None:
    noticed_by_requests(build(hp), change)


@MODELS
def test_an_adapter_from_wrapping_to_merging(hp: T3Config) -> None:
    t3 = build(hp)
    layer, plain = t3.get_submodule(layer_of(t3)), name_of(t3)
    before = layer.weight.detach().clone()
    adapter = LowRank(layer, *sizes_of(layer, hp))
    put(t3, layer_of(t3), adapter)
    wrapped = name_of(t3)
    assert name_of(t3) == wrapped
    adapter.merge()
    merged = name_of(t3)
    put(t3, layer_of(t3), layer)
    unloaded = name_of(t3)
    assert len({plain, wrapped, merged, unloaded}) == 4
    assert unloaded == weights_fingerprint(t3)  # another process that loads the merged weights knows them by it
    layer.weight.data.copy_(before)
    assert name_of(t3) == plain


def test_settings_of_a_layer_that_is_not_ours() -> None:
    t3 = build(SMALL)
    plain = name_of(t3)
    replace_layer(t3)
    wrapper = t3.get_submodule(layer_of(t3))
    twice = name_of(t3)
    wrapper.factor = 3.0
    three_times = name_of(t3)
    wrapper.factor = 2.0
    assert name_of(t3) == twice != three_times
    wrapper.adapters = {"voice": ["a", "b"], "scaling": (1.0, None)}
    assert name_of(t3) not in (plain, twice, three_times)
    put(t3, layer_of(t3), wrapper.inner)
    assert name_of(t3) == plain


def test_functions_have_a_name_once() -> None:
    """What a hook computes cannot be told, so nothing computed with one outlives it."""
    t3 = build(SMALL)
    plain, names = name_of(t3), set()
    for _ in range(2):
        for register in (t3.tfmr.norm.register_forward_hook, register_module_forward_hook):
            handle = register(lambda module, args, out: None)
            names.add(name_of(t3))
            assert name_of(t3) in names
            handle.remove()
            assert name_of(t3) == plain
    assert len(names | {plain}) == 5


def test_nothing_is_noticed_where_nothing_changed() -> None:
    t3, twin = build(SMALL), build(SMALL)
    name, version = name_of(t3), t3.watch.version
    with torch.inference_mode():
        t3.tfmr(torch.randn(1, 3, 32))
    t3.train().eval()
    t3.requires_grad_(False)
    assert name_of(t3) == name and t3.watch.version == version
    assert name_of(twin) == name == weights_fingerprint(t3)


def test_the_version_tells_of_addresses_too() -> None:
    """What replays recorded steps has to know of them."""
    t3 = build(SMALL)
    name, version = name_of(t3), t3.watch.version
    weight = t3.speech_head.weight
    weight.data = weight.data.clone()
    assert name_of(t3) == name and t3.watch.version == version + 1


def test_a_few_values_and_weights_changed() -> None:
    t3 = build(SMALL)
    names = [name_of(t3)]
    t3.tfmr.layers[0].mlp.up_proj.weight.data[0, 0] += 1.0
    t3.weights_changed()
    names.append(name_of(t3))
    t3.tfmr.norm.eps = 0.5  # no weight at all
    t3.weights_changed()
    names.append(name_of(t3))
    assert len(set(names)) == 3 and name_of(t3) == names[2]


def test_the_facade_computes_everything_anew(small_tts: ChatterboxTTS) -> None:
    tts = ChatterboxTTS(
        copy.deepcopy(small_tts.t3), small_tts.s3gen, small_tts.ve, small_tts.tokenizer, "cpu", small_tts.conds
    )

    def num_cached_tokens() -> float:
        before = tts.cache_stats()["tokens_served"]
        tts.warm(["One text."])
        return tts.cache_stats()["tokens_served"] - before

    new, known = num_cached_tokens(), num_cached_tokens()
    tts.t3.tfmr.norm.eps = 0.5
    tts.weights_changed()
    assert num_cached_tokens() == new < known


def test_a_copy_and_a_cast_begin_without_memory() -> None:
    t3 = build(SMALL)
    name, version = name_of(t3), t3.watch.version
    twin = copy.deepcopy(t3)
    assert twin.watch is not t3.watch and twin.watch.version == 0 and name_of(twin) == name
    t3.double()
    assert t3.watch._seen is None  # the old weights are free
    assert name_of(t3) != name and t3.watch.version == version + 1


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        t3 = build(SMALL)
    name = name_of(t3)
    assert name_of(t3) == name and all(weight.is_inference() for weight in t3.parameters())
    weight: Tensor = t3.tfmr.layers[0].self_attn.q_proj.weight
    weight.data.mul_(2.0)
    assert name_of(t3) != name


def test_a_device_that_answers_late() -> None:
    """A gather is asked for and not waited for; its answer is found by the next look."""
    t3 = build(SMALL)
    name, watch = name_of(t3), t3.watch
    assert watch._seen is not None
    watch._seen = watch._seen._replace(answer=torch.tensor([SAME], dtype=torch.uint8))
    t3.text_emb.weight.data.mul_(2.0)
    assert name_of(t3) == name  # asked
    assert watch._seen.answer is not None and int(watch._seen.answer) == OTHER  # on a CPU it is there at once
    watch._seen.answer.fill_(PENDING)
    assert not watch.has_changed() and name_of(t3) == name and int(watch._seen.answer) == PENDING  # asked once
    watch._seen.answer.fill_(OTHER)
    assert watch.has_changed() and not watch.has_changed()
    assert name_of(t3) == weights_fingerprint(t3) != name
    t3.text_emb.weight.data.div_(2.0)
    assert name_of(t3) != name  # something may have been kept under that name with other weights
