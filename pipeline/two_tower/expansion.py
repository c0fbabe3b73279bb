"""What else is said of pictures with such a caption: expansion, as retrieval knows it of documents
and queries (Rocchio, 1971), solved in closed form.

    e(s, b) = normalise( s + 0.5 n(k(s)) + 0.3 n(W' b) )          n(y) = y / |y|

s is a caption's vector, b its tokens weighed by their rarity, log 1/q_w, as a unit vector. k is
kernel ridge on landmark captions and W linear ridge, both from a caption to the mean vector of the
other captions of its picture, less what is the mean for all. Captions of one picture agree on what
matters, so what one can foretell of the others is what is worth saying, and two captions that say
it in other words become alike.

Heads learn from expanded captions, and ridge knows the captions that it was solved with too well.
So learning captions are cut into PARTS by their sample's name, and each is expanded by what was
solved without its part (cross-fitting: Chernozhukov et al., Double Machine Learning, 2018). What
comes later is expanded by what was solved with all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SHARPNESS = 2.0  # of the kernel
FROM_MEANING, FROM_WORDS = 0.5, 0.3


class Expansion(nn.Module):
    """(B, D) and the tokens held (B, V) -> (B, D) unit rows. Without landmarks captions stay as
    they are."""

    def __init__(self, landmarks: int, width: int, words: int) -> None:
        super().__init__()
        rows = words if landmarks else 0
        self.landmarks = nn.Parameter(torch.zeros(landmarks, width), requires_grad=False)
        self.meaning = nn.Parameter(torch.zeros(landmarks, width), requires_grad=False)
        self.rarity = nn.Parameter(torch.zeros(rows), requires_grad=False)
        self.words = nn.Parameter(torch.zeros(rows, width), requires_grad=False)

    def likeness(self, own: Tensor) -> Tensor:
        """Unit rows (B, D) -> (B, M) in (0, 1]."""
        return torch.exp(SHARPNESS * (own @ self.landmarks.T - 1))

    def told(self, held: Tensor) -> Tensor:
        """(B, V) of 0 and 1 -> unit rows, weighed by rarity."""
        return functional.normalize(held * self.rarity, dim=-1)

    def forward(self, pooled: Tensor, held: Tensor) -> Tensor:
        own = functional.normalize(pooled, dim=-1)
        if not len(self.landmarks):
            return own
        return joined(own, self.likeness(own) @ self.meaning, self.told(held) @ self.words)


def joined(own: Tensor, meaning: Tensor, words: Tensor) -> Tensor:
    """e of the formula above, of (B, D) each."""
    more = FROM_MEANING * functional.normalize(meaning, dim=-1)
    more = more + FROM_WORDS * functional.normalize(words, dim=-1)
    return functional.normalize(own + more, dim=-1)
