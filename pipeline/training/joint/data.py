"""Files of samples -> batches, each a function of the seed and the step alone, so that a training
that was killed goes on with the very batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.pipeline.encoders import language_of
from chiasm.pipeline.model.checkpoint import load_state
from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.tokenizer import Tokenizer, normalise
from chiasm.pipeline.scenes.examples import Example
from chiasm.pipeline.training.joint.samples import from_json_tensor
from chiasm.pipeline.training.pocket.data import DataSettings
from chiasm.pipeline.training.pocket.task_data import (
    TaskBatch,
    TaskRows,
    TaskSettings,
    task_rows,
)

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
        files = [load_state(path)[0] for path in paths]
        self._files = [tensors for tensors in files if len(tensors["counts"])]
        self._ends = np.cumsum([len(tensors["counts"]) for tensors in self._files])
        # The first caption of each sample among those of its file.
        self._starts = [(t["counts"].cumsum(0) - t["counts"]).numpy() for t in self._files]

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
        return torch.cat([tensors[name] for tensors in self._files]).numpy()

    @cached_property
    def _texts(self) -> list[list[list[str]]]:
        """By file and sample."""
        return [from_json_tensor(tensors["texts"]) for tensors in self._files]

    @cached_property
    def _examples(self) -> list[list[list[dict[str, Any]]]]:
        """By file and sample: the fields of `Example` that are not empty."""
        return [from_json_tensor(tensors["examples"]) for tensors in self._files]

    def _at(self, row: int) -> tuple[int, int]:
        """The file of a sample, and its place there."""
        file = int(np.searchsorted(self._ends, row, side="right"))
        return file, row - (int(self._ends[file - 1]) if file else 0)

    def images(self, rows: np.ndarray, name: str = "image") -> Tensor:
        """Pixels uint8 (B, 3, S, S) or vectors (B, E) float32; name: `joint` for those vectors."""
        places = (self._at(int(row)) for row in rows)
        found = torch.stack([self._files[file][name][place] for file, place in places])
        return found.float() if found.is_floating_point() else found

    def captions(self, rows: np.ndarray, numbers: np.ndarray) -> Tensor:
        """Caption `numbers[i]` of sample `rows[i]`: ids int64 (B, T) or vectors (B, E) float32."""
        if self.tokenizer is not None:
            texts = [self.texts(row)[n] for row, n in zip(rows, numbers, strict=True)]
            return torch.from_numpy(self.tokenizer.batch(texts, self.context))
        found = []
        for row, number in zip(rows, numbers, strict=True):
            file, place = self._at(row)
            found.append(self._files[file]["text"][self._starts[file][place] + number])
        return torch.stack(found).float()

    def caption_numbers(self, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Of caption `numbers[i]` of sample `rows[i]`, (B,) int64: equal for equal captions."""
        found = np.empty(len(rows), dtype=np.int64)
        for place, (row, number) in enumerate(zip(rows, numbers, strict=True)):
            file, at = self._at(int(row))
            found[place] = self._files[file]["caption"][self._starts[file][at] + number]
        return found

    def texts(self, row: int) -> list[str]:
        """The captions of a sample; not with a frozen encoder."""
        file, place = self._at(row)
        return self._texts[file][place]

    def examples(self, row: int) -> list[Example]:
        """What its json gives the decoder to learn."""
        file, place = self._at(row)
        return [Example(**item) for item in self._examples[file][place]]


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
    names = samples.picture[rows]
    same, other_same = (
        torch.from_numpy(equal_to(names) | equal_to(samples.caption_numbers(rows, which)))
        for which in (first, second)
    )
    return Batch(
        image=samples.images(rows),
        caption=samples.captions(rows, first),
        other=samples.captions(rows, second),
        several=torch.from_numpy(counts > 1),
        same=same,
        other_same=other_same,
    )


def equal_to(numbers: np.ndarray) -> np.ndarray:
    """(B,) -> (B, B) bool, which two are equal."""
    return numbers[:, None] == numbers


def decoder_batch(
    samples: Samples,
    rows: np.ndarray,
    tasks: Sequence[str],
    config: ModelConfig,
    step: int,
    seed: int,
) -> TaskBatch:
    """What the decoder learns of these rows: a caption of each, and of each of the other tasks at
    most ANSWERS of what its json has. What is longer than the decoder's context is left out."""
    rng = np.random.default_rng([seed, step, 2])
    drawn: dict[str, list[tuple[int, Example]]] = {task: [] for task in tasks}
    for number, row in enumerate(rows):
        captions = caption_examples(samples, row)
        drawn["caption"].append((number, captions[rng.integers(len(captions))]))
        examples = samples.examples(row)
        for at in rng.permutation(len(examples)):
            of_task = drawn[examples[at].task]
            if sum(n == number for n, _ in of_task[-ANSWERS:]) < ANSWERS:
                of_task.append((number, examples[at]))
    for pairs in drawn.values():
        pairs[:] = [pair for pair in pairs if fits(samples, pair[1], config)]
    return TaskBatch(
        samples.images(rows).numpy(),
        {task: decoder_rows(samples, drawn[task], task, config) for task in tasks},
    )


def decoded_rows(samples: Samples, rows: np.ndarray) -> np.ndarray:
    """Those of some samples that the decoder learns from: with something to learn beside captions;
    all where none has."""
    having = rows[[bool(samples.examples(row)) for row in rows]]
    return having if len(having) else rows


def examples_of(samples: Samples, row: int, task: str, config: ModelConfig) -> list[Example]:
    """What the decoder can be asked for of one task about a sample: its first caption, or the first
    ANSWERS of json; those that it has no prefix for, or that are too long for it, are left out."""
    assert config.decoder is not None
    examples = caption_examples(samples, row)[:1] if task == "caption" else samples.examples(row)
    return [
        example
        for example in examples
        if example.task == task
        and f"{task}:{example.language}" in config.decoder.prefixes
        and fits(samples, example, config)
    ][:ANSWERS]


def caption_examples(samples: Samples, row: int) -> list[Example]:
    """The captions of a sample as examples."""
    return [Example("caption", language_of(text), "", text) for text in samples.texts(row)]


def fits(samples: Samples, example: Example, config: ModelConfig) -> bool:
    """Whether a target and its end are no longer than the decoder's context."""
    assert samples.tokenizer is not None
    assert config.decoder is not None
    return len(samples.tokenizer.encode(normalise(example.target))) < config.decoder.context


def count_too_long(samples: Samples, rows: np.ndarray, config: ModelConfig) -> int:
    """How many captions and entries of json of these samples the decoder cannot learn: a target
    that is cut has no end."""
    return sum(
        not fits(samples, example, config)
        for row in rows
        for example in (*caption_examples(samples, row), *samples.examples(row))
    )


def decoder_rows(
    samples: Samples, drawn: Sequence[tuple[int, Example]], task: str, config: ModelConfig
) -> TaskRows:
    """Examples of one task with the numbers of their pictures -> ids."""
    assert samples.tokenizer is not None
    assert config.decoder is not None
    decoder, data = config.decoder, DataSettings(context=samples.context)
    settings = TaskSettings(data, {}, {}, decoder.context, decoder.prefixes)
    return task_rows(drawn, task, settings, samples.tokenizer)
