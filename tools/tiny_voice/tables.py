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
_RIDGE, _TINY = 1e-3, 1e-12


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


@torch.no_grad()
def fit(table: SymbolTable, weight: Tensor, sweeps: int = 20) -> float:
    """Set ``table`` to what comes nearest to the dense ``weight`` (tokens, D); the share of its variance it misses.

    By alternating least squares: of ``left``, ``right`` and ``mix`` one at a time is the best for the other two.
    """
    grid = weight[:NUM_SPEECH_TOKENS].double().view(NUM_SYMBOLS, NUM_SYMBOLS, -1)  # second symbol, first symbol
    mean = grid.mean((0, 1))
    first, second = grid.mean(0) - mean / 2, grid.mean(1) - mean / 2
    pairs = grid - first - second[:, None]
    left, right = table.left.double(), table.right.double()
    mix = table.mix.double()
    for _ in range(sweeps):
        mix = _solve((left.T @ left) * (right.T @ right), torch.einsum("jid,ir,jr->rd", pairs, left, right))
        mix = mix / mix.norm(dim=1, keepdim=True).clamp_min(_TINY)
        products = mix @ mix.T
        right = _solve((left.T @ left) * products, torch.einsum("jid,ir,rd->rj", pairs, left, mix)).T
        left = _solve((right.T @ right) * products, torch.einsum("jid,jr,rd->ri", pairs, right, mix)).T
    sizes = [part.norm(dim=dim).clamp_min(_TINY) for part, dim in ((left, 0), (right, 0), (mix, 1))]
    share = (sizes[0] * sizes[1] * sizes[2]) ** (1 / 3)  # the same for all three: half precision loses least
    found = (first, second, left * (share / sizes[0]), right * (share / sizes[1]), mix * (share / sizes[2])[:, None])
    for part, value in zip((table.first, table.second, table.left, table.right, table.mix), found, strict=True):
        part.copy_(value)
    missed = table(weight[:0].float()).view_as(grid) - grid
    return float(missed.square().sum() / (grid - mean).square().sum())


def _solve(gram: Tensor, target: Tensor) -> Tensor:
    """Least squares by normal equations, with a ridge: more channels than the table needs are no harm."""
    ridge = _RIDGE * gram.diagonal().mean().clamp_min(_TINY) * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, target)


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
