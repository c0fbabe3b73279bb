"""A receipt -> the same answers from the generation that gave them, or what changed since.

The stored vectors are searched, so neither the encoder nor its last bits decide; in the same
batches, as the last bits of a reranker may depend on these. Which way a search takes depends on its
query and filter alone. Encoding the queries again is a comparison alone, but for columns that are
ranked by tokens, which receipts do not hold; it comes first, since torch is loaded before FAISS
(index/faiss_runtime.py). What still can change the last bits of a
score is another processor or another version of numpy, and for stages that read pictures and texts
(`match`, `st`) also torch, its number of threads and the device. So these are noted, and count only
where an answer differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from chiasm.index.queries import PictureBytes, Query
from chiasm.index.query import check_stages, encode_queries, reranker_fingerprints
from chiasm.index.receipts.differences import differences
from chiasm.index.receipts.record import (
    Answered,
    Receipt,
    StoredGeneration,
    line_of,
    read_receipt,
    sum_of,
)
from chiasm.index.receipts.recorder import answer_as_json, environment
from chiasm.index.receipts.stored_query import StoredPicture
from chiasm.index.results import Answer
from chiasm.index.retrieve import Searcher, retrieve_from
from chiasm.index.segments import (
    Manifest,
    manifest_name,
    numbers,
    open_whole,
    read_if_there,
)
from chiasm.pipeline.collection import Collection
from chiasm.pipeline.errors import ChiasmError, CollectionError
from chiasm.pipeline.pretrained import EncoderSettings

# The largest difference of one number of a unit vector that is rounding: bfloat16 on two devices
# differs by some 4e-3. Another model would have another fingerprint.
ROUNDING = 1e-2


@dataclass
class Replay:
    """lines: the answers as `search --json` printed them, where `same`; else none. changes: what is
    not as it was, one line each. notes: what may decide the last bits of a score, and did not."""

    lines: list[str] = field(default_factory=list)
    same: bool = False
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def replay(
    path: str,
    *,
    collection: str | None = None,
    encoding: EncoderSettings | None = None,
    encode: bool = True,
    encoder: str | None = None,
) -> Replay:
    """Search once more what the receipt at `path` says.

    collection: where it is now, by default where it was. encoding: how the models run. encode:
    whether queries are encoded again and compared. encoder: as `open_collection` takes it. Raises
    as `read_receipt` does, CollectionError where there is no collection; where `encoder` is given,
    also as `Collection.load_encoder` does.
    """
    receipt = read_receipt(path)
    where = collection or receipt.collection
    opened = Collection.open(where, encoder)
    run = _Run(receipt, opened, encoding or EncoderSettings())
    run.compare_identity()
    searcher = run.open_generation()
    if searcher is not None:
        if encoder is not None:
            _ = searcher.encoder  # one that was named is refused, not only not compared
        run.load_pictures()
        if encode:
            run.encode(searcher)
        run.search(searcher)
    run.compare_environment()
    return run.found


class _Run:
    """One replay, step by step; each adds to what is found."""

    def __init__(self, receipt: Receipt, collection: Collection, encoding: EncoderSettings) -> None:
        self.receipt, self.collection, self.encoding = receipt, collection, encoding
        self.found = Replay()
        self.pictures: dict[StoredPicture, PictureBytes] = {}

    def compare_environment(self) -> None:
        now = environment()
        for name, before in self.receipt.environment.items():
            if name in now and now[name] != before:
                self.found.notes.append(f"{name} was {before}, is {now[name]}")

    def compare_identity(self) -> None:
        before, now = self.receipt.encoder, self.collection.identity
        if (before.name, before.fingerprint) != (now.encoder, now.fingerprint):
            self.found.changes.append(
                f"the collection's encoder was {before.name} ({before.fingerprint[:12]}), "
                f"is {now.encoder} ({now.fingerprint[:12]})"
            )

    def open_generation(self) -> Searcher | None:
        """The generation that answered, None where it is not there as it was."""
        before, folder = self.receipt.generation, self.collection.folder
        name = f"generation {before.number:06d}"
        content = read_if_there(folder, manifest_name(before.number))
        if content is None:
            kept = ", ".join(f"{number:06d}" for number in numbers(folder)) or "none"
            self.found.changes.append(
                f"{name} is gone (there are: {kept}); one that is not live is kept for "
                "index.keep_seconds, and longer among the last index.keep_generations"
            )
            return None
        try:
            manifest = Manifest.from_json(content, folder, manifest_name(before.number))
            now = StoredGeneration.of(before.number, content, manifest)
            if now != before:
                self.found.changes += _changes_of_generation(name, before, now)
                return None
            generation = open_whole(folder, before.number)
        except CollectionError as error:
            self.found.changes.append(f"{name}: {_without_advice(error)}")
            return None
        widths = {len(answered.decoded()) for answered in self.receipt.queries}
        if odd := widths - {self.collection.identity.dim}:
            width = self.collection.identity.dim
            self.found.changes.append(f"vectors were of width {min(odd)}, are of {width}")
            return None
        return Searcher(self.collection, generation, self.encoding)

    def load_pictures(self) -> None:
        for number, answered in enumerate(self.receipt.queries, 1):
            for picture, what in answered.query.pictures:
                if picture not in self.pictures:
                    try:
                        self.pictures[picture] = picture.load(what)
                    except ValueError as error:
                        self.found.changes.append(f"query {number}: {error}")

    def batches(self) -> Iterator[tuple[list[Answered], list[Query], np.ndarray]]:
        """Those that were answered together, their queries, and their vectors (Q, D) float32."""
        for _, group in groupby(self.receipt.queries, lambda answered: answered.batch):
            some = list(group)
            vectors = [answered.decoded() for answered in some]
            queries = [
                answered.query.query(self.pictures, vector)
                for answered, vector in zip(some, vectors, strict=True)
            ]
            yield some, queries, np.stack(vectors)

    def search(self, searcher: Searcher) -> None:
        """Answer all queries, and compare."""
        answers: list[Answer] = []
        try:
            self._load_models(searcher)
            for _, queries, vectors in self.batches():
                answers += retrieve_from(queries, searcher, vectors)
        except ChiasmError as error:
            self.found.changes.append(f"the search cannot be done again: {_without_advice(error)}")
        else:
            self._compare(answers)

    def _load_models(self, searcher: Searcher) -> None:
        """Those that stages and calibrations need; and compare them."""
        queries = [query for _, some, _ in self.batches() for query in some]
        if any(query.calibrated for query in queries):
            _ = searcher.encoder
        stages = {stage.name: stage for query in queries for stage in query.stages}
        check_stages(stages.values())
        for name, now in reranker_fingerprints(stages.values(), searcher).items():
            if (before := self.receipt.rerankers.get(name, "none")) != now:
                self.found.changes.append(f"reranker {name} was {before[:12]}, is {now[:12]}")

    def _compare(self, answers: list[Answer]) -> None:
        plain = [answer_as_json(answer, self.receipt.explain) for answer in answers]
        lines = [line_of(answer) for answer in plain]
        self.found.same = sum_of(lines) == self.receipt.printed
        if self.found.same:
            self.found.lines = lines
            return
        pairs = zip(self.receipt.queries, plain, strict=True)
        lines = [
            line
            for number, (answered, now) in enumerate(pairs, 1)
            for line in differences(number, answered.answer, now)
        ]
        self.found.changes += lines or ["the bytes of the answers differ"]

    def encode(self, searcher: Searcher) -> None:
        """Make the queries' vectors once more, of those whose pictures are there; and compare."""
        number, most = 0, 0.0
        encoded = False
        for some, queries, vectors in self.batches():
            usable = [
                at
                for at, (answered, query) in enumerate(zip(some, queries, strict=True))
                if query.inputs and all(one in self.pictures for one, _ in answered.query.pictures)
            ]
            if usable:
                try:
                    again = encode_queries(
                        [queries[at] for at in usable], searcher.encoder, searcher.dim
                    )
                except ChiasmError as error:
                    self._encoder_differs(error)
                    return
                encoded = True
                apart = np.abs(again - vectors[usable]).max(axis=1)
                most = max(most, float(apart.max()))
                for at, difference in zip(usable, apart.tolist(), strict=True):
                    if difference > ROUNDING:
                        self.found.changes.append(
                            f"query {number + at + 1}: encoded again, its vector differs by "
                            f"{difference:.2g}"
                        )
            number += len(some)
        if encoded:
            ran = f"{searcher.encoder.precision} on {searcher.encoder.device}"
            if ran != self.receipt.encoder.ran:
                self.found.notes.append(f"the encoder ran {self.receipt.encoder.ran}, now {ran}")
            if 0 < most <= ROUNDING:
                self.found.notes.append(f"encoded again, vectors differ by {most:.2g} at most")

    def _encoder_differs(self, error: ChiasmError) -> None:
        """A collection's encoder that is another one by now is a change; one that cannot be loaded
        here is only not compared."""
        changed = isinstance(error, CollectionError)
        lines = self.found.changes if changed else self.found.notes
        what = "the encoder is another" if changed else "the queries were not encoded again"
        lines.append(f"{what}: {error}")


def _changes_of_generation(name: str, before: StoredGeneration, now: StoredGeneration) -> list[str]:
    """What differs between two manifests of one number."""
    lines = [
        f"{name}: its manifest was {before.manifest.blake2b[:12]} (run {before.run}), "
        f"is {now.manifest.blake2b[:12]} (run {now.run})"
    ]
    segments = {one.id: one for one in now.segments}
    for one in before.segments:
        other = segments.pop(one.id, None)
        if other is None:
            lines.append(f"segment {one.id} is not in it any more")
        elif other.checksum != one.checksum:
            lines.append(f"segment {one.id} was {one.checksum[:12]}, is {other.checksum[:12]}")
        elif other != one:
            lines.append(f"segment {one.id}: other rows are deleted")
    lines += [f"segment {one} was not in it" for one in segments]
    lines += [
        f"index/{file} was {checksum[:12]}, is {now.shared.get(file, 'not in it')[:12]}"
        for file, checksum in before.shared.items()
        if now.shared.get(file) != checksum
    ]
    return lines


def _without_advice(error: ChiasmError) -> str:
    """What to do about the live index does not help an old generation."""
    return str(ChiasmError(error.what, expected=error.expected, found=error.found))
