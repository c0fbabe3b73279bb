"""The keyword index of a segment: which rows have a term in their captions, and how often.

Rows come in order; `keywords.arrow` goes out: Arrow IPC without compression, memory-mapped. Each
record batch is the inverted index of a run of consecutive rows, as one row of lists: its terms,
sorted; where each one's postings begin; the rows and counts of all postings; the number of words of
each row. A run is written once its words fill a fixed amount of memory, so that a writer takes no
more of it, however many rows a segment has; the cost is one binary search a run and term.

Why not the files of a library: bm25s stores finished scores, which rest on the document frequencies
of one index, and tantivy opens a folder by its own names. Here the frequencies are summed over all
segments when a query comes (query/keyword.py), and every file is mapped after its checksum was
compared. Bytes: 5 a posting, 4 a row, and the terms of each run.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader

import numpy as np
import pyarrow as pa

from chiasm.index.segments.catalog import WritableFile
from chiasm.index.segments.terms import BREAK, Stems, joined, pairs_of, rules, words_of
from chiasm.pipeline.errors import CollectionError

# Words and pairs of a run, of which one in 8 may be a new word. What a writer takes for them is
# measured by benchmarks/hybrid.py.
RUN_TOKENS = 1 << 19
BLOCK = 1024  # rows taken apart together
MAX_COUNT = 255  # of a term in a row; more of it adds nothing to the score

_LISTS = {
    "terms": pa.string(),
    "starts": pa.int32(),  # of each term's postings, and their end
    "rows": pa.int32(),  # within the run, rising
    "counts": pa.uint8(),
    "lengths": pa.int32(),
}
SCHEMA = pa.schema([pa.field(name, pa.list_(kind), False) for name, kind in _LISTS.items()])


class KeywordWriter:
    """Writes `keywords.arrow` to an open file. run_tokens: words and pairs of a run."""

    def __init__(self, file: WritableFile, run_tokens: int = RUN_TOKENS) -> None:
        self._run_tokens = run_tokens
        schema = SCHEMA.with_metadata({"rules": rules()})
        self._ipc = pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema)
        self._run = _OpenRun()

    def add(self, rows: pa.Table) -> None:
        """Take consecutive rows, of which the columns `caption` and `captions` are read."""
        captions = rows["captions"].to_pylist(), rows["caption"].to_pylist()
        self.add_texts(
            [
                "\n".join(dict.fromkeys(text for text in (*(several or ()), one) if text))
                for several, one in zip(*captions, strict=True)
            ]
        )

    def add_texts(self, texts: Sequence[str]) -> None:
        """Take consecutive rows; a text is all that a row says."""
        for start in range(0, len(texts), BLOCK):
            self._run.add(texts[start : start + BLOCK])
            if (
                self._run.tokens >= self._run_tokens
                or 8 * len(self._run.numbers) >= self._run_tokens
            ):
                self._flush()

    def close(self) -> None:
        """Write what is left and the footer; the file itself stays open."""
        self._flush()
        self._ipc.close()

    def _flush(self) -> None:
        run, self._run = self._run, _OpenRun()
        if run.rows:
            self._ipc.write_batch(run.batch())


class _OpenRun:
    """A run whose rows are not all there yet. numbers: of words and pairs that it has met."""

    def __init__(self) -> None:
        self.numbers = _Numbers()
        self.rows = self.tokens = 0
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []  # numbers of terms, and their rows
        self._lengths: list[np.ndarray] = []

    def add(self, texts: Sequence[str]) -> None:
        text = joined(texts)
        words, pairs = words_of(text), pairs_of(text)
        _, rows = self._take(words)
        self._lengths.append(np.bincount(rows, minlength=len(texts)).astype(np.int32))
        self._take(pairs)
        self.rows += len(texts)

    def _take(self, tokens: list[str]) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.fromiter(map(self.numbers.__getitem__, tokens), np.int32, len(tokens))
        rows = np.cumsum(numbers < 0, dtype=np.int32)
        kept = numbers >= 0
        numbers, rows = numbers[kept], rows[kept]
        self._parts.append((numbers, rows + np.int32(self.rows)))
        self.tokens += len(numbers)
        return numbers, rows

    def batch(self) -> pa.RecordBatch:
        """The record batch of the whole run, after which it is not used any more."""
        terms = self.numbers.terms
        order = sorted(range(len(terms)), key=terms.__getitem__)
        places = np.empty(len(terms), np.int64)
        places[order] = np.arange(len(terms))
        keys = np.concatenate([places[numbers] << 32 | rows for numbers, rows in self._parts])
        self._parts.clear()
        keys, counts = np.unique(keys, return_counts=True)
        values = {
            "terms": [terms[number] for number in order],
            "starts": np.searchsorted(keys, np.arange(len(terms) + 1) << 32).astype(np.int32),
            "rows": (keys & 0xFFFFFFFF).astype(np.int32),
            "counts": np.minimum(counts, MAX_COUNT).astype(np.uint8),
            "lengths": np.concatenate(self._lengths),
        }
        lists = [
            pa.ListArray.from_arrays(pa.array([0, len(values[name])], pa.int32()), array)
            for name, kind in _LISTS.items()
            for array in [pa.array(values[name], kind)]
        ]
        return pa.record_batch(lists, schema=SCHEMA)


class _Numbers(dict[str, int]):
    """Word or pair -> the number of its term; -1 for BREAK. terms: by their numbers."""

    def __init__(self) -> None:
        super().__init__({BREAK: -1})
        self.terms: list[str] = []
        self._stems = Stems()
        self._of_terms: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        term = self._stems.term(word)
        number = self._of_terms.setdefault(term, len(self.terms))
        if number == len(self.terms):
            self.terms.append(term)
        self[word] = number
        return number


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Consecutive rows of a segment, the first being `first`. lengths: (rows,) int32, words."""

    first: int
    lengths: np.ndarray
    terms: pa.StringArray
    starts: np.ndarray
    rows: np.ndarray
    counts: np.ndarray

    def postings(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the run that have a term, rising, and how often: (n,) int32, (n,) uint8."""
        terms = self.terms
        place = bisect_left(range(len(terms)), term, key=lambda number: terms[number].as_py())
        if place == len(terms) or terms[place].as_py() != term:
            return self.rows[:0], self.counts[:0]
        found = slice(self.starts[place], self.starts[place + 1])
        return self.rows[found], self.counts[found]


class Keywords:
    """A segment's `keywords.arrow`, memory-mapped. `len` is the number of rows; safe to share."""

    def __init__(self, file: BufferedReader, where: str, rebuild: str, rows: int) -> None:
        """file: open; it may be closed afterwards. where, rebuild: its name, and the command that
        errors advise. rows: how many the segment has. Raises CollectionError for another file, and
        for one whose terms were made by other rules."""
        try:
            self.runs, made_by = _read_runs(file)
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            self.runs, made_by = [], ""
            fault = str(error).splitlines()[0]
        else:
            fault = f"{len(self)} rows" if len(self) != rows else ""
            fault = f"those of {made_by}" if made_by != rules() else fault
        if fault:
            raise CollectionError(
                where,
                expected=f"keywords of {rows} rows, of {rules()}",
                found=fault,
                do=f"run {rebuild}",
            )

    def __len__(self) -> int:
        return sum(len(run.lengths) for run in self.runs)


def _read_runs(file: BufferedReader) -> tuple[list[Run], str]:
    """The runs, mapped, and by which rules their terms were made."""
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
    if not reader.schema.equals(SCHEMA):
        raise ValueError("other columns")
    runs: list[Run] = []
    first = 0
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        lists = {name: batch[name][0].values for name in _LISTS}
        terms = lists.pop("terms")
        arrays = {name: values.to_numpy(zero_copy_only=True) for name, values in lists.items()}
        runs.append(Run(first=first, terms=terms, **arrays))
        first += len(arrays["lengths"])
    return runs, (reader.schema.metadata or {}).get(b"rules", b"").decode(errors="replace")
