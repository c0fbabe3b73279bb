"""Caption expansion: a caption's vector moves towards the predicted other captions of its picture,
as documents and queries are expanded in retrieval (Rocchio, 1971); solved in closed form.

    e(s, b) = normalise( s + 0.5 n(k(s)) + 0.3 n(W' b) )          n(y) = y / |y|

s is a caption's vector, b its bag of tokens weighted by idf, log 1/q_w, as a unit vector. k is
kernel ridge on landmark captions and W linear ridge; both predict the mean vector of the other
captions of the picture, less the mean over all. Two captions that describe a picture in other words
predict the same captions and become similar.

Heads are trained on expanded captions, and ridge overfits the captions that it was solved on. So
training captions are divided into FOLDS by the sha256 of their picture, and each is expanded by
weights solved without its fold (cross-fitting: Chernozhukov et al., Double Machine Learning, 2018).
Later captions are expanded by weights solved on all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SHARPNESS = 2.0  # of the kernel
KERNEL_WEIGHT, WORD_WEIGHT = 0.5, 0.3


class Expansion(nn.Module):
    """Pooled (B, D) and bags of words (B, V) -> (B, D) unit rows. Without landmarks captions are
    not expanded."""

    def __init__(self, landmarks: int, width: int, words: int) -> None:
        super().__init__()
        rows = words if landmarks else 0
        self.landmarks = nn.Parameter(torch.zeros(landmarks, width), requires_grad=False)
        self.kernel_weights = nn.Parameter(torch.zeros(landmarks, width), requires_grad=False)
        self.idf = nn.Parameter(torch.zeros(rows), requires_grad=False)
        self.word_weights = nn.Parameter(torch.zeros(rows, width), requires_grad=False)

    def similarity(self, own: Tensor) -> Tensor:
        """Unit rows (B, D) -> (B, M) in (0, 1]."""
        return torch.exp(SHARPNESS * (own @ self.landmarks.T - 1))

    def idf_weighted(self, bag: Tensor) -> Tensor:
        """Bag of words (B, V) of 0 and 1 -> (B, V) unit rows, weighted by idf."""
        return functional.normalize(bag * self.idf, dim=-1)

    def forward(self, pooled: Tensor, bag: Tensor) -> Tensor:
        own = functional.normalize(pooled, dim=-1)
        if not len(self.landmarks):
            return own
        by_kernel = self.similarity(own) @ self.kernel_weights
        return expand(own, by_kernel, self.idf_weighted(bag) @ self.word_weights)


def expand(own: Tensor, by_kernel: Tensor, by_words: Tensor) -> Tensor:
    """e of the formula above: s, k(s) and W' b, (B, D) each -> (B, D) unit rows."""
    added = KERNEL_WEIGHT * functional.normalize(by_kernel, dim=-1)
    added = added + WORD_WEIGHT * functional.normalize(by_words, dim=-1)
    return functional.normalize(own + added, dim=-1)
