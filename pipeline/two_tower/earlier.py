"""Two-tower models of format 6: p_w is the mean of the predictions of kernel ridge and of the
network of words, and a word weighs by the band of its prior. Read for good, never trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chiasm.pipeline.two_tower.network import (
    CLAMP,
    ImageEvidence,
    TwoTowerConfig,
    TwoTowerNetwork,
)

BANDS = (0.004, 0.02, 0.2)  # upper bounds of the bands of q_w


class FormatSixNetwork(TwoTowerNetwork):
    """`match_weights`: of bias, similarity, words present in each band, words absent."""

    format = "chiasm two-tower model 6"

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__(config)
        shares = torch.zeros(config.landmarks, config.words)
        self.kernel.word_shares = nn.Parameter(shares, requires_grad=False)
        self.match_weights = nn.Parameter(torch.zeros(4 + len(BANDS)), requires_grad=False)

    def image_evidence(self, pooled: Tensor) -> ImageEvidence:
        x = self.sqrt_features(pooled)
        by_kernel = self.word_prior + self.kernel(x) @ self.kernel.word_shares
        by_network = self.word_classifier(self.kernel.standardised(x)).sigmoid()
        return self.evidence(pooled, (by_kernel.clamp(CLAMP, 1 - CLAMP) + by_network) / 2)

    def match_features(self, text: Tensor, bag: Tensor, image: ImageEvidence) -> Tensor:
        """As of the base class, (T, B, 7)."""
        band = torch.bucketize(self.word_prior, self.word_prior.new_tensor(BANDS))
        similarity = text @ image.vectors.T
        words = [(bag * (band == k)) @ image.present.T for k in range(len(BANDS) + 1)]
        absent = (1 - bag) @ image.absent.T
        return torch.stack([torch.ones_like(similarity), similarity, *words, absent], dim=-1)
