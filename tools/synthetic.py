"""Deterministic stand-in weights: every value follows from a seed, a state-dict key and a shape.

Owns: the number stream, and the rule that turns it into weights of a sensible size for each kind of tensor. The same
rule made the reference numbers under ``tests/data/goldens``, so it must not change by a bit; it uses integer and
float32 arithmetic only, no random distribution of any library.
Does not know: the models. It sees keys as they stand in a published checkpoint file, and shapes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch

SEED = 20250718

_DERIVED = re.compile(
    r"(^|\.)(_mel_filters|window|stft_window|trim_fade|inv_freq|original_inv_freq|pe|freqs_cis|masked_bias)$"
)
_STORED_TRANSPOSED = re.compile(r"\.(c_attn|c_fc|c_proj)\.weight$")  # GPT-2 matrices are (in, out)

# (pattern, offset, scale) of vectors that are neither ordinary biases nor ordinary norm weights.
_VECTORS = (
    (r"mel2wav\.conv_post\.bias$", -0.8, 0.8),  # log magnitudes mostly below 0: little clamping
    (r"mel2wav\.f0_predictor\.classifier\.bias$", 60.0, 0.0),  # Hz
    (r"mel2wav\.m_source\.l_linear\.bias$", 0.0, 0.05),
    (r"speech_head\.bias$", 0.0, 0.5),
    (r"flow\.encoder\.(up_)?embed\.out\.1\.weight$", 0.1, 0.02),  # multiplied by sqrt(512) afterwards
    (r"(^|\.)bias[^.]*$", 0.0, 0.02),
    (r"", 1.0, 0.1),  # norm weights, Snake alpha
)

# amplitude -> tables that are looked up, not multiplied with.
_TABLES = {
    0.5: r"(^|\.)(text_emb|speech_emb|embed_tokens|wte)\.weight$",
    0.25: r"(^|\.)((text_pos_emb|speech_pos_emb)\.emb|wpe)\.weight$",
    1.0: r"(^|\.)flow\.input_embedding\.weight$",
    0.3: r"(^|\.)cond_enc\.perceiver\.pre_attention_query$",
}

# gain = rms(output) / rms(input) -> patterns; every other linear map has gain 1. The patterns exclude each other.
_GAINS = {
    0.4: (r"mel2wav\.(source_)?resblocks\.\d+\.convs2\.\d+\.parametrizations\.weight\.original0$",),
    0.5: (
        r"^cond_enc\.emotion_adv_fc\.weight$",
        r"^lstm\.weight_ih_l0$",
        r"flow\.decoder\.estimator\..*\.(to_out\.0|ff\.net\.2)\.weight$",
        r"mel2wav\.conv_post\.parametrizations\.weight\.original0$",
    ),
    0.7: (
        r"^tfmr\.layers\.\d+\.(self_attn\.o_proj|mlp\.down_proj)\.weight$",
        r"^tfmr\.h\.\d+\.(attn|mlp)\.c_proj\.weight$",
        r"tokenizer\.encoder\.blocks\.\d+\.attn\.fsmn_block\.weight$",
        r"tokenizer\.quantizer\._codebook\.project_down\.weight$",
    ),
    1.1: (r"speaker_encoder\.head\..*(conv[12]|shortcut\.0)\.weight$",),
    1.4: (
        r"\.(q_proj|k_proj|to_q|to_k|linear_q|linear_k|linear_pos|query|key)\.weight$",
        r"^tfmr\.h\.\d+\.attn\.c_attn\.weight$",
        r"speaker_encoder\.xvector\.(tdnn\.linear|block\d\.tdnnd\d+\.linear1)\.weight$",
        r"speaker_encoder\..*cam_layer\.linear[12]\.weight$",
    ),
    1.5: (
        r"^lstm\.weight_hh_l\d+$",
        r"flow\.encoder\.(up_)?encoders\.\d+\.(self_attn\.linear_out|feed_forward\.w_2)\.weight$",
        r"mel2wav\.(ups\.[12]|f0_predictor\.condnet\.\d+)\.parametrizations\.weight\.original0$",
    ),
    1.6: (r"speaker_encoder\.xvector\.transit\d\.linear\.weight$",),
    1.7: (r"flow\.decoder\.estimator\.time_mlp\.linear_[12]\.weight$",),
    1.8: (r"speaker_encoder\..*cam_layer\.linear_local\.weight$",),
    2.0: (
        r"^(speech_head|text_head|proj)\.weight$",
        r"mel2wav\.ups\.0\.parametrizations\.weight\.original0$",
    ),
    3.0: (
        r"^lstm\.weight_ih_l[12]$",
        r"speaker_encoder\.xvector\.dense\.linear\.weight$",
        r"mel2wav\.m_source\.l_linear\.weight$",
    ),
    8.0: (r"^cond_enc\.spkr_enc\.weight$",),
    10.0: (r"flow\.spk_embed_affine_layer\.weight$",),
    60.0: (r"mel2wav\.f0_predictor\.classifier\.weight$",),  # Hz
}


def is_derived(key: str) -> bool:
    """Whether ``key`` names a buffer that its module computes itself (windows, filter banks, position tables)."""
    return _DERIVED.search(key) is not None


def fill_module(module: torch.nn.Module, prefix: str = "", seed: int = SEED) -> torch.nn.Module:
    """Overwrite the weights of ``module`` in place, one tensor at a time, and return it.

    ``prefix`` is the module's place in the checkpoint file (``"flow."``), so that a part gets the values it has in the
    whole. Derived buffers and integer buffers other than batch counters keep their values.
    """
    with torch.no_grad():
        for key, target in module.state_dict(keep_vars=True).items():  # some of a plain one are copies
            value = synthetic_tensor(prefix + key, target.shape, target.dtype, seed)
            if value is not None:
                target.copy_(value)
    return module


def fill_tensors(
    layout: Mapping[str, tuple[Sequence[int], torch.dtype]], prefix: str = "", seed: int = SEED
) -> dict[str, torch.Tensor]:
    """Tensors for a checkpoint layout ``{key: (shape, dtype)}``, without the keys that the rule leaves out."""
    values = {key: synthetic_tensor(prefix + key, shape, dtype, seed) for key, (shape, dtype) in layout.items()}
    return {key: value for key, value in values.items() if value is not None}


def synthetic_tensor(
    key: str, shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = SEED
) -> torch.Tensor | None:
    """The tensor of one full key, or None for what the rule leaves out (derived and integer buffers)."""
    shape = tuple(int(n) for n in shape)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if is_derived(key) or not dtype.is_floating_point:
        return None
    offset, scale = _offset_and_scale(key, shape)
    values = uniform(key, math.prod(shape), seed)
    values *= np.float32(scale)
    if offset:
        values += np.float32(offset)
    return torch.from_numpy(values).reshape(shape).to(dtype)


def uniform(key: str, count: int, seed: int = SEED) -> np.ndarray:
    """The first ``count`` numbers of a key's stream: float32 in [-1, 1), multiples of 2**-23."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = np.random.Philox(counter=0, key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64))
    halves = generator.random_raw((count + 1) // 2).astype("<u8", copy=False).view("<u4")[:count]
    values = (halves >> np.uint32(8)).astype(np.float32)
    values *= np.float32(2.0**-23)
    values -= np.float32(1.0)
    return values


def _offset_and_scale(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Values are ``offset + scale * uniform``; sqrt(3 / fan_in) makes a linear map of gain 1."""
    fan_in = shape[0] if len(shape) == 2 and _STORED_TRANSPOSED.search(key) else math.prod(shape[1:])
    match key.rsplit(".", 1)[-1]:
        case "running_mean":
            return 0.0, 0.05
        case "running_var":
            return 1.0, 0.2
        case "original0":  # weight norm: length
            return _gain(key), 0.1 * _gain(key)
        case "original1":  # weight norm: direction
            return 0.0, math.sqrt(3.0 / fan_in)
        case "similarity_weight":
            return 10.0, 0.0
        case "similarity_bias":
            return -5.0, 0.0
    if len(shape) <= 1:
        return next((offset, scale) for pattern, offset, scale in _VECTORS if re.search(pattern, key))
    for amplitude, pattern in _TABLES.items():
        if re.search(pattern, key):
            return 0.0, amplitude
    return 0.0, _gain(key) * math.sqrt(3.0 / fan_in)


def _gain(key: str) -> float:
    return next((gain for gain, patterns in _GAINS.items() if any(re.search(p, key) for p in patterns)), 1.0)
