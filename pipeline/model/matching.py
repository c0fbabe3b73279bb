"""Image-text matching: does this text tell of this picture? Asked of the fused tokens of a pair.

    logit = w . pool(fused tokens),   label = logit > 0,   p = sigmoid(logit)

Unlike two vectors, which are made before they meet, it may compare word with patch. It is trained
on pairs and on the hardest wrong pairs of the batch, as in ALBEF (Li et al., 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.model.fusion import Fused
from pipeline.model.pool import Pool


@dataclass(frozen=True)
class Match:
    """logit (B,) float32, the log odds that the pair belongs together; label (B,) bool."""

    logit: Tensor

    @property
    def label(self) -> Tensor:
        return self.logit > 0


class Matching(nn.Module):
    """Fused tokens -> `Match`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.pool = Pool(width, heads)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 1)

    def forward(self, fused: Fused) -> Match:
        """tokens (B, T, D), mask (B, T) -> logits (B,)."""
        return self.decide(self.summary(fused))

    def summary(self, fused: Fused) -> Tensor:
        """What there is to decide by: (B, D)."""
        return self.norm(self.pool(fused.tokens, fused.mask[:, None, None, :]))

    def decide(self, summary: Tensor) -> Match:
        """(B, D) -> logits (B,)."""
        return Match(self.out(summary).squeeze(-1).float())


def hard_negatives(
    scores: Tensor, true: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """For each row a wrong column, drawn with the probability softmax(scores) over the wrong ones:
    the likelier the more it looks right (Li et al., ALBEF, 2021).

    scores (B, C) logits; true (B, C) bool, what is right for the row. -> columns (B,) int64, and
    which rows have a wrong column at all, (B,) bool; for the others the column says nothing.
    """
    wrong = ~true
    some = wrong.any(dim=1)
    chances = scores.float().masked_fill(~wrong & some[:, None], -torch.inf).softmax(dim=1)
    return torch.multinomial(chances.cpu(), 1, generator=generator)[:, 0].to(scores.device), some
