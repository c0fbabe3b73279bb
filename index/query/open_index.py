"""A collection open for searching: what stays between queries, loaded when first needed.

The live generation's segments are memory-mapped column by column; the encoder named in the
collection is loaded at the first query that has a text or a picture. Refused here: another encoder,
an index of another encoder, an index older than its embeddings. A generation never changes once it
is open; `refresh` opens the one that is live by now, and where a sweep has removed files that were
not mapped yet, `reopen` does. Queries under way end with the generation that they began with.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from chiasm.index.queries import Query
from chiasm.index.query.auditing import Audits, Recalls, audit
from chiasm.index.query.filter_rows import Filter
from chiasm.index.query.filtered import search_filtered
from chiasm.index.query.filters import filter_for
from chiasm.index.query.given_vectors import given_vectors, pad, require_answer
from chiasm.index.query.opening import column_of, live_generation, open_all, read_relocated
from chiasm.index.query.scan import Allowed, ColumnIndex
from chiasm.index.results import CatalogRow
from chiasm.index.segments import (
    FileSum,
    Generation,
    Segment,
    SegmentGone,
    column_advice,
    fetch,
    read_current,
)
from chiasm.index.value_checks import require_whole
from chiasm.pipeline.collection import Collection, Relocations, stat_relocations
from chiasm.pipeline.encoders import Encoder, Ragged
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.storage import Stat, display_name

LOG = logging.getLogger(__name__)


class OpenIndex:
    """A collection and its live generation. Safe to use from any thread."""

    def __init__(
        self,
        collection: Collection,
        generation: Generation,
        encoding: EncoderSettings,
        relocated: tuple[Stat | None, Relocations] | None = None,
        audits: Audits | None = None,
    ) -> None:
        self.collection, self.generation = collection, generation
        self.audits = Audits(collection.identity.dim) if audits is None else audits
        self.encoding = encoding
        self._encoder: Encoder | None = None
        self._relocated = relocated
        self._loading = threading.Lock()
        self._current: FileSum | None = None  # of CURRENT, at the last `refresh`

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.generation.segments

    def view(self) -> OpenIndex:
        """This index with the generation that it has now, whatever is opened later: positions of a
        query are those of one generation."""
        return _View(self)

    def reopen(self, instead_of: Generation) -> bool:
        """Open the generation that is live now, unless that was done since `instead_of` was;
        returns False where it is the same. An index older than its embeddings is taken, as
        `instead_of` was one too."""
        with self._loading:
            if self.generation is instead_of:
                generation = live_generation(self.collection, allow_stale=True)
                before, now = instead_of.manifest, generation.manifest
                if (instead_of.number, before.run) == (generation.number, now.run):
                    return False
                LOG.info(
                    "generation %06d is gone; %06d answers now",
                    instead_of.number,
                    generation.number,
                )
                self.generation, self._relocated = generation, None
            return True

    def refresh(self) -> bool:
        """Move on to the live generation, where CURRENT has changed; returns whether it did. Where
        it has not, this costs one small read. No query waits: what searches have used so far is
        open before they get it. An index older than its embeddings is taken."""
        content = read_current(self.collection.folder)
        found = None if content is None else FileSum.of(content)
        before = self.generation
        if found is None or found == self._current:
            return False
        generation = live_generation(self.collection, allow_stale=True, known=before)
        same = (before.number, before.manifest.run) == (generation.number, generation.manifest.run)
        if not same:
            for column in {*before.opened.copy()} & generation.manifest.columns.keys():
                open_all(column_of(generation, column, before))
        with self._loading:
            self._current = found
            if same or self.generation is not before:
                return not same
            self.generation, self._relocated = generation, None
        return True

    def __len__(self) -> int:
        return self.generation.manifest.rows

    def column(self, name: str) -> ColumnIndex:
        """A column's index; UsageError and CollectionError as by `require_column`."""
        generation = self.generation
        if name not in generation.opened:
            self.require_column(name)
        return column_of(generation, name)

    def search_vectors(
        self,
        xq: np.ndarray,
        k: int,
        where: str | None = None,
        *,
        column: str = "image",
        nprobe: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of each query: scores (Q, k) float32, best first, and ids (Q, k) int64.

        xq (Q, D) float32, unit rows. where: a filter. nprobe: lists to scan, None for as many as
        the column's recall needs. An id is a position of the generation that is open, for `rows`
        and `vectors`; -1 with score -inf where fewer than k rows are found. Where generations
        change meanwhile, call all three of one `view`. Raises UsageError for queries of another
        width, for NaN, infinite or zero ones, and for a k far above the rows, whose answer would
        be too large.
        """
        require_whole(0, k=k, nprobe=0 if nprobe is None else nprobe)
        if where is not None and not isinstance(where, str):
            raise TypeError(f"where: expected str, found {type(where).__name__}")
        xq, exponents = given_vectors(xq, self.dim)
        kind = "vector" if where is None else "filtered"
        while True:
            view = self.view()
            require_answer(len(xq), k, len(view))
            best = min(int(k), len(view))
            try:
                index = view.column(column)
                lists = view.lists_to_scan(column, nprobe, kind)
                scores, ids = search_filtered(index, xq, best, lists, view.allowed(where))
            except SegmentGone:
                if not self.reopen(view.generation):
                    raise
                continue
            self.audits.recent.add(xq, column, kind, best, nprobe, where)
            return pad(scores, ids, k, exponents)

    def audit(self, share: float, *, raise_probes: bool = True, save: bool = False) -> Recalls:
        """Answer a share of the queries since the last audit exactly, at least one; returns, by
        column and kind of query, the recall of all that were audited so far (index/audit.py).

        That takes as long as an exact search of them, of a thousand at the most, and other
        searches go on meanwhile; of an index in a store all vectors are copied first. raise_probes:
        where a promise is broken, scan more lists for such queries from now on, in steps up to
        four times those of the plan; each is logged as a warning. save: store what this audit found
        beside the generation, for `chiasm index status`. Raises UsageError for another share.
        """
        return audit(self, share, raise_probes=raise_probes, save=save)

    @property
    def audited(self) -> Recalls:
        """What `audit` returned last."""
        return self.audits.by_kind(self.generation)

    def allowed(self, where: str | None) -> Allowed | None:
        """The rows that a filter lets pass, by segment; None without one. UsageError for a filter
        that cannot be used."""
        return None if where is None else self.filter(where).rows_of(self.segments)

    def filter(self, where: str) -> Filter:
        """A filter for the generation that is open; raises UsageError."""
        return filter_for(where, self.generation)

    @property
    def dim(self) -> int:
        return self.collection.identity.dim

    @property
    def encoder(self) -> Encoder:
        """The collection's encoder; loaded once, refused if it is not the same one."""
        with self._loading:
            if self._encoder is None:
                self._encoder = self.collection.load_encoder(self.encoding)
            return self._encoder

    def prepare(self, queries: Sequence[Query], encode: bool = True) -> Encoder | None:
        """Load what the queries need and was not loaded yet; returns the encoder, None where every
        query has its own vector. encode: whether those of the others are still to be made."""
        for query in queries:  # a column without an index is refused before anything is loaded
            self.require_column(query.column)
            if query.where is not None:
                self.filter(query.where)
        # The encoder first: FAISS after torch shares its OpenMP runtime, see
        # index/faiss_runtime.py.
        encoder = None
        if encode and any(query.vector is None for query in queries):
            encoder = self.encoder
        for column in {query.column for query in queries}:
            self.column(column).open()
        return encoder

    def lists_to_scan(self, column: str, nprobe: int | None = None, kind: str = "") -> int:
        """Lists that a query scans, 0 where the column's index is exact. nprobe: what it wants.
        kind: of query, as `Query.kind` is."""
        plan = self.generation.manifest.columns[column]
        if plan.exact:
            return 0
        return min(plan.lists, nprobe or self.audits.lists(column, kind, plan))

    @property
    def default_column(self) -> str:
        """The column of pictures; of an encoder that takes none that of its first modality beside
        texts, else texts."""
        return self.collection.identity.default_column

    def require_column(self, column: str) -> None:
        """Raises UsageError for a column that the collection does not have, CollectionError for one
        that has no index, and so no vectors of its own."""
        names = self.collection.identity.columns
        if column not in names:
            raise UsageError(
                f"column {column!r}", expected="one of " + ", ".join(names), found="no such column"
            )
        columns = self.generation.manifest.columns
        if column not in columns:
            raise CollectionError(
                f"column {column} of {display_name(self.collection.folder.url)}",
                expected="an indexed column, one of " + ", ".join(columns),
                found="none",
                do=column_advice(self.collection.folder, column),
            )

    def rows(self, positions: Iterable[int]) -> dict[int, CatalogRow]:
        """The catalog's rows at positions of the generation; the URL of each is where its shard
        is now, which may have been relocated since the build."""
        relocations = self.relocations
        wanted = list(self._by_segment(positions))
        fetch([part for segment, _, numbers in wanted for part in segment.wanted_rows(numbers)])
        rows = {
            first + number: row
            for segment, first, numbers in wanted
            for number, row in segment.rows(numbers).items()
        }
        for position, row in rows.items():
            if (url := relocations.url_of(row.shard, row.url)) != row.url:
                rows[position] = replace(row, url=url)
        return rows

    @property
    def relocations(self) -> Relocations:
        """Where the shards are now. The record of a local collection is looked at each time; that
        of a store, where it would be a request, once and where `look_for_relocations` is called."""
        if self._relocated is None or self.collection.folder.local is not None:
            self.look_for_relocations()
        assert self._relocated is not None
        return self._relocated[1]

    def look_for_relocations(self) -> bool:
        """Read where the shards are now, if that has changed; returns whether it has."""
        folder, known = self.collection.folder, self._relocated
        found = stat_relocations(folder)
        if known is not None and known[0] == found:
            return False
        self._relocated = read_relocated(folder, found)
        return known is not None

    def vectors(self, column: str, positions: Sequence[int]) -> np.ndarray:
        """The stored vectors of a column, in the order of the positions: (n, D) float32, zero
        where a row has none. CollectionError for a column without an index."""
        self.require_column(column)
        vectors = np.zeros((len(positions), self.dim), np.float32)
        order = {position: number for number, position in enumerate(positions)}
        wanted = list(self._by_segment(positions))
        parts = [one.wanted_vectors(column, np.array(numbers)) for one, _, numbers in wanted]
        fetch([part for of_segment in parts for part in of_segment])
        for segment, first, numbers in wanted:
            found = segment.vectors(column).take(np.array(numbers))
            vectors[[order[first + row] for row in numbers]] = found
        return vectors

    def tokens(self, column: str, positions: Sequence[int]) -> Ragged:
        """The stored tokens of a column that has them, float16, in the order of the positions."""
        width = self.collection.identity.tokens[column]
        wanted = [
            (segment.tokens(column, width), first, np.array(numbers))
            for segment, first, numbers in self._by_segment(positions)
        ]
        fetch([part for stored, _, numbers in wanted for part in stored.wanted(numbers)])
        parts = [stored.take(numbers) for stored, _, numbers in wanted]
        if not parts:
            return Ragged(np.empty((0, width), np.float16), np.empty(0, np.int64))
        found = [first + number for _, first, numbers in wanted for number in numbers.tolist()]
        place = {position: number for number, position in enumerate(found)}
        whole = Ragged(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.lengths for part in parts]),
        )
        order = np.array([place[position] for position in positions], np.int64)
        return whole if (np.diff(order) > 0).all() else whole.take(order)

    def _by_segment(self, positions: Iterable[int]) -> Iterator[tuple[Segment, int, list[int]]]:
        """Each segment that has any of the positions: the segment, the position of its first row,
        and the numbers of the wanted rows in it, in order."""
        ordered = sorted(positions)
        first = 0
        for segment in self.segments:
            numbers = [
                position - first for position in ordered if 0 <= position - first < len(segment)
            ]
            if numbers:
                yield segment, first, numbers
            first += len(segment)


class _View(OpenIndex):
    """An index at one generation. The encoder is that of the index, loaded once for all."""

    def __init__(self, index: OpenIndex) -> None:
        super().__init__(index.collection, index.generation, index.encoding, audits=index.audits)
        self._index = index

    def reopen(self, instead_of: Generation) -> bool:
        """Positions of the one would be taken for those of the other."""
        return False

    def refresh(self) -> bool:
        return False

    @property
    def encoder(self) -> Encoder:
        return self._index.encoder

    @property
    def relocations(self) -> Relocations:
        return self._index.relocations
