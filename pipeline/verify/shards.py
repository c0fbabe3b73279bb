"""Ledgers and embeddings checked against each other and against what every row promises."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from chiasm.pipeline.collection import (
    Collection,
    EmbeddingFile,
    Footer,
    Identity,
    LedgerEntry,
    arrow_schema,
    ledger_name,
    parquet_name,
    read_entry,
    read_footer,
    vectors_of,
)
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.records import COLUMNS
from chiasm.pipeline.storage import is_temporary

LENGTH_TOLERANCE = 2e-3  # float16 rounds each number by up to 1/2048 of itself


@dataclass(frozen=True)
class Finding:
    """A broken promise: `where` it was looked for, `what` is wrong."""

    where: str
    what: str

    def __str__(self) -> str:
        return " ".join(f"{self.where}: {self.what}".split())


def check_shards(collection: Collection, checked: Counter[str]) -> Iterator[Finding]:
    """Every shard that has a ledger entry or a Parquet file, or both."""
    folder = collection.folder
    names = [*folder.list("ledger"), *folder.list("embeddings")]
    shard_ids = {
        name.rpartition("/")[2].removesuffix(".json").removesuffix(".parquet")
        for name in names
        if not is_temporary(name)
    }
    for shard_id in sorted(shard_ids):
        checked["shards"] += 1
        try:
            yield from _check_shard(collection, shard_id, checked)
        except ChiasmError as error:
            yield Finding(f"shard {shard_id}", str(error))


def _check_shard(collection: Collection, shard_id: str, checked: Counter[str]) -> Iterator[Finding]:
    folder, where = collection.folder, f"shard {shard_id}"
    entry = read_entry(folder, shard_id)
    written = folder.exists(parquet_name(shard_id))
    if entry is None:
        yield Finding(where, "embeddings without a ledger entry: run chiasm embed again")
    elif entry.source.id != shard_id:
        yield Finding(where, f"its ledger entry is about shard {entry.source.id}")
    if entry is not None:
        samples = json.loads(folder.read_bytes(ledger_name(shard_id))).get("samples")
        if entry.rows + len(entry.dropped) != samples:
            told = f"{entry.rows} rows + {len(entry.dropped)} dropped"
            yield Finding(where, f"{told} in the ledger, of {samples} samples")
        if not written and entry.quarantined is None:
            yield Finding(where, "a ledger entry without embeddings: run chiasm embed again")
    if written:
        footer = read_footer(folder, shard_id)
        if entry is not None:
            yield from _disagreements(where, footer, entry)
        file = EmbeddingFile(folder, footer)
        yield from _check_footer(where, file, collection.identity, shard_id)
        yield from _check_rows(where, file, checked)


def _disagreements(where: str, footer: Footer, entry: LedgerEntry) -> Iterator[Finding]:
    if footer.agrees_with(entry):
        return
    pairs = {
        "source": (footer.source, entry.source),
        "edition": (footer.edition, entry.edition),
        "rows": (footer.rows, entry.rows),
        "dropped": (footer.dropped, len(entry.dropped)),
    }
    unlike = [f"{name} {a} and {b}" for name, (a, b) in pairs.items() if a != b]
    told = "; ".join(unlike) or f"the ledger says it was set aside: {entry.quarantined}"
    yield Finding(where, f"footer and ledger disagree ({told}): run chiasm embed again")


def _check_footer(
    where: str, file: EmbeddingFile, identity: Identity, shard_id: str
) -> Iterator[Finding]:
    footer = file.footer
    if footer.source.id != shard_id:
        yield Finding(where, f"its embeddings are those of shard {footer.source.id}")
    if footer.fingerprint != identity.fingerprint:
        made = f"{footer.encoder} ({footer.fingerprint[:12]})"
        yield Finding(where, f"embedded by {made}, not by the collection's {identity.encoder}")
    with file.open() as parquet:
        rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
    if rows != footer.rows:
        yield Finding(where, f"{rows} rows in the file, {footer.rows} in its footer")
    expected = arrow_schema(identity.columns)
    if not schema.equals(expected, check_metadata=False):
        unlike = [field.name for field in expected if field not in list(schema)]
        yield Finding(where, f"columns are not those of dim {identity.dim}: {', '.join(unlike)}")


def _check_rows(where: str, file: EmbeddingFile, checked: Counter[str]) -> Iterator[Finding]:
    table = file.read()
    checked["rows"] += len(table)
    keys = table["key"]
    doubled = Counter(keys.to_pylist())
    if len(doubled) < len(table):
        key, times = doubled.most_common(1)[0]
        yield Finding(where, f"key {key!r} names {times} rows: ids are not unique")
    if len(table) and table["shard"].unique().to_pylist() != [file.shard_id]:
        yield Finding(where, "rows that name another shard")
    has: dict[str, np.ndarray] = {}
    for column in COLUMNS:
        vectors, has[column] = vectors_of(table[column])
        checked["vectors"] += int(has[column].sum())
        lengths = np.linalg.norm(vectors[has[column]].astype(np.float32), axis=1)
        bad = np.flatnonzero(~(np.abs(lengths - 1) <= LENGTH_TOLERANCE))
        if len(bad):
            row, length = int(np.flatnonzero(has[column])[bad[0]]), lengths[bad[0]]
            told = f"{len(bad)} {column} vectors are not of unit length"
            yield Finding(where, f"{told}, the first in row {row}: {length:.4g}")
    yield from _check_holes(where, table, has)


def _check_holes(where: str, table: pa.Table, has: dict[str, np.ndarray]) -> Iterator[Finding]:
    """A vector is null where, and only where, what it is made from is missing."""
    pictured, captioned = _there(table["member"]), _there(table["caption"])
    same = {
        "image vector": (has["image"], pictured),
        "text vector": (has["text"], captioned),
        "joint vector": (has["joint"], pictured & captioned),
        "width": (_there(table["width"]), pictured),
        "height": (_there(table["height"]), pictured),
        "sha256": (_there(table["sha256"]), pictured),
        "size": (_there(table["size"]), pictured),
    }
    for name, (found, expected) in same.items():
        unlike = np.flatnonzero(found != expected)
        if len(unlike):
            row = int(unlike[0])
            kind = "missing" if expected[row] else "there without its source"
            yield Finding(where, f"{name} {kind} in {len(unlike)} rows, the first {row}")


def _there(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.is_valid())
