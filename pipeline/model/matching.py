"""Image-text matching: does this text tell of this picture? Asked of the fused tokens of a pair.

    logit = b - log sum_t e^(c_t),   c_t = w . norm(fused token t),   label = logit > 0

c_t is the conflict that token t sees: a word that the picture gives the lie to, or a patch that the
words do. One sharp conflict is enough to sink a match, as one false word makes a caption false.
Unlike two vectors, which are made before they meet, a fusion may compare word with patch. Matching
is trained on pairs and on the hardest wrong pairs of the batch, as in ALBEF (Li et al., 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chiasm.pipeline.model.fusion import Fused

USUAL_TOKENS = 64  # of a pair: what makes an untrained match undecided


@dataclass(frozen=True)
class Match:
    """logit (B,) float32, the log odds that the pair belongs together; conflict (B, T) float32,
    what each fused token has against it, -inf where there is no token.
    """

    logit: Tensor
    conflict: Tensor

    @property
    def label(self) -> Tensor:
        """(B,) bool: do they belong together?"""
        return self.logit > 0


class Matching(nn.Module):
    """Fused tokens -> `Match`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conflict = nn.Linear(width, 1, bias=False)
        self.benefit = nn.Parameter(torch.tensor(math.log(USUAL_TOKENS)))

    def forward(self, fused: Fused) -> Match:
        """tokens (B, T, D), mask (B, T) -> logits (B,), conflicts (B, T)."""
        conflict = self.conflict(self.norm(fused.tokens)).squeeze(-1).float()  # (B, T)
        conflict = conflict.masked_fill(~fused.mask, -torch.inf)
        return Match(self.benefit.float() - conflict.logsumexp(dim=1), conflict)


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
