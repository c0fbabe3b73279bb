"""Two-tower models of formats 6 and 7: read for good, never trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chiasm.pipeline.two_tower.network import ImageEvidence, TwoTowerConfig, TwoTowerNetwork


class FormatSevenNetwork(TwoTowerNetwork):
    """p_w is what the network of words predicts, alone, and every word has the same weight.
    `match_weights`: of bias, similarity, words present, words absent."""

    format = "chiasm two-tower model 7"

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__(config)
        del self.kernel.word_weights
        self.match_weights = nn.Parameter(torch.zeros(4), requires_grad=False)

    def word_shares(self, x: Tensor) -> Tensor:
        """As of the base class."""
        return self.word_classifier(self.kernel.standardised(x)).sigmoid()

    def match_features(self, text: Tensor, bag: Tensor, image: ImageEvidence) -> Tensor:
        """As of the base class, (T, B, 4)."""
        similarity = text @ image.vectors.T
        present, absent = bag @ image.present.T, (1 - bag) @ image.absent.T
        return torch.stack([torch.ones_like(similarity), similarity, present, absent], dim=-1)


class FormatSixNetwork(TwoTowerNetwork):
    """The network of today; its mean may have another weight than the even one."""

    format = "chiasm two-tower model 6"
