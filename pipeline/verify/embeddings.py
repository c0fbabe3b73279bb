"""Ledger entries and embeddings compared with each other, and rows with what every row must
have."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from chiasm.pipeline.collection import (
    Collection,
    EmbeddingFile,
    Footer,
    LedgerEntry,
    arrow_schema,
    earlier_parquet_name,
    embedded_shard_ids,
    find_embedding,
    ledger_name,
    member_prefixes,
    parquet_name,
    read_entry,
    read_footer,
    shard_id_of,
    shard_of_entry,
    stored_parquet_name,
    vectors_of,
)
from chiasm.pipeline.encoders import JOINT
from chiasm.pipeline.errors import ChiasmError, CollectionError
from chiasm.pipeline.records import COLUMNS, IMAGE, TEXT
from chiasm.pipeline.storage import Folder, display_name, is_temporary
from chiasm.pipeline.verify.findings import Finding
from chiasm.pipeline.verify.sources import check_sources
from chiasm.pipeline.verify.tokens import check_tokens

NORM_TOLERANCE = 2e-3  # float16 rounds each number by up to 1/2048 of itself


def check_shards(collection: Collection, checked: Counter[str]) -> Iterator[Finding]:
    """Every shard that has a ledger entry, a Parquet file, or both. Counts what it read in
    `checked`: shards, rows, vectors."""
    folder = collection.folder
    shard_ids = filter(None, map(shard_of_entry, folder.list("ledger")))
    filled = filled_columns(collection)
    done: list[tuple[LedgerEntry, EmbeddingFile]] = []
    for shard_id in sorted({*shard_ids, *embedded_shard_ids(folder)}):
        checked["shards"] += 1
        shard = ShardCheck(collection, shard_id, filled)
        try:
            yield from shard.run(checked)
        except ChiasmError as error:
            yield Finding.of(f"shard {shard_id}", error)
        if shard.done is not None:
            done.append(shard.done)
    yield from _check_names(folder)
    yield from check_sources(folder, done, checked)


def _check_names(folder: Folder) -> Iterator[Finding]:
    """What programs that read the folder pass over, and what they read that chiasm does not."""
    for name in [*folder.list("embeddings"), *folder.folders("embeddings")]:
        shard_id = None if is_temporary(name) else shard_id_of(name)
        path = shlex.quote(display_name(folder.url_of(name)))
        if shard_id is None:
            if not name.rpartition("/")[2].startswith(("_", ".")):
                what = "pandas, pyarrow and Spark read all of this folder; this is no shard's"
                yield Finding(name, what, f"move {path} elsewhere")
        elif name == earlier_parquet_name(shard_id):
            yield _passed_over(folder, name, shard_id)
        elif name != parquet_name(shard_id):
            what = f"a second file of shard {shard_id}, which pandas, pyarrow and Spark read too"
            if folder.exists(stored_parquet_name(folder, shard_id)):
                yield Finding(name, what, f"delete {path}")
            else:
                what = f"a file of shard {shard_id} under a name that it never has"
                yield Finding(name, what, f"rename it to {parquet_name(shard_id)}")


def _passed_over(folder: Folder, name: str, shard_id: str) -> Finding:
    what = "pandas, pyarrow and Spark pass over a file with such a name"
    if folder.exists(parquet_name(shard_id)):
        what = f"{what}; newer rows of the shard are in {parquet_name(shard_id)}"
        return Finding(name, what, f"delete {shlex.quote(display_name(folder.url_of(name)))}")
    path = shlex.quote(display_name(folder.url))  # after --, since an id may begin with a dash
    fix = f"run chiasm forget {path} -- {shlex.quote(shard_id)} and embed the shard again"
    return Finding(name, what, f"{fix}: it gets a name that they read")


def filled_columns(collection: Collection) -> set[str]:
    """The vector columns that the collection's encoder fills.

    The identity of schema 2 names them. That of schema 1 does not: they are those that have a
    vector in any file, mostly all in the first, and all three where no file has a vector."""
    if collection.identity.dims:
        return set(collection.identity.dims)
    found: set[str] = set()
    for shard_id in embedded_shard_ids(collection.folder):
        try:
            file = find_embedding(collection.folder, shard_id)
            if file is None:
                continue
            with file.open() as parquet:
                left = [name for name in COLUMNS if name in set(parquet.schema_arrow.names) - found]
            table = file.read(left)
        except CollectionError:
            continue  # damaged, which its own check reports
        found |= {name for name in left if table[name].null_count < len(table)}
        if found.issuperset(COLUMNS):
            break
    return found or set(COLUMNS)


class ShardCheck:
    """The checks of one shard."""

    def __init__(self, collection: Collection, shard_id: str, filled: set[str]) -> None:
        """filled: the columns that the encoder fills."""
        self.folder, self.identity = collection.folder, collection.identity
        self.encoder = collection.encoder or self.identity.encoder
        self.filled = filled
        self.shard_id, self.where = shard_id, f"shard {shard_id}"
        self.source = "SHARD"  # its path or URL, once a ledger entry or a footer has named it
        self.done: tuple[LedgerEntry, EmbeddingFile] | None = None  # where both agree

    def run(self, checked: Counter[str]) -> Iterator[Finding]:
        """Raises ChiasmError for a file that cannot be read."""
        entry = read_entry(self.folder, self.shard_id)
        has_embeddings = self.folder.exists(stored_parquet_name(self.folder, self.shard_id))
        if entry is not None:
            self._name_source(entry.source.url)
            yield from self._check_entry(entry, has_embeddings)
        if has_embeddings:
            footer = read_footer(self.folder, self.shard_id)
            if footer.source.id != self.shard_id:
                what = f"its Parquet footer names shard {footer.source.id}: it is a copy"
                yield Finding(self.where, what, self._forget())
                return  # no other advice helps
            self._name_source(footer.source.url)
            if entry is None:
                yield Finding(self.where, "embeddings without a ledger entry", self._embed_again())
            elif footer.agreeing(entry) is None:
                yield self._disagreement(footer, entry)
            file = EmbeddingFile(self.folder, footer)
            agreeing = footer.agreeing(entry)
            if agreeing is not None:
                self.done = agreeing, file
                if footer.source != agreeing.source:
                    yield self._half_relocated(footer)
            yield from self._check_footer(file)
            with file.open() as parquet:
                names = set(parquet.schema_arrow.names)
            if names.issuperset(self._schema().names):
                yield from self._check_rows(file, checked)

    def _schema(self) -> pa.Schema:
        return arrow_schema(self.identity.columns, self.identity.tokens)

    def _name_source(self, url: str) -> None:
        self.source = shlex.quote(display_name(url))

    def _embed_again(self) -> str:
        """Enough where ledger and footer disagree: the shard then counts as not done."""
        collection = shlex.quote(display_name(self.folder.url))
        encoder = shlex.quote(self.encoder)
        return f"run chiasm embed {self.source} --to {collection} --encoder {encoder}"

    def _forget(self) -> str:
        path = shlex.quote(display_name(self.folder.url))
        return f"run chiasm forget {path} -- {shlex.quote(self.shard_id)}"

    def _replace(self) -> str:
        """Embedding alone would skip the shard, because its ledger and footer agree."""
        stored = stored_parquet_name(self.folder, self.shard_id)
        name = shlex.quote(display_name(self.folder.url_of(stored)))
        return f"delete {name} and {self._embed_again()}"

    def _check_entry(self, entry: LedgerEntry, has_embeddings: bool) -> Iterator[Finding]:
        if entry.source.id != self.shard_id:
            what = f"its ledger entry names shard {entry.source.id}: it is a copy"
            yield Finding(self.where, what, self._forget())
        samples = json.loads(self.folder.read_bytes(ledger_name(self.shard_id))).get("samples")
        if entry.samples != samples:
            counts = f"{entry.rows} rows + {entry.dropped_count} dropped"
            fix = self._replace() if has_embeddings else self._embed_again()
            yield Finding(self.where, f"{counts} in the ledger, of {samples} samples", fix)
        if not has_embeddings and entry.quarantined is None:
            yield Finding(self.where, "a ledger entry without embeddings", self._embed_again())

    def _half_relocated(self, footer: Footer) -> Finding:
        what = f"its footer names {display_name(footer.source.url)}, its ledger entry another place"
        fix = "run the chiasm relocate that was killed once more"
        return Finding(self.where, what, fix)

    def _disagreement(self, footer: Footer, entry: LedgerEntry) -> Finding:
        pairs = {
            "source": (footer.as_embedded, entry.as_embedded),
            "edition": (footer.edition, entry.edition),
            "rows": (footer.rows, entry.rows),
            "dropped": (footer.dropped, entry.dropped_count),
        }
        unequal = "; ".join(f"{name} {a} and {b}" for name, (a, b) in pairs.items() if a != b)
        unequal = unequal or f"the ledger says it was quarantined: {entry.quarantined}"
        what = f"Parquet footer and ledger entry disagree ({unequal})"
        return Finding(self.where, what, self._embed_again())

    def _check_footer(self, file: EmbeddingFile) -> Iterator[Finding]:
        footer = file.footer
        if footer.fingerprint != self.identity.fingerprint:
            encoder = f"{footer.encoder} ({footer.fingerprint[:12]})"
            what = f"embedded by {encoder}, not by the collection's {self.identity.encoder}"
            yield Finding(self.where, what, self._embed_again())
        with file.open() as parquet:
            rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
        if rows != footer.rows:
            yield Finding(
                self.where, f"{rows} rows in the file, {footer.rows} in its footer", self._replace()
            )
        expected = self._schema()
        if not schema.equals(expected, check_metadata=False):
            unequal = [field.name for field in expected if field not in list(schema)]
            what = f"column types are not those of dim {self.identity.dim}: {', '.join(unequal)}"
            yield Finding(self.where, what, self._replace())

    def _check_rows(self, file: EmbeddingFile, checked: Counter[str]) -> Iterator[Finding]:
        table = file.read()
        checked["rows"] += len(table)
        keys = Counter(table["key"].to_pylist())
        if len(keys) < len(table):
            key, times = keys.most_common(1)[0]
            yield Finding(self.where, f"duplicate key: {times} rows have {key!r}", self._replace())
        if len(table) and table["shard"].unique().to_pylist() != [file.shard_id]:
            yield Finding(self.where, "rows whose column shard names another", self._replace())
        has: dict[str, np.ndarray] = {}
        for column in self.identity.columns:
            vectors, has[column] = vectors_of(table[column])
            checked["vectors"] += int(has[column].sum())
            norms = np.linalg.norm(vectors[has[column]].astype(np.float32), axis=1)
            wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))
            if len(wrong):
                row, norm = int(np.flatnonzero(has[column])[wrong[0]]), norms[wrong[0]]
                what = f"{len(wrong)} {column} vectors without unit norm"
                yield Finding(
                    self.where, f"{what}, the first in row {row}: {norm:.4g}", self._replace()
                )
        for what in check_tokens(table, self.identity.tokens, has, checked):
            yield Finding(self.where, what, self._replace())
        yield from self._check_nulls(table, has)

    def _check_nulls(self, table: pa.Table, has: dict[str, np.ndarray]) -> Iterator[Finding]:
        """A cell is null where, and only where, the member or caption behind it is missing. A joint
        vector is there where every modality of the encoder is, and nowhere where one alone is; in
        between, where there are three, the encoder decides."""
        prefixes = member_prefixes(self.identity.columns)
        present = {name: _is_valid(table[f"{prefix}member"]) for name, prefix in prefixes.items()}
        present[TEXT] = _is_valid(table["caption"])
        modalities = [present[column] for column in self.filled - {JOINT}]
        none = np.zeros(len(table), bool)
        joint = np.logical_and.reduce(modalities) if modalities else none
        some = np.sum(modalities, axis=0) >= 2 if modalities else none
        expected = {**present, JOINT: joint | (some & has[JOINT])}
        for column, rows in expected.items():
            wanted = rows if column in self.filled else none
            yield from self._compare(f"{column} vector", has[column], wanted)
        for name in ("width", "height"):
            yield from self._compare(name, _is_valid(table[name]), present[IMAGE])
        for modality, prefix in prefixes.items():
            for name in (f"{prefix}sha256", f"{prefix}size"):
                yield from self._compare(name, _is_valid(table[name]), present[modality])

    def _compare(self, name: str, found: np.ndarray, expected: np.ndarray) -> Iterator[Finding]:
        """A finding where cells are null that should not be, or the reverse; both (rows,) bool."""
        wrong = np.flatnonzero(found != expected)
        if len(wrong):
            row = int(wrong[0])
            state = "is null" if expected[row] else "is not null, though its source is,"
            what = f"{name} {state} in {len(wrong)} rows, the first {row}"
            yield Finding(self.where, what, self._replace())


def _is_valid(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.is_valid())
