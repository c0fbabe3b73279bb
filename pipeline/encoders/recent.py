"""What a tower made of the last call's pictures, remembered: a batch's pictures are asked for twice
in a row, for their vectors and for those of their pairs, and the tower is most of the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

MOST = 1024  # arrays of a call that are remembered; more are no batch of embeddings

Made = tuple[Tensor, Tensor]


class Recent:
    """`make`, at most `at_once` arrays at a time, but for arrays that the last call had too: the
    same objects, which must not have been written to since.

    make: n arrays -> two tensors (n, ...).
    """

    def __init__(self, make: Callable[[Sequence[np.ndarray]], Made], at_once: int) -> None:
        self._make, self._at_once = make, at_once
        # The arrays are kept too: while they live no other object has their ids.
        self._rows: dict[int, tuple[np.ndarray, Tensor, Tensor]] = {}

    def __call__(self, arrays: Sequence[np.ndarray]) -> Made:
        """B arrays, B > 0 -> (B, ...) twice, in their order."""
        wanted = {id(array): array for array in arrays}
        rows = {key: self._rows[key] for key in wanted.keys() & self._rows.keys()}
        new = [array for key, array in wanted.items() if key not in rows]
        for at in range(0, len(new), self._at_once):
            block = new[at : at + self._at_once]
            made = zip(block, *self._make(block), strict=True)
            rows |= {id(array): (array, first, second) for array, first, second in made}
        self._rows = rows if len(rows) <= MOST else {}
        found = [rows[id(array)] for array in arrays]
        return torch.stack([each[1] for each in found]), torch.stack([each[2] for each in found])
