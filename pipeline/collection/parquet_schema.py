"""The Parquet file of a shard: its columns, its row groups, and what its footer says."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated

import pyarrow as pa
from pydantic import Field

from chiasm.pipeline.collection.ledger import LedgerEntry, made_of
from chiasm.pipeline.collection.token_columns import token_fields
from chiasm.pipeline.records import COLUMNS, IMAGE, Shard
from chiasm.pipeline.storage import is_temporary

SCHEMAS = (1, 2, 3)  # that are read
Width = Annotated[int, Field(ge=1, le=1 << 20)]  # of a vector; more than any model has
FOOTER_KEY = b"chiasm"
FOLDER = "embeddings"

_MARK, _SUFFIX = "s~", ".parquet"

# Where the member that a row was made from is, and its digest; `member_prefixes` names the columns.
MEMBER_FIELDS = {
    "sha256": pa.string(),
    "member": pa.string(),
    "offset": pa.int64(),
    "size": pa.int64(),
}


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says of itself, stored as JSON under the key `chiasm` of its metadata.

    `rows` and `dropped` count samples; source, edition and counts repeat the ledger's, and the two
    have to agree. `encoder`, `fingerprint`, `dim`, `dims` and `tokens` repeat collection.json;
    `dims` is stored where `schema` is 2 or 3, `tokens` where it is 3. `embedded_from`: the shard as
    it was embedded, stored where it has been relocated since.
    """

    source: Shard
    edition: str
    rows: int
    dropped: int
    encoder: str
    fingerprint: str
    dim: Width
    schema: int = 1
    dims: Mapping[str, Width] = field(default_factory=dict)
    embedded_from: Shard | None = None
    tokens: Mapping[str, Width] = field(default_factory=dict)

    @property
    def as_embedded(self) -> Shard:
        """The shard as it was when its rows were made; its edition is of that."""
        return self.embedded_from or self.source

    def made_of(self, shard: Shard) -> Shard:
        """The shard that decides the edition of what is embedded of `shard` now."""
        return made_of(shard, self.source, self.embedded_from)

    def agrees_with(self, entry: LedgerEntry | None) -> bool:
        # Of a shard that is being relocated only one of the two may name the new place yet.
        return (
            entry is not None
            and entry.quarantined is None
            and (entry.as_embedded, entry.edition) == (self.as_embedded, self.edition)
            and (entry.rows, entry.dropped_count) == (self.rows, self.dropped)
        )

    def agreeing(self, entry: LedgerEntry | None) -> LedgerEntry | None:
        """The entry of these rows: `entry`, or the one that it replaces; None where neither
        agrees."""
        for one in (entry, None if entry is None else entry.replaced):
            if self.agrees_with(one):
                return one
        return None

    def to_json(self) -> str:
        fields = asdict(self)
        if self.schema == 1:
            del fields["dims"]
        if self.schema < 3:
            del fields["tokens"]
        if self.embedded_from is None:
            del fields["embedded_from"]
        return json.dumps(fields, sort_keys=True)


def schema_version(dims: Mapping[str, int], tokens: Mapping[str, int] | None = None) -> int:
    """1 for pictures and texts of one width, 2 for any other columns, 3 with columns of tokens."""
    if tokens:
        return 3
    alike = len(set(dims.values())) == 1
    return 1 if alike and set(dims) <= set(COLUMNS) else 2


def vector_columns(dims: Mapping[str, int]) -> dict[str, int]:
    """Every vector column of a file and its width: `image`, `text` and `joint` are always there,
    null where the encoder does not fill them."""
    width = next(iter(dims.values()))
    return {column: dims.get(column, width) for column in COLUMNS} | dict(dims)


def arrow_schema(dims: Mapping[str, int], tokens: Mapping[str, int] | None = None) -> pa.Schema:
    """The columns of docs/formats.md; vectors are null in rows that lack the modality.

    dims: the width of each column that the encoder fills. A modality M beyond pictures and texts
    adds M, M_member, M_offset, M_size and M_sha256. tokens: the width of a token's vector, by
    modality that has a column of them (token_columns.py)."""
    columns = vector_columns(dims)
    others = [column for column in columns if column not in COLUMNS]
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("shard", pa.string(), nullable=False),
            ("caption", pa.string()),
            ("captions", pa.list_(pa.string())),
            ("json", pa.string()),
            *((column, _vector(columns[column])) for column in COLUMNS),
            ("width", pa.int32()),
            ("height", pa.int32()),
            *_member_fields(""),
            *((column, _vector(columns[column])) for column in others),
            *itertools.chain.from_iterable(_member_fields(f"{column}_") for column in others),
            *token_fields(tokens or {}),
        ]
    )


def _vector(width: int) -> pa.DataType:
    return pa.list_(pa.field("element", pa.float16(), nullable=False), width)


def _member_fields(prefix: str) -> list[tuple[str, pa.DataType]]:
    return [(f"{prefix}{name}", kind) for name, kind in MEMBER_FIELDS.items()]


def member_prefixes(columns: Iterable[str]) -> dict[str, str]:
    """By modality that is made from a member, what the names of its MEMBER_FIELDS begin with: ""
    for pictures, `M_` for every other modality M among the vector columns."""
    return {IMAGE: ""} | {column: f"{column}_" for column in columns if column not in COLUMNS}


def parquet_name(shard_id: str) -> str:
    """The name of a shard's file. pandas, pyarrow and Spark pass over files whose names begin with
    `_` or `.`, so a mark stands before an id that begins with neither a letter nor a digit. No id
    has a `~`, so a name always tells the id."""
    return f"{FOLDER}/{_MARK if _is_passed_over(shard_id) else ''}{shard_id}{_SUFFIX}"


def earlier_parquet_name(shard_id: str) -> str | None:
    """The name that earlier versions gave the file, None where it was the same."""
    return f"{FOLDER}/{shard_id}{_SUFFIX}" if _is_passed_over(shard_id) else None


def shard_id_of(name: str) -> str | None:
    """The shard whose file has this name, today's or the earlier one; None for other names."""
    base = name.removeprefix(f"{FOLDER}/")
    if not base.endswith(_SUFFIX) or is_temporary(name):
        return None
    return base.removesuffix(_SUFFIX).removeprefix(_MARK)


def _is_passed_over(shard_id: str) -> bool:
    return re.match("[A-Za-z0-9]", shard_id) is None
