"""Code tables built from what speech tokens mean: small in the file, and rare speech tokens learn from frequent ones.

A parametrization: a row of an embedding or output matrix is a vector for the token's first symbol, one for its second,
and a mix of the products of what the two symbols have in `RANK` channels, so that a pair can be more than its halves.
Only the special rows behind the speech tokens are free. The export stores the parts
(`chatterbox.checkpoints.code_tables`), and who loads them gets plain matrices: the model knows nothing of this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from chatterbox.checkpoints.code_tables import PARTS, code_table
from chatterbox.models.config import NUM_SPEECH_TOKENS
from tools.tiny_voice.speech_tokens import NUM_SYMBOLS

RANK = 128
_FIT_RATE = 0.02


class SymbolTable(nn.Module):
    """The rows of speech tokens, and behind them the special rows that it is given."""

    def __init__(self, width: int, std: float, rank: int = RANK) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(NUM_SYMBOLS, width) * std)
        self.second = nn.Parameter(torch.randn(NUM_SYMBOLS, width) * std)
        self.left = nn.Parameter(torch.randn(NUM_SYMBOLS, rank))
        self.right = nn.Parameter(torch.randn(NUM_SYMBOLS, rank))
        self.mix = nn.Parameter(torch.zeros(rank, width))

    def forward(self, special: Tensor) -> Tensor:
        return code_table(self.first, self.second, self.left, self.right, self.mix, special)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight[NUM_SPEECH_TOKENS:].clone()


def factorize(module: nn.Embedding | nn.Linear, std: float) -> None:
    """Give ``module.weight`` (tokens, D) the symbol structure with deviations of ``std``, in its special rows too."""
    with torch.no_grad():
        module.weight[NUM_SPEECH_TOKENS:].normal_(std=std)
    parametrize.register_parametrization(module, "weight", SymbolTable(module.weight.shape[1], std), unsafe=True)


def fit(table: SymbolTable, weight: Tensor, steps: int = 1000) -> float:
    """Set ``table`` to what comes nearest to the dense ``weight`` (tokens, D); the share of its variance it misses."""
    wanted = weight[:NUM_SPEECH_TOKENS].detach().float()
    none = wanted[:0]
    with torch.no_grad():
        grid = wanted.view(NUM_SYMBOLS, NUM_SYMBOLS, -1)  # second symbol, first symbol
        mean = grid.mean((0, 1))
        table.first.copy_(grid.mean(0) - mean / 2)
        table.second.copy_(grid.mean(1) - mean / 2)
        table.mix.normal_(std=float((wanted - table(none)).std()) / table.mix.shape[0] ** 0.5)
    optimizer = torch.optim.Adam(table.parameters(), _FIT_RATE)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = _FIT_RATE * (1 - step / steps)
            missed = (table(none) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
            optimizer.zero_grad()
            missed.backward()
            optimizer.step()
    return float(missed.detach())


def compact_state(module: nn.Module) -> dict[str, Tensor]:
    """State dict of ``module`` with the parts of every symbol table under the names that are stored."""
    state = dict(module.state_dict())
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part, "weight") and isinstance(
            part.get_submodule("parametrizations.weight.0"), SymbolTable
        ):
            prefix = f"{name}." if name else ""
            inside = f"{prefix}parametrizations.weight."
            for stored in PARTS:
                source = f"{inside}original" if stored == "special" else f"{inside}0.{stored}"
                state[f"{prefix}code_table.{stored}"] = state.pop(source)
    return state
