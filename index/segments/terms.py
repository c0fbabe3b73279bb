"""Texts -> terms of keyword search, by the same rules for captions and for queries.

Case, accents, full-width and other forms of a letter are folded (Unicode NFKD, case folding). A
word is a run of letters and digits, without an English possessive 's, and its term is its stem
(Snowball's English, "Porter 2"). Of Chinese, Japanese and Korean, which are not written in such
words, every character is a word, and every two neighbours are a pair: a term that counts less, and
puts the rows that have the two together before those that have both somewhere. `python -m
benchmarks.hybrid` compares this with words of a dictionary (jieba), which find less.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version

from snowballstemmer.english_stemmer import EnglishStemmer

BREAK = "\x1e"  # between texts that are taken apart together
MAX_TERM = 64  # characters of a word that count: what is longer is no word
# Of a pair beside 1 for a word. 0.1 to 0.3 find as many sentences as no pairs do, and single words
# of two characters nearly without error; 1 finds fewer sentences.
PAIR_WEIGHT = 0.2

# Kana, Han with its extensions, Hangul: the scripts of Lucene's CJKBigramFilter.
_SCRIPTS = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(f"{BREAK}|[{_SCRIPTS}]|[^\\W_{_SCRIPTS}]+")
_PAIR = re.compile(f"(?=({BREAK}|[{_SCRIPTS}]{{2}}))")
_ACCENTS = re.compile("[\u0300-\u036f]+")
_POSSESSIVE = re.compile(r"(?<=\w)['\u2019]s\b")


@functools.cache
def rules() -> str:
    """By which rules terms are made: an index made by others does not fit the terms of a query."""
    return f"1, snowball english {version('snowballstemmer')}"


def fold(text: str) -> str:
    """The text without differences of case, accents and width."""
    if not text.isascii():
        plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text).casefold())
        text = unicodedata.normalize("NFKC", plain)
    return _POSSESSIVE.sub("", text.lower())


def joined(texts: Iterable[str]) -> str:
    """Several texts as one, folded; BREAK stands between them."""
    return fold(BREAK.join(text.replace(BREAK, " ") for text in texts))


def words_of(text: str) -> list[str]:
    """The words of a folded text, BREAK where it has one."""
    return _WORD.findall(text)


def pairs_of(text: str) -> list[str]:
    """The pairs of a folded text, BREAK where it has one."""
    return [] if text.isascii() else _PAIR.findall(text)


class Stems:
    """Word or pair -> its term. Not for several threads."""

    def __init__(self) -> None:
        self._stem = EnglishStemmer().stemWord

    def term(self, word: str) -> str:
        word = word[:MAX_TERM]
        if word.isascii() and word.isalpha():  # numbers are many, and have no stem
            return self._stem(word)
        return word


@functools.lru_cache(maxsize=1 << 16)
def stem_of(word: str) -> str:
    """The term of a word, or of a pair of characters. Safe from any thread."""
    return Stems().term(fold(word))


def query_terms(text: str) -> dict[str, float]:
    """The terms of a query, in its order, with their weights: how often, less for pairs."""
    folded, stems = joined([text]), Stems()
    counts = Counter(stems.term(word) for word in words_of(folded))
    pairs = Counter(stems.term(pair) for pair in pairs_of(folded))
    return {
        **{term: float(count) for term, count in counts.items()},
        **{pair: PAIR_WEIGHT * count for pair, count in pairs.items()},
    }
