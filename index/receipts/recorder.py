"""Answers -> a receipt."""

from __future__ import annotations

import base64
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.output_files import file_to_write
from chiasm.index.queries import Query
from chiasm.index.query import ColumnIndex, OpenIndex, reranker_fingerprints
from chiasm.index.receipts.record import (
    KIND,
    MAX_BYTES,
    MAX_CANDIDATES,
    Answered,
    Candidate,
    Receipt,
    StoredEncoder,
    StoredGeneration,
    line_of,
    sum_of,
)
from chiasm.index.receipts.stored_query import PictureReader, StoredQuery
from chiasm.index.results import Answer
from chiasm.index.retrieve import Searcher, retrieve
from chiasm.index.segments import manifest_name, open_whole, read_if_there
from chiasm.index.sizes import format_size
from chiasm.pipeline.collection import package_versions
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.storage import display_name


class Recorder:
    """Searches and keeps what a receipt says; `write` makes it. All answers are of the generation
    that is open when it is made. Of a searcher that has been refreshed it is opened once more, so
    that a replay, which opens it too, finds the same.

    explain: whether answers have that field. false_alarms: the rate at which "nothing here matches"
    is said. Raises CollectionError for a generation that is to be opened and is gone.
    """

    def __init__(
        self, searcher: Searcher, *, explain: bool = False, false_alarms: float | None = None
    ) -> None:
        self._searcher, self._explain, self._false_alarms = (
            _freshly_opened(searcher),
            explain,
            false_alarms,
        )
        folder, self._generation = searcher.collection.folder, self._searcher.generation
        self._manifest = read_if_there(folder, manifest_name(self._generation.number))
        self._pictures = PictureReader()
        self._answered: list[Answered] = []
        self._lines: list[str] = []
        self._batches = self._size = 0

    def search(self, queries: Sequence[Query]) -> list[Answer]:
        """As `search_many`. CollectionError where another generation answers than the one before,
        UsageError where a receipt of all answers would be too large."""
        read = [self._pictures.with_pictures(query) for query in queries]
        answers = retrieve(read, self._searcher)
        self._require_generation()
        for answer in answers:
            self._add(answer)
        self._batches += 1
        return answers

    def _require_generation(self) -> bytes:
        """The manifest's file of the generation that answers all queries."""
        if self._manifest is None or self._searcher.generation is not self._generation:
            raise CollectionError(
                f"generation {self._generation.number:06d} of "
                + display_name(self._searcher.collection.folder.url),
                expected="one that answers all queries of a receipt",
                found="another in its place meanwhile",
                do="run the same command again",
            )
        return self._manifest

    def _add(self, answer: Answer) -> None:
        trace = answer.trace
        assert trace is not None
        plain = answer_as_json(answer, self._explain)
        answered = Answered(
            batch=self._batches,
            query=StoredQuery.of(answer.query, trace.searches[0].nprobe),
            vector=base64.b64encode(trace.vector.astype("<f4").tobytes()).decode(),
            searches=[search.as_json() for search in trace.searches],
            seen=len(trace.candidates),
            candidates=tuple(
                Candidate(int(hit.position), {name: float(x) for name, x in hit.scores.items()})
                for hit in trace.candidates[:MAX_CANDIDATES]
            ),
            answer=plain,
        )
        self._size += len(line_of(asdict(answered)))
        if self._size > MAX_BYTES // 2:  # it is written with spaces
            raise UsageError(
                "--receipt",
                expected=f"answers of at most {format_size(MAX_BYTES // 2)}",
                found="more",
                do="ask for fewer results, or write a receipt for fewer queries at a time",
            )
        self._answered.append(answered)
        self._lines.append(line_of(plain))

    def receipt(self) -> Receipt:
        """Of all answers so far."""
        manifest = self._require_generation()
        generation, collection = self._generation, self._searcher.collection
        queries = [answered.query.query({}, answered.decoded()) for answered in self._answered]
        stages = {stage.name: stage for query in queries for stage in query.stages}
        encoded, ran = any(query.inputs for query in queries), ""
        if encoded:
            encoder = self._searcher.encoder
            ran = f"{encoder.precision} on {encoder.device}"
        identity = collection.identity
        return Receipt(
            kind=KIND,
            collection=collection.folder.url,
            generation=StoredGeneration.of(generation.number, manifest, generation.manifest),
            encoder=StoredEncoder(identity.encoder, identity.fingerprint, ran),
            rerankers=reranker_fingerprints(stages.values(), self._searcher),
            environment=environment(),
            explain=self._explain,
            false_alarms=self._false_alarms,
            queries=tuple(self._answered),
            printed=sum_of(self._lines),
        )

    def write(self, to: str) -> None:
        """Write the receipt to a path or URL; UsageError for one in the collection, StorageError
        where it cannot be written."""
        folder, name = file_to_write(to, self._searcher.collection.folder)
        folder.write_whole(name, self.receipt().to_bytes())


def _freshly_opened(searcher: Searcher) -> OpenIndex:
    """The searcher or, where its codes are not as a fresh open has them, its generation opened
    anew."""
    opened = searcher.generation.opened.copy().values()
    if not any(isinstance(one, ColumnIndex) and one.in_parts for one in opened):
        return searcher
    view = searcher.view()
    view.generation = open_whole(searcher.collection.folder, view.generation.number)
    return view


def answer_as_json(answer: Answer, explain: bool) -> dict[str, Any]:
    """As `Answer.as_json`, without the seconds, which are never the same."""
    plain = answer.as_json()
    del plain["seconds"]
    return plain | (explained(answer) if explain else {})


def explained(answer: Answer) -> dict[str, Any]:
    """{"explain": [...]}, the ways of its searches."""
    assert answer.trace is not None
    return {"explain": [search.as_json() for search in answer.trace.searches]}


def environment() -> dict[str, str]:
    """What the last bits of a score may depend on, beside the index and the models."""
    faiss = load_faiss()
    # In numpy's words, such as X86_V3 X86_V4: its arithmetic, and FAISS's, is chosen by these.
    simd: Any = np.show_config(mode="dicts")
    found = simd["SIMD Extensions"].get("found", [])
    return {
        **package_versions(),
        "faiss": faiss.__version__,
        "duckdb": metadata.version("duckdb"),
        "processor": " ".join([platform.machine(), *found]),
        "threads": str(faiss.omp_get_max_threads()),
    }
