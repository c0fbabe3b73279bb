"""Byte-pair tokens with byte fallback: any text in, ids out, and the same text back.

Pieces are words with the space before them and runs of Chinese; inside a piece the pair of symbols
that was merged first in training is merged first (Sennrich et al., Neural Machine Translation of
Rare Words with Subword Units, 2016). Symbols start as the characters seen in training; a character
never seen becomes its UTF-8 bytes. Merging and training are those of the `tokenizers` library, and
tokenizer.json is its file; the earlier format, a list of characters and merges, is read as well.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers

PAD, START, END = 0, 1, 2
SPECIALS = ("<pad>", "<start>", "<end>")
FIRST_BYTE = len(SPECIALS)  # ids 3 to 258 are the 256 bytes
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# A run of CJK characters; a word, with the one space before it; or any one other character. Runs
# are cut at 64 characters: without spaces a text of any length would be one piece.
_CHINESE = r"[\u3400-\u9fff]{1,64}"
_LETTERS = r"[^\W\d_\u3400-\u9fff]"
_PIECES = rf"{_CHINESE}| {_LETTERS}{{1,63}}|{_LETTERS}{{1,64}}|[\s\S]"
# Chinese is written without spaces, so frequent phrases would become single tokens and rare ones
# not; words are at most this long, and phrases are left to the model.
_LONGEST_CHINESE = 3
# What `normalise` takes off the end of a text, and the rule in words. The first format kept a space
# before a full stop and a question mark: its folders keep the vectors that they gave.
ENDS = {
    ".。? ": "NFKC, lower case, single spaces, no full stop or question mark at the end; tokens",
    ".。": "NFKC, lower case, single spaces, no final full stop; own byte-pair tokens",
}
PRESENT_ENDS, FIRST_ENDS = ENDS
ENDS_FIELD = "ends"  # of tokenizer.json, where they are not the present ones
_SURROGATE = re.compile("([\ud800-\udfff])")


class Tokenizer:
    """Characters and merges, in the order of training, and the ids they stand for."""

    def __init__(self, library: tokenizers.Tokenizer, ends: str = PRESENT_ENDS) -> None:
        """library: as `train` or `from_json` made it; ValueError where ids are others. ends: of
        ENDS."""
        self._library, self._ends = library, ends
        first = (*SPECIALS, *_BYTES)
        if tuple(map(library.id_to_token, range(len(first)))) != first:
            raise ValueError("tokenizer: expected ids of pad, start, end and 256 bytes first")

    def __len__(self) -> int:
        return self._library.get_vocab_size(with_added_tokens=False)

    @property
    def text_rule(self) -> str:
        """What is read of a text, in words: part of a model's fingerprint."""
        return ENDS[self._ends]

    def normalise(self, text: str) -> str:
        """As the function, by the rule of this tokenizer's format."""
        return normalise(text, self._ends)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without START and END; `decode` gives the very text back."""
        if not _SURROGATE.search(text):
            return self._library.encode(text, add_special_tokens=False).ids
        # A lone surrogate is no UTF-8, yet a str may have it and must come back whole.
        ids: list[int] = []
        for part in _SURROGATE.split(text):
            if _SURROGATE.fullmatch(part):
                ids += [FIRST_BYTE + byte for byte in part.encode("utf-8", "surrogatepass")]
            else:
                ids += self._library.encode(part, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special ids and those past the last are skipped, bytes that are no UTF-8
        become U+FFFD."""
        parts: list[bytes] = []
        for i in ids:
            if FIRST_BYTE <= i < FIRST_BYTE + 256:
                parts.append(bytes([i - FIRST_BYTE]))
            elif i >= FIRST_BYTE:
                parts.append((self._library.id_to_token(i) or "").encode("utf-8"))
        whole = b"".join(parts)
        try:
            return whole.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return whole.decode("utf-8", "replace")

    def batch(self, texts: Sequence[str], context: int, multiple: int = 4) -> np.ndarray:
        """B texts, normalised -> ids (B, T) int64, START and END around each, PAD after.

        T is the longest text's length rounded up to `multiple`, at most `context`: a longer text
        keeps its beginning.
        """
        return self.read(texts, context, multiple)[0]

    def read(
        self, texts: Sequence[str], context: int, multiple: int = 4
    ) -> tuple[np.ndarray, np.ndarray]:
        """As above, and how many tokens of each text are left out, (B,) int64."""
        whole = [self.encode(self.normalise(text)) for text in texts]
        cut = np.array([max(0, len(ids) - (context - 2)) for ids in whole], np.int64)
        rows = [[START, *ids[: context - 2], END] for ids in whole]
        longest = max(map(len, rows), default=2)
        ids = np.full(
            (len(rows), min(context, -(-longest // multiple) * multiple)), PAD, dtype=np.int64
        )
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens
        return ids, cut

    def tokens_cut(self, text: str, context: int) -> int:
        """How many tokens of a text `batch` leaves out."""
        return max(0, len(self.encode(self.normalise(text))) - (context - 2))

    def to_json(self) -> str:
        """All of it, as the text of tokenizer.json: the library's file; with the rule of the first
        format, where it is that, as a field of our own."""
        text = self._library.to_str(pretty=False)
        if self._ends == PRESENT_ENDS:
            return text
        return json.dumps({**json.loads(text), ENDS_FIELD: self._ends}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The tokenizer of a tokenizer.json; ValueError or KeyError where it is none."""
        fields = json.loads(text)
        if "characters" in fields:  # the format of "chiasm joint model 1"
            merges = [(a, b) for a, b in fields["merges"]]
            return _made(fields["characters"], merges, FIRST_ENDS)
        ends = PRESENT_ENDS
        if ENDS_FIELD in fields:  # which the library does not know
            ends = fields.pop(ENDS_FIELD)
            text = json.dumps(fields)
        if ends not in ENDS:
            raise ValueError(f"tokenizer: {ENDS_FIELD} {ends!r}: expected one of {list(ENDS)}")
        try:
            return cls(tokenizers.Tokenizer.from_str(text), ends)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"tokenizer: {error}") from error

    def __reduce__(self):
        return Tokenizer.from_json, (self.to_json(),)


def normalise(text: str, ends: str = PRESENT_ENDS) -> str:
    """What the model reads of a text: NFKC, lower case, single spaces, none of `ends` at its
    end."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split()).rstrip(ends)


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn at most `vocabulary` ids from normalised texts: specials, bytes, characters, merges.

    Characters have half of the room, the most frequent ones; the others are bytes. Else people's
    texts in a few scripts would leave no room for words.
    Merges of Chinese and of all else are learned apart, as Chinese ones have a longest length, and
    have half of the room each; what one does not need, the other gets. The same texts give the
    same tokenizer.
    """
    read = [normalise(text) for text in texts]
    room = max(0, vocabulary - FIRST_BYTE - 256)
    counts = Counter(character for text in read for character in text)
    frequent = sorted(counts, key=lambda character: (-counts[character], character))
    characters, rare = sorted(frequent[: room // 2]), frequent[room // 2 :]
    room -= len(characters)
    no_merge = str.maketrans(dict.fromkeys(rare, "\0"))
    read = [text.translate(no_merge) for text in read]
    chinese = _merges(read, _CHINESE, room, longest=_LONGEST_CHINESE)
    others = _merges(read, rf" ?{_LETTERS}{{1,64}}", room)
    half = max(room // 2, room - len(others))
    chinese = chinese[:half]
    return _made(characters, [*chinese, *others[: room - len(chinese)]])


def _merges(
    texts: Sequence[str], pieces: str, count: int, longest: int | None = None
) -> list[tuple[str, str]]:
    """At most `count` merges inside the pieces that match; longest: most characters of one."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "removed", invert=True)
    letters = {c for text in texts for c in text}
    trainer = trainers.BpeTrainer(
        vocab_size=count + len(letters),
        min_frequency=2,
        show_progress=False,
        max_token_length=None if longest is None else longest + 1,  # the library's is exclusive
    )
    library.train_from_iterator(texts, trainer)
    return [(a, b) for a, b in json.loads(library.to_str())["model"]["merges"]][:count]


def _made(
    characters: Sequence[str], merges: Sequence[tuple[str, str]], ends: str = PRESENT_ENDS
) -> Tokenizer:
    """Characters and merges -> ids: specials, bytes, characters, merges; a string that occurs
    twice keeps its first id, and the other is never written."""
    tokens = [*SPECIALS, *_BYTES, *characters, *(a + b for a, b in merges)]
    ids: dict[str, int] = {}
    for i, token in enumerate(tokens):
        ids.setdefault(token, i) if token not in ids else ids.setdefault(f"<unused {i}>", i)
    library = tokenizers.Tokenizer(models.BPE(ids, list(merges), byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    return Tokenizer(library, ends)
