"""Two-tower models of formats 6 and 7: read for good, never trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chiasm.pipeline.two_tower.network import ImageEvidence, TwoTowerConfig, TwoTowerNetwork

BANDS = (0.004, 0.02, 0.2)  # upper bounds of the bands of q_w


class FormatSevenNetwork(TwoTowerNetwork):
    """p_w is what the network of words predicts, alone."""

    format = "chiasm two-tower model 7"

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__(config)
        del self.kernel.word_weights

    def word_shares(self, x: Tensor) -> Tensor:
        """As of the base class."""
        return self.word_classifier(self.kernel.standardised(x)).sigmoid()


class FormatSixNetwork(TwoTowerNetwork):
    """A word weighs by the band of its prior. `match_weights`: of bias, similarity, words present
    in each band, words absent."""

    format = "chiasm two-tower model 6"

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__(config)
        self.match_weights = nn.Parameter(torch.zeros(4 + len(BANDS)), requires_grad=False)

    def match_features(self, text: Tensor, bag: Tensor, image: ImageEvidence) -> Tensor:
        """As of the base class, (T, B, 7)."""
        band = torch.bucketize(self.word_prior, self.word_prior.new_tensor(BANDS))
        similarity = text @ image.vectors.T
        words = [(bag * (band == k)) @ image.present.T for k in range(len(BANDS) + 1)]
        absent = (1 - bag) @ image.absent.T
        return torch.stack([torch.ones_like(similarity), similarity, *words, absent], dim=-1)
