"""What a receipt holds, and the JSON file that it is in.

A receipt says what was asked for, with the queries' vectors bit for bit, of which generation, by
which models and packages, which rows were seen, and what was answered. Its last field is a checksum
of all others, so that a receipt that was changed is none.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, FiniteFloat

from chiasm.index.plan import Count
from chiasm.index.receipts.stored_query import StoredQuery
from chiasm.index.segments import FileSum, Manifest
from chiasm.index.sizes import format_size
from chiasm.pipeline.errors import CollectionError, SourceError, UsageError
from chiasm.pipeline.storage import canonical_url, open_stream
from chiasm.pipeline.stored_records import read_record

SCHEMA = 1
KIND = "chiasm search"
MAX_BYTES = 256 << 20  # of a receipt, which is in memory as a whole
MAX_CANDIDATES = 1000  # kept of one query
CHUNK = 1 << 18

Blake2b = Annotated[str, Field(pattern=r"^[0-9a-f]{32}\z")]


@dataclass(frozen=True)
class StoredSegment:
    """A segment of the generation: the checksums of its record, which has those of its files, and
    of the bitmap of its deleted rows, None where none was deleted."""

    id: str
    rows: Count
    checksum: Blake2b
    deleted: Blake2b | None


@dataclass(frozen=True)
class StoredGeneration:
    """manifest: of its file. shared: checksums of the files that are no segment's, by name."""

    number: Count
    run: str
    manifest: FileSum
    segments: tuple[StoredSegment, ...]
    shared: dict[str, Blake2b]

    @classmethod
    def of(cls, number: int, content: bytes, manifest: Manifest) -> StoredGeneration:
        """content: the manifest's file."""
        segments = [
            StoredSegment(
                one.id,
                one.rows,
                one.checksum.blake2b,
                one.deletions.checksum.blake2b if one.deletions else None,
            )
            for one in manifest.segments
        ]
        shared = {file: checksum.blake2b for file, checksum in manifest.shared_files().items()}
        return cls(number, manifest.run, FileSum.of(content), tuple(segments), shared)


@dataclass(frozen=True)
class StoredEncoder:
    """ran: in which precision and where, "" where no query was encoded."""

    name: str
    fingerprint: str
    ran: str


@dataclass(frozen=True)
class Candidate:
    """A row that was seen: its position in the generation, and its score of each stage."""

    position: Count
    scores: dict[str, FiniteFloat]


@dataclass(frozen=True)
class Answered:
    """A query and its answer. batch: queries of one number were answered together, on which the
    last bits of what models give may depend. vector: (D,) float32 in little-endian order and
    base64. searches: as `Explanation.as_json`. seen: how many candidates there were, of which the
    best are here. answer: as it was printed."""

    batch: Count
    query: StoredQuery
    vector: str
    searches: list[dict[str, Any]]
    seen: Count
    candidates: tuple[Candidate, ...]
    answer: dict[str, Any]

    def decoded(self) -> np.ndarray:
        """The vector: (D,) float32. ValueError where it is none."""
        data = base64.b64decode(self.vector, validate=True)
        vector = np.frombuffer(data, "<f4").astype(np.float32)
        if not np.isfinite(vector).all() or not vector.any():
            raise ValueError("a vector of zeros, NaN or infinity")
        return vector

    def require_results(self) -> None:
        """ValueError where the answer is none that chiasm prints."""
        results = self.answer.get("results")
        kinds = {"id": str, "rank": int, "score": int | float}
        if not isinstance(results, list) or not all(
            isinstance(result, dict) and isinstance(result.get(name), kind)
            for result in results
            for name, kind in kinds.items()
        ):
            raise ValueError("results without id, rank and score")


@dataclass(frozen=True)
class Receipt:
    """collection: its URL. rerankers: fingerprints of models by stage. environment: versions of
    packages, the processor, threads. explain: whether answers have that field. false_alarms: the
    rate at which "nothing here matches" is said. printed: size and checksum of the answers as
    `search --json` printed them."""

    kind: Literal["chiasm search"]
    collection: str
    generation: StoredGeneration
    encoder: StoredEncoder
    rerankers: dict[str, str]
    environment: dict[str, str]
    explain: bool
    false_alarms: FiniteFloat | None
    queries: tuple[Answered, ...]
    printed: FileSum
    schema: int = SCHEMA

    def to_bytes(self) -> bytes:
        fields = asdict(self)
        return json.dumps({**fields, "checksum": checksum_of(fields)}, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Receipt:
        """CollectionError for what is no receipt, or one that was changed."""
        what = "a receipt of chiasm search"
        receipt = read_record(data, where, cls, what=what, schema=SCHEMA)
        fields = json.loads(data.decode("utf-8", "surrogatepass"))
        given, found = fields.pop("checksum", "none"), checksum_of(fields)
        if given != found:
            found = f"{found}: it was changed since it was written"
            raise CollectionError(where, expected=f"checksum {given!s:.40}", found=found)
        for number, answered in enumerate(receipt.queries, 1):
            try:
                answered.query.query({}, answered.decoded())
                answered.require_results()
            except (UsageError, TypeError, ValueError) as error:
                raise CollectionError(
                    f"query {number} of {where}", expected="a query", found=str(error)
                ) from error
        return receipt


def read_receipt(path: str) -> Receipt:
    """The receipt in a file, a path or URL. SourceError where it cannot be read, CollectionError
    for what is none."""
    data = bytearray()
    with open_stream(canonical_url(path)) as stream:
        while chunk := stream.read(CHUNK):
            data += chunk
            if len(data) > MAX_BYTES:
                expected = f"a receipt of at most {format_size(MAX_BYTES)}"
                raise SourceError(path, expected=expected, found="more")
    return Receipt.from_bytes(bytes(data), path)


def checksum_of(fields: dict[str, Any]) -> str:
    """The blake2b (16 bytes, hex) of an object's JSON in ASCII, its keys sorted, without spaces."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def line_of(answer: dict[str, Any]) -> str:
    """An answer as it is printed: one line of JSON in ASCII, the same for any terminal."""
    return json.dumps(answer, allow_nan=False)


def sum_of(lines: Iterable[str]) -> FileSum:
    """Of the lines as they are printed, each with its end."""
    return FileSum.of("".join(f"{line}\n" for line in lines).encode())
