"""Code tables built from what the speech tokens mean, so that rare speech tokens learn from frequent ones.

A parametrization: rows of an embedding or output matrix are the sum of a vector for the first symbol, one for the
second and a free residual. The export stores the sum, so the shipped model knows nothing of this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from chatterbox.models.config import NUM_SPEECH_TOKENS
from tools.tiny_voice.speech_tokens import NUM_SYMBOLS


class SymbolTable(nn.Module):
    """residual (V, D) + first[symbol] + second[symbol] on the rows of speech tokens."""

    first_of: Tensor
    second_of: Tensor

    def __init__(self, rows: int, width: int, std: float) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(NUM_SYMBOLS, width) * std)
        self.second = nn.Parameter(torch.randn(NUM_SYMBOLS, width) * std)
        speech_tokens = torch.arange(NUM_SPEECH_TOKENS)
        self.register_buffer("first_of", speech_tokens % NUM_SYMBOLS, persistent=False)
        self.register_buffer("second_of", speech_tokens // NUM_SYMBOLS, persistent=False)
        self.extra_rows = rows - NUM_SPEECH_TOKENS

    def forward(self, residual: Tensor) -> Tensor:
        table = self.first[self.first_of] + self.second[self.second_of]
        return residual + nn.functional.pad(table, (0, 0, 0, self.extra_rows))


def factorize(module: nn.Embedding | nn.Linear, std: float) -> None:
    """Give ``module.weight`` (tokens, D) the symbol structure; its residual starts at zero but for the special rows."""
    rows, width = module.weight.shape
    with torch.no_grad():
        module.weight[:NUM_SPEECH_TOKENS] = 0.0
        module.weight[NUM_SPEECH_TOKENS:].normal_(std=std)
    parametrize.register_parametrization(module, "weight", SymbolTable(rows, width, std), unsafe=True)


def dense_state(module: nn.Module) -> dict[str, Tensor]:
    """State dict of ``module`` with every symbol table summed into the plain weight it stands for."""
    state = dict(module.state_dict())
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part, "weight") and isinstance(
            part.get_submodule("parametrizations.weight.0"), SymbolTable
        ):
            prefix = f"{name}." if name else ""
            state = {k: v for k, v in state.items() if not k.startswith(f"{prefix}parametrizations.")}
            assert isinstance(part.weight, Tensor)
            state[f"{prefix}weight"] = part.weight.detach()
    return state
