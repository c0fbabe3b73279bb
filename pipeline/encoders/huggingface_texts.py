"""Texts -> the tokens that a model of transformers was trained to see, and how many are cut off.

Padding is the model's: to the longest of the batch under a mask, or always to full length where
the model reads its vector off the last position, padding or not (SigLIP).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from chiasm.pipeline.encoders.protocols import Array
from chiasm.pipeline.encoders.words import Span, align, word_spans
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import mend_model
from chiasm.pipeline.pretrained.hub import ModelFolder, translating_load_errors

TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
# Set explicitly, because transformers asks at the terminal where it is left open.
OURS_ALONE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True)
class Tokens:
    """Texts -> token ids. length: of a text, special tokens counted; what lies past it is cut."""

    tokenizer: Any
    padding: str
    length: int
    lower: bool = False

    def __call__(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """B texts -> input_ids (B, T) int64, and attention_mask where the tokenizer makes one."""
        return self.read(texts)[0]

    def read(self, texts: Sequence[str]) -> tuple[dict[str, torch.Tensor], Array]:
        """As above, and how many tokens of each text are cut off, (B,) int64."""
        clean = [self._normal(text) for text in texts]
        made = self.tokenizer(
            clean,
            padding=self.padding,
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        names = [name for name in ("input_ids", "attention_mask") if name in made]
        return {name: made[name] for name in names}, self._cut(clean, made)

    def _cut(self, texts: Sequence[str], made: Any) -> Array:
        if self.tokenizer.is_fast:  # it keeps what it cuts, with special tokens around each piece
            counts = [
                sum(piece.special_tokens_mask.count(0) for piece in row.overflowing)
                for row in made.encodings
            ]
            return np.array(counts, np.int64)
        cut = np.zeros(len(texts), np.int64)
        ids = made["input_ids"]
        if ids.shape[1] < self.length:
            return cut
        # The last token of a text may be the padding token itself: SigLIP ends and pads by one.
        full = ids[:, -2:-1].ne(self.tokenizer.pad_token_id).any(1)
        for row in full.nonzero().flatten().tolist():
            whole = self.tokenizer(texts[row], verbose=False)["input_ids"]
            cut[row] = max(0, len(whole) - self.length)
        return cut

    def _normal(self, text: str) -> str:
        # Command lines and sloppy json carry lone surrogates, which no tokenizer takes.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return clean.lower() if self.lower else clean

    def places(self, texts: Sequence[str], *, cut: bool = True) -> list[list[tuple[int, int, int]]]:
        """Of each text's tokens without special ones: first and last character, and the place in
        the row. cut: only those that the model reads."""
        return [
            [(*_of(align(text, read, self._normal), start, end), at) for start, end, at in row]
            for text, read, row in zip(
                texts, map(self._normal, texts), self._offsets(texts, cut), strict=True
            )
        ]

    def _offsets(self, texts: Sequence[str], cut: bool) -> list[list[tuple[int, int, int]]]:
        """The same in the characters of `_normal`. A tokenizer that does not say them is asked how
        many tokens the text has up to the end of each word."""
        read = [self._normal(text) for text in texts]
        padding = self.padding if cut else "do_not_pad"
        settings = {"padding": padding, "truncation": cut, "max_length": self.length}
        settings |= {"verbose": False}  # it says that a text is too long, which the caller asks
        if self.tokenizer.is_fast:
            tokenizer = self.tokenizer if cut else self._uncut
            made = tokenizer(read, return_offsets_mapping=True, **settings)
            return [
                [(start, end, at) for at, (start, end) in enumerate(row) if end > start]
                for row in made["offset_mapping"]
            ]
        most = self.length - self.tokenizer.num_special_tokens_to_add() if cut else None
        return [self._counted(text)[:most] for text in read]

    @functools.cached_property
    def _uncut(self) -> Any:
        """A copy that neither pads nor truncates: threads that share one tokenizer must not change
        whether it does."""
        return copy.deepcopy(self.tokenizer)

    def _counted(self, text: str) -> list[tuple[int, int, int]]:
        places: list[tuple[int, int, int]] = []
        for start, end in word_spans(text, ()):
            ids = self.tokenizer(text[:end], add_special_tokens=False, verbose=False)["input_ids"]
            places += [(start, end, at) for at in range(len(places), len(ids))]
        return places

    def describe(self) -> dict[str, Any]:
        """All parameters, for the fingerprint and the collection's identity."""
        return {
            "tokenizer": type(self.tokenizer).__name__,
            "max_length": self.length,
            "padding": self.padding,
            "lowercase": self.lower,
        }


def _of(spans: Sequence[Span], start: int, end: int) -> Span:
    """The characters of spans start to end."""
    return spans[start][0], spans[end - 1][1]


def load_tokens(folder: ModelFolder, padding: str, vocabulary: int, model_type: str = "") -> Tokens:
    """The tokenizer of a folder, with its own limit of length. vocabulary: how many tokens the
    model knows. Raises EncoderError for a tokenizer that does not fit."""
    folder.require_one_of(TOKENIZERS, "tokenizer")
    described = [folder.path / name for name in ("tokenizer_config.json", "tokenizer.json")]
    with translating_load_errors(folder.title, "a tokenizer", described):
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder.path, **OURS_ALONE)
    if tokenizer.pad_token_id is None:
        raise EncoderError(
            folder.title,
            expected="a tokenizer with a padding token",
            found="none",
            do=mend_model("padding token"),
        )
    if len(tokenizer) > vocabulary:
        raise EncoderError(
            folder.title,
            expected=f"at most {vocabulary} tokens, as config.json says",
            found=f"a tokenizer of {len(tokenizer)}",
            do="check that all files are of one model",
        )
    return Tokens(
        tokenizer=tokenizer,
        padding=padding,
        length=tokenizer.model_max_length,
        # SigLIP2 learnt from lowercased texts. transformers lowercases for the type siglip2 alone;
        # checkpoints of fixed resolution, of type siglip, come with a plain Gemma tokenizer.
        lower=model_type == "siglip" and type(tokenizer).__name__.startswith("Gemma"),
    )


def most_positions(tower: nn.Module, config: Any) -> int:
    """The longest text that a text tower has positions for, special tokens counted. In towers of
    the RoBERTa family the first position is the one behind that of the padding token."""
    for name, module in tower.named_modules():
        if isinstance(module, nn.Embedding) and "position_embedding" in name.rpartition(".")[2]:
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - before
    return config.max_position_embeddings
