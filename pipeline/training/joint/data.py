"""Files of samples -> batches, each a function of the seed and the step alone, so that a training
that was killed goes on with the very batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chiasm.pipeline.encoders import language_of
from chiasm.pipeline.model.checkpoint import load_state
from chiasm.pipeline.model.config import DecoderConfig
from chiasm.pipeline.model.tokenizer import Tokenizer, normalise
from chiasm.pipeline.scenes.examples import Example
from chiasm.pipeline.training.pocket.data import DataSettings
from chiasm.pipeline.training.pocket.task_data import TaskBatch, TaskSettings, task_rows

# Of the ten shares of pictures that the sha256 of their bytes makes: the one that is measured on,
# and the one that chooses the mean's weight, the size of the learned part and the bias of matching.
HELD_OUT, TUNING = 0, 1
ANSWERS = 4  # of each task that a step takes of one picture, at most: it is encoded once for all


@dataclass(frozen=True)
class Batch:
    """B pictures with one caption of each and, where it has several, another one.

    image: uint8 (B, 3, S, S), or (B, E) float32 of a frozen encoder; caption, other: int64 (B, T)
    ids, or (B, E) float32; several (B,) bool: `other` is another one; same (B, B) bool: caption i
    is true of picture j as far as anybody knows: the same picture, or one with this caption too;
    other_same: of `other` in its place.
    """

    image: Tensor
    caption: Tensor
    other: Tensor
    several: Tensor
    same: Tensor
    other_same: Tensor


class Samples:
    """The samples of some files, by their numbers from 0 up."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.tokenizer: Tokenizer | None = None
        self.context = 0
        files = [load_state(path) for path in paths]
        self._files = [item for item in files if len(item[0]["counts"])]
        self._ends = np.cumsum([len(tensors["counts"]) for tensors, _ in self._files])
        # The first caption of each sample among those of its file.
        self._starts = [(t["counts"].cumsum(0) - t["counts"]).numpy() for t, _ in self._files]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read_texts(self, tokenizer: Tokenizer, context: int) -> None:
        """From now on captions are ids, at most `context` of each; not with a frozen encoder."""
        self.tokenizer, self.context = tokenizer, context

    @cached_property
    def counts(self) -> np.ndarray:
        """Captions of each sample, (N,) int64."""
        return self._whole("counts")

    @cached_property
    def picture(self) -> np.ndarray:
        """(N,) int64, equal for copies of a picture."""
        return self._whole("picture")

    @cached_property
    def fold(self) -> np.ndarray:
        """(N,) uint8: HELD_OUT, TUNING, or another number of those that are trained on."""
        return self._whole("fold")

    @property
    def trained_on(self) -> np.ndarray:
        """Numbers of the samples that are trained on."""
        return np.flatnonzero(~np.isin(self.fold, (HELD_OUT, TUNING)))

    def _whole(self, name: str) -> np.ndarray:
        return torch.cat([tensors[name] for tensors, _ in self._files]).numpy()

    def _at(self, row: int) -> tuple[int, int]:
        """The file of a sample, and its place there."""
        file = int(np.searchsorted(self._ends, row, side="right"))
        return file, row - (int(self._ends[file - 1]) if file else 0)

    def images(self, rows: np.ndarray, name: str = "image") -> Tensor:
        """Pixels uint8 (B, 3, S, S) or vectors (B, E) float32; name: `joint` for those vectors."""
        places = (self._at(int(row)) for row in rows)
        found = torch.stack([self._files[file][0][name][place] for file, place in places])
        return found.float() if found.is_floating_point() else found

    def captions(self, rows: np.ndarray, numbers: np.ndarray) -> Tensor:
        """Caption `numbers[i]` of sample `rows[i]`: ids int64 (B, T) or vectors (B, E) float32."""
        if self.tokenizer is not None:
            texts = [self.texts(row)[n] for row, n in zip(rows, numbers, strict=True)]
            return torch.from_numpy(self.tokenizer.batch(texts, self.context))
        found = []
        for row, number in zip(rows, numbers, strict=True):
            file, place = self._at(row)
            found.append(self._files[file][0]["text"][self._starts[file][place] + number])
        return torch.stack(found).float()

    def texts(self, row: int) -> list[str]:
        """The captions of a sample; not with a frozen encoder."""
        file, place = self._at(row)
        return self._files[file][1]["texts"][place]

    def examples(self, row: int) -> list[Example]:
        """What its json gives the decoder to learn."""
        file, place = self._at(row)
        return [Example(**item) for item in self._files[file][1]["examples"][place]]


def rows_of_step(rows: np.ndarray, batch: int, step: int, seed: int) -> np.ndarray:
    """`batch` of `rows`, those of a step: epoch after epoch, each in an order of its own."""
    at = np.arange(step * batch, (step + 1) * batch)
    epochs, places = np.divmod(at, len(rows))
    found = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([seed, int(epoch)]).permutation(len(rows))
        found[epochs == epoch] = rows[order[places[epochs == epoch]]]
    return found


def pair_batch(samples: Samples, rows: np.ndarray, step: int, seed: int) -> Batch:
    """The batch of these rows: captions drawn by seed and step."""
    rng = np.random.default_rng([seed, step, 1])
    counts = samples.counts[rows]
    first = rng.integers(counts)
    second = (first + 1 + rng.integers(np.maximum(counts - 1, 1))) % counts
    caption, other = samples.captions(rows, first), samples.captions(rows, second)
    names = torch.from_numpy(samples.picture[rows])
    return Batch(
        image=samples.images(rows),
        caption=caption,
        other=other,
        several=torch.from_numpy(counts > 1),
        same=_alike(names, caption),
        other_same=_alike(names, other),
    )


def _alike(pictures: Tensor, captions: Tensor) -> Tensor:
    """(B, B) bool: of one picture, or with one caption."""
    texts = captions.unique(dim=0, return_inverse=True)[1]
    return (pictures[:, None] == pictures) | (texts[:, None] == texts)


def decoder_batch(
    samples: Samples,
    rows: np.ndarray,
    tasks: Sequence[str],
    decoder: DecoderConfig,
    step: int,
    seed: int,
) -> TaskBatch:
    """What the decoder learns of these rows: a caption of each, and of each of the other tasks at
    most ANSWERS of what its json has. What is longer than the decoder's context is left out."""
    rng = np.random.default_rng([seed, step, 2])
    drawn: dict[str, list[tuple[int, Example]]] = {task: [] for task in tasks}
    for number, row in enumerate(rows):
        texts = samples.texts(row)
        text = texts[rng.integers(len(texts))]
        drawn["caption"].append((number, Example("caption", language_of(text), "", text)))
        examples = samples.examples(row)
        for at in rng.permutation(len(examples)):
            of_task = drawn[examples[at].task]
            if sum(n == number for n, _ in of_task[-ANSWERS:]) < ANSWERS:
                of_task.append((number, examples[at]))
    assert samples.tokenizer is not None
    for pairs in drawn.values():
        pairs[:] = [
            (number, example)
            for number, example in pairs
            if len(samples.tokenizer.encode(normalise(example.target))) < decoder.context
        ]
    settings = TaskSettings(
        DataSettings(context=samples.context), {}, {}, decoder.context, decoder.prefixes
    )
    return TaskBatch(
        samples.images(rows).numpy(),
        {task: task_rows(drawn[task], task, settings, samples.tokenizer) for task in tasks},
    )
