"""A byte-pair tokenizer of our own, with byte fallback: any text in, ids out, and the same text
back.

Pieces are words with the space before them and runs of Chinese; inside a piece the pair of symbols
that was merged first in training is merged first (Sennrich et al., Neural Machine Translation of
Rare Words with Subword Units, 2016). Symbols start as the characters seen in training; a character
never seen becomes its UTF-8 bytes. Pure Python: pieces are few and cached, so a caption takes
microseconds.
"""

from __future__ import annotations

import heapq
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

PAD, START, END = 0, 1, 2
SPECIALS = ("<pad>", "<start>", "<end>")
FIRST_BYTE = len(SPECIALS)  # ids 3 to 258 are the 256 bytes
# A run of CJK characters; a word, with the one space before it; or any one other character.
_PIECES = re.compile(r"[\u3400-\u9fff]+| ?[^\W\d_\u3400-\u9fff]+|.", re.DOTALL)
# Chinese is written without spaces, so frequent phrases would become single tokens and rare ones
# not; words are at most this long, and phrases are left to the model.
_LONGEST_MERGE = 3
_LONGEST_PIECE = 64  # a longer run is cut: merging costs the square of its length

Pair = tuple[str, str]


class Tokenizer:
    """Characters and merges, in the order of training, and the ids they stand for."""

    def __init__(self, characters: Sequence[str], merges: Sequence[Pair]) -> None:
        self.characters = tuple(characters)
        self.merges = tuple(merges)
        tokens = [*self.characters, *(a + b for a, b in self.merges)]
        first = FIRST_BYTE + 256
        self._ids = {token: first + i for i, token in reversed(list(enumerate(tokens)))}
        self._tokens = {first + i: token for i, token in enumerate(tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._piece = lru_cache(maxsize=2**14)(self._encode_piece)

    def __len__(self) -> int:
        return FIRST_BYTE + 256 + len(self._tokens)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without START and END; `decode` gives the very text back."""
        return [i for piece in _pieces(text) for i in self._piece(piece)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special ids are skipped, bytes that are no UTF-8 become U+FFFD."""
        parts: list[bytes] = []
        for i in ids:
            if FIRST_BYTE <= i < FIRST_BYTE + 256:
                parts.append(bytes([i - FIRST_BYTE]))
            elif i >= FIRST_BYTE:
                parts.append(self._tokens[i].encode("utf-8"))
        whole = b"".join(parts)
        try:
            # Lone surrogates are no UTF-8, yet a str may hold them and must come back whole.
            return whole.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return whole.decode("utf-8", "replace")

    def batch(self, texts: Sequence[str], context: int, multiple: int = 4) -> np.ndarray:
        """B texts, normalised -> ids (B, T) int64, START and END around each, PAD after.

        T is the longest text's length rounded up to `multiple`, at most `context`: a longer text
        keeps its beginning.
        """
        rows = [[START, *self.encode(normalise(text))[: context - 2], END] for text in texts]
        longest = max(map(len, rows), default=2)
        ids = np.full(
            (len(rows), min(context, -(-longest // multiple) * multiple)), PAD, dtype=np.int64
        )
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens
        return ids

    def to_json(self) -> str:
        """All of it, as the text of tokenizer.json."""
        fields = {"characters": "".join(self.characters), "merges": [list(m) for m in self.merges]}
        return json.dumps(fields, ensure_ascii=False, indent=0)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The tokenizer that `to_json` wrote; ValueError or KeyError where it is none."""
        fields = json.loads(text)
        return cls(fields["characters"], [(a, b) for a, b in fields["merges"]])

    def __reduce__(self):
        # The cache is a closure and does not pickle; the rest is rebuilt in a millisecond.
        return Tokenizer, (self.characters, self.merges)

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        symbols = list(piece)
        while len(symbols) > 1:
            ranked = [
                (self._ranks.get(pair, len(self._ranks)), i)
                for i, pair in enumerate(pairwise(symbols))
            ]
            rank, at = min(ranked)
            if rank == len(self._ranks):
                break
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return tuple(i for symbol in symbols for i in self._symbol(symbol))

    def _symbol(self, symbol: str) -> list[int]:
        known = self._ids.get(symbol)
        if known is not None:
            return [known]
        return [FIRST_BYTE + byte for byte in symbol.encode("utf-8", "surrogatepass")]


def normalise(text: str) -> str:
    """What the model reads of a text: NFKC, lower case, single spaces, no full stop at the end."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split()).rstrip(".。")


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn at most `vocabulary` ids from normalised texts: specials, bytes, characters, merges.

    Each merge joins the pair that stands together most often; of equals, the first in code order,
    so that the same texts give the same tokenizer.
    """
    pieces = Counter(piece for text in texts for piece in _pieces(normalise(text)))
    characters = sorted({character for piece in pieces for character in piece})
    words = [(list(piece), count) for piece, count in pieces.items()]
    counts: Counter[Pair] = Counter()
    where: dict[Pair, set[int]] = defaultdict(set)
    for n, (symbols, count) in enumerate(words):
        for pair in pairwise(symbols):
            counts[pair] += count
            where[pair].add(n)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    wanted = vocabulary - FIRST_BYTE - 256 - len(characters)
    while heap and len(merges) < wanted:
        count, pair = heapq.heappop(heap)
        if counts[pair] != -count or count >= -1:
            continue  # an outdated entry, or a pair seen once
        if pair[0][0] >= "\u3400" and len(pair[0] + pair[1]) > _LONGEST_MERGE:
            continue
        merges.append(pair)
        changed = _merge(pair, words, counts, where)
        for touched in changed:
            heapq.heappush(heap, (-counts[touched], touched))
    return Tokenizer(characters, merges)


def _merge(
    pair: Pair,
    words: list[tuple[list[str], int]],
    counts: Counter[Pair],
    where: dict[Pair, set[int]],
) -> set[Pair]:
    """Join a pair in all words that hold it; the pairs whose counts changed."""
    changed: set[Pair] = set()
    for n in sorted(where.pop(pair)):
        symbols, count = words[n]
        for old in pairwise(symbols):
            counts[old] -= count
            changed.add(old)
        i = 0
        while i < len(symbols) - 1:
            if (symbols[i], symbols[i + 1]) == pair:
                symbols[i : i + 2] = [pair[0] + pair[1]]
            i += 1
        for new in pairwise(symbols):
            counts[new] += count
            where[new].add(n)
            changed.add(new)
    return changed


def _pieces(text: str) -> Iterable[str]:
    for found in _PIECES.finditer(text):
        piece = found.group()
        for start in range(0, len(piece), _LONGEST_PIECE):
            yield piece[start : start + _LONGEST_PIECE]
