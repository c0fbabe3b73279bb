"""Image-text matching: does this text describe this picture? Asked of the fused tokens of a pair.

    logit = b - log sum_t e^(c_t),   c_t = w . norm(fused token t),   label = logit > 0

c_t is the conflict of token t: high for a word that the picture contradicts, or for a patch that
the text contradicts. One large conflict makes the logit negative, as one false word makes a caption
false. Unlike two vectors made independently, fused tokens compare words with patches. Matching is
trained on pairs and on hard negatives of the batch, as in ALBEF (Li et al., 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chiasm.pipeline.model.fusion import Fused

TYPICAL_TOKENS = 64  # of a pair: with this bias the logit of an untrained match is near 0


@dataclass(frozen=True)
class Match:
    """logit (B,) float32, the log odds that the pair matches, 0 in a row without a token; conflict
    (B, T) float32, that of each fused token, -inf where there is no token.
    """

    logit: Tensor
    conflict: Tensor

    @property
    def label(self) -> Tensor:
        """(B,) bool: does the pair match?"""
        return self.logit > 0


class Matching(nn.Module):
    """Fused tokens -> `Match`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conflict = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.tensor(math.log(TYPICAL_TOKENS)))

    def forward(self, fused: Fused) -> Match:
        """tokens (B, T, D), mask (B, T) -> logits (B,), conflicts (B, T)."""
        conflict = self.conflict(self.norm(fused.tokens)).squeeze(-1).float()  # (B, T)
        # The lowest number, not -inf: of a row of -inf the gradient is NaN.
        summed = conflict.masked_fill(~fused.mask, torch.finfo(conflict.dtype).min).logsumexp(dim=1)
        logit = (self.bias.float() - summed).masked_fill(~fused.mask.any(dim=1), 0)
        return Match(logit, conflict.masked_fill(~fused.mask, -torch.inf))


def hard_negatives(
    scores: Tensor, true: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """For each row a wrong column, drawn with the probability softmax(scores) over the wrong ones
    (Li et al., ALBEF, 2021).

    scores (B, C) logits; true (B, C) bool, which columns are right for the row. -> columns (B,)
    int64, and which rows have a wrong column, (B,) bool; in other rows the column is arbitrary.
    """
    wrong = ~true
    some = wrong.any(dim=1)
    chances = scores.float().masked_fill(~wrong & some[:, None], -torch.inf).softmax(dim=1)
    return torch.multinomial(chances.cpu(), 1, generator=generator)[:, 0].to(scores.device), some
