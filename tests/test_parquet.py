"""Embeddings at rest: what is written is what is read, byte for byte the same each time."""

from __future__ import annotations

import errno
import json
import re
import shlex
from pathlib import Path

import duckdb
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import make_shard
from fake_encoder import FakeEncoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chiasm.index import build_index
from chiasm.index.verify import check
from chiasm.pipeline.collection import (
    Footer,
    LedgerEntry,
    ParquetWriter,
    embeddings,
    find_embedding,
    parquet_name,
    read_footer,
    write_entry,
)
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.forget import forget
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.records import (
    COLUMNS,
    Batch,
    Decoded,
    Dropped,
    Embedded,
    Origin,
    Place,
    Shard,
    VectorColumn,
)
from chiasm.pipeline.shards import list_shards, shard_id
from chiasm.pipeline.storage import Folder, canonical_url

DIM = 6
DIMS = dict.fromkeys(COLUMNS, DIM)
SHARD = Shard("file:///data/a.tar", "a-0123456789", 4096, "17")


def embedded(keys: list[str], rng: np.random.Generator, holes: bool = False) -> Embedded:
    """Random unit vectors for `keys`; with holes, some rows lack a modality."""
    rows = [
        Decoded(
            key,
            (f"caption {n}", "b"),
            "{}",
            {},
            {"image": Origin(Place(f"{key}.jpg", 512 * n, 100 + n), "ab" * 32, (640, 480))},
        )
        for n, key in enumerate(keys)
    ]
    has = {column: np.ones(len(keys), bool) for column in COLUMNS}
    vectors = {}
    for column in COLUMNS:
        drawn = rng.normal(size=(len(keys), DIM)).astype(np.float32)
        vectors[column] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        if holes:
            has[column] = rng.random(len(keys)) < 0.7
            vectors[column][~has[column]] = 0
    return Embedded(Batch(rows), {c: VectorColumn(vectors[c], has[c]) for c in COLUMNS})


def footer(rows: int, dropped: int = 0, edition: str = "00000001") -> Footer:
    return Footer(SHARD, edition, rows, dropped, "fake", "f" * 32, DIM)


def entry(rows: int, dropped: int = 0, edition: str = "00000001") -> LedgerEntry:
    drops = tuple(Dropped(f"d{n}", "decode", "truncated") for n in range(dropped))
    return LedgerEntry(SHARD, edition, rows, drops)


def write(folder: Folder, batches: list[Embedded], run: str = "r1") -> None:
    with ParquetWriter(folder, SHARD, DIMS, run) as writer:
        for batch in batches:
            writer.write(batch)
        write_entry(folder, entry(writer.rows), run)
        writer.commit(footer(writer.rows))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes=st.lists(st.integers(1, 700), max_size=6), seed=st.integers(0, 2**32 - 1))
def test_rows_come_back_in_order_with_their_holes(tmp_path_factory, sizes, seed):
    folder = Folder(str(tmp_path_factory.mktemp("c")))
    rng = np.random.default_rng(seed)
    batches = [
        embedded([f"{n}/{i}" for i in range(size)], rng, True) for n, size in enumerate(sizes)
    ]
    write(folder, batches)
    (file,) = embeddings(folder)
    assert file.rows == sum(sizes)
    keys = [row.key for batch in batches for row in batch.batch.rows]
    assert file.read(["key"])["key"].to_pylist() == keys
    for column in COLUMNS:
        vectors, has = file.vectors(column)
        expected = [batch.columns[column].vectors for batch in batches]
        expected_has = [batch.columns[column].has for batch in batches]
        assert vectors.dtype == np.float16
        assert vectors.shape == (len(keys), DIM)
        if batches:
            np.testing.assert_array_equal(vectors, np.concatenate(expected).astype(np.float16))
            np.testing.assert_array_equal(has, np.concatenate(expected_has))


def test_row_groups_hold_256_rows_and_vectors_are_byte_split(tmp_path):
    folder = Folder(str(tmp_path))
    rng = np.random.default_rng(0)
    write(folder, [embedded([f"{n}-{i}" for i in range(300)], rng) for n in range(8)])
    metadata = pq.ParquetFile(folder.path(parquet_name(SHARD.id))).metadata
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [
        *[256] * 9,
        96,
    ]
    columns = {
        metadata.row_group(0).column(n).path_in_schema: metadata.row_group(0).column(n)
        for n in range(metadata.num_columns)
    }
    image = columns["image.list.element"]
    assert "BYTE_STREAM_SPLIT" in image.encodings
    assert image.compression == "ZSTD"
    assert not any("DICTIONARY" in "".join(column.encodings) for column in columns.values())


def test_the_same_rows_give_the_same_bytes_whatever_the_run_and_the_batches(tmp_path):
    rng = np.random.default_rng(1)
    batches = [embedded([f"{n}-{i}" for i in range(700)], rng) for n in range(3)]
    one, other = Folder(str(tmp_path / "one")), Folder(str(tmp_path / "other"))
    write(one, batches, "r1")
    write(other, batches, "r2")
    name = parquet_name(SHARD.id)
    assert one.read_bytes(name) == other.read_bytes(name)


def test_without_a_commit_nothing_is_left(tmp_path):
    folder = Folder(str(tmp_path))
    with pytest.raises(ZeroDivisionError), ParquetWriter(folder, SHARD, DIMS, "r1") as writer:
        writer.write(embedded(["a"], np.random.default_rng(0)))
        raise ZeroDivisionError
    assert folder.list("embeddings") == []


@pytest.mark.parametrize(
    "account",
    [None, entry(3), entry(2, dropped=1), entry(2, edition="00000002")],
    ids=["no ledger", "other rows", "other drops", "other edition"],
)
def test_a_file_whose_ledger_disagrees_is_not_done(tmp_path, account):
    folder = Folder(str(tmp_path))
    write(folder, [embedded(["a", "b"], np.random.default_rng(0))])
    assert find_embedding(folder, SHARD.id) is not None
    folder.remove(f"ledger/{SHARD.id}.json")
    if account is not None:
        write_entry(folder, account, "r2")
    assert find_embedding(folder, SHARD.id) is None
    assert embeddings(folder) == []


def test_keys_and_captions_that_are_not_utf8_are_kept_readable(tmp_path):
    folder = Folder(str(tmp_path))
    batch = embedded(["caf\udce9"], np.random.default_rng(0))
    write(folder, [batch])
    assert embeddings(folder)[0].read(["key"])["key"].to_pylist() == ["caf\\udce9"]


def test_a_damaged_file_is_told_in_one_line(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write_whole(parquet_name("x-1"), b"PAR1 and no more")
    with pytest.raises(
        CollectionError, match=r"expected a whole Parquet file, found .*; delete it"
    ):
        read_footer(folder, "x-1")


def test_a_foreign_file_is_told_in_one_line(tmp_path):
    import pyarrow as pa

    folder = Folder(str(tmp_path))
    (tmp_path / "embeddings").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "embeddings" / "x-1.parquet")
    with pytest.raises(CollectionError, match="found no chiasm footer"):
        read_footer(folder, "x-1")


FIELDS = {
    "source": {"url": "file:///data/a.tar", "id": "a-0123456789", "size": 4096, "version": "17"},
    "edition": "00000001",
    "rows": 1,
    "dropped": 0,
    "encoder": "fake",
    "fingerprint": "f" * 32,
    "dim": DIM,
    "schema": 1,
}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"later": [1], "source": {**FIELDS["source"], "mtime": 3}}, ""),
        ({"source": None}, "found source: "),
        ({"source": {"url": 3}}, "found source.url: "),
        ({"rows": "many"}, "found rows: "),
        ({"edition": ...}, "found edition: Field required"),
        ({"schema": 4}, "schema version 4, of which this chiasm reads 3"),
        ({"schema": "x"}, "found schema version 'x'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_fields_of_a_footer_that_are_new_are_passed_over_and_wrong_ones_are_one_line(
    tmp_path, change, found
):
    fields = {name: value for name, value in {**FIELDS, **change}.items() if value is not ...}
    table = pa.table({"a": [1]}).replace_schema_metadata({"chiasm": json.dumps(fields)})
    (tmp_path / "embeddings").mkdir()
    pq.write_table(table, tmp_path / parquet_name(SHARD.id))
    if not found:
        assert read_footer(Folder(str(tmp_path)), SHARD.id) == footer(1)
        return
    with pytest.raises(CollectionError) as error:
        read_footer(Folder(str(tmp_path)), SHARD.id)
    assert f"{SHARD.id}.parquet: expected a Parquet file written by chiasm, " in str(error.value)
    assert found in str(error.value) and "\n" not in str(error.value)


ODD = ("红.tar", ".hidden.tar", "-dash.tar", "a=b.tar", "a.b.c.tar", "x.tar", "___.tar.gz")


def read_back(folder: Path) -> list[tuple[list[str], list[str]]]:
    """Keys and shard ids, by each program that the README names."""
    columns = ["key", "shard", "image"]
    frame = pandas.read_parquet(folder, columns=columns, partitioning=None)
    tables = [ds.dataset(folder).to_table(columns=columns), pq.read_table(folder, columns=columns)]
    files = f"read_parquet('{folder}/*.parquet', hive_partitioning=false)"
    rows = duckdb.sql(f"select key, shard from {files}").fetchall()
    found = [(list(frame["key"]), list(frame["shard"])), tuple(map(list, zip(*rows, strict=True)))]
    found += [(table["key"].to_pylist(), table["shard"].to_pylist()) for table in tables]
    return [(sorted(keys), sorted(shards)) for keys, shards in found]


def test_pandas_pyarrow_and_duckdb_read_every_row_whatever_the_shards_are_called(tmp_path):
    """In folders that look like partitions, too."""
    shards = [make_shard(tmp_path / name, 2, seed=n) for n, name in enumerate(ODD)]
    path = tmp_path / "lang=en/shard=3/key=7/c"
    make_collection(shards, path, FakeEncoder())
    names = [file.name for file in (path / "embeddings").iterdir()]
    assert len(names) == 7 and all(re.match("[A-Za-z0-9]", name) for name in names)
    files = embeddings(Folder(str(path)))
    keys = sorted(key for file in files for key in file.read(["key"])["key"].to_pylist())
    ids = sorted(file.shard_id for file in files for _ in range(file.rows))
    assert sorted({*ids}) == sorted(shard_id(canonical_url(str(path))) for path in shards)
    assert read_back(path / "embeddings") == [(keys, ids)] * 4


def test_a_file_with_the_name_of_earlier_versions_is_done_and_named_until_it_is_renewed(tmp_path):
    shards = [make_shard(tmp_path / name, 2, seed=n) for n, name in enumerate(ODD[:2])]
    path = tmp_path / "c"
    make_collection(shards, path, FakeEncoder())
    for shard in list_shards(list(map(str, shards))):
        (path / parquet_name(shard.id)).rename(path / f"embeddings/{shard.id}.parquet")
    folder = Folder(str(path))
    assert build_index(path).rows == 4
    assert make_collection(shards, path, FakeEncoder()).skipped == 2
    found = [finding for finding in check(path).findings if "pass over" in finding.what]
    assert [finding.where for finding in found] == [
        f"embeddings/{file.shard_id}.parquet" for file in embeddings(folder)
    ]
    # One is renewed as the finding says, one because its shard has changed.
    fix = shlex.split(found[0].fix)
    assert fix[:4] == ["run", "chiasm", "forget", str(path)]
    forget(folder, [fix[5]])
    make_shard(shards[0], 3, seed=9)
    make_shard(shards[1], 3, seed=10)
    assert make_collection(shards, path, FakeEncoder()).done == 2
    names = [file.name for file in (path / "embeddings").iterdir()]
    assert len(names) == 2 and all(re.match("[A-Za-z0-9]", name) for name in names)
    assert build_index(path).rows == 6 and check(path).ok


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path):
    import resource
    import signal

    folder = Folder(str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageError, match=r"embeddings/a-0123456789\.parquet"):
            write(folder, [embedded([str(n) for n in range(2000)], np.random.default_rng(0))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert folder.list("embeddings") == []


def test_a_flipped_bit_is_told_when_its_rows_are_read(tmp_path):
    folder = Folder(str(tmp_path))
    write(folder, [embedded([str(n) for n in range(40)], np.random.default_rng(0))])
    file = find_embedding(folder, SHARD.id)
    assert file is not None
    path = folder.path(parquet_name(SHARD.id))
    data = bytearray(path.read_bytes())
    # The sixth column, image.
    column = pq.read_metadata(path).row_group(0).column(5)
    data[column.data_page_offset + column.total_compressed_size - 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(CollectionError, match=r"CRC .* delete it and run chiasm embed again"):
        file.vectors("image")
    with pytest.raises(CollectionError, match="CRC checksum"):
        list(file.groups(["image"]))
    assert file.read(["key"])["key"].to_pylist() == [str(n) for n in range(40)]


def test_groups_are_the_rows_in_order(tmp_path):
    folder = Folder(str(tmp_path))
    rng = np.random.default_rng(0)
    write(folder, [embedded([f"{n}-{i}" for i in range(300)], rng) for n in range(8)])
    (file,) = embeddings(folder)
    groups = list(file.groups(["key", "image"]))
    assert [len(group) for group in groups] == [*[256] * 9, 96]
    assert pa.concat_tables(groups).equals(file.read(["key", "image"]))
    (last,) = file.groups(["key"], [9])
    assert last.equals(groups[9].select(["key"]))


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.sampled_from(["sorted", "shuffled"]), seed=st.integers(0, 2**32 - 1))
def test_one_row_by_key_is_the_row_that_a_whole_read_has(tmp_path_factory, order, seed):
    folder = Folder(str(tmp_path_factory.mktemp("c")))
    rng = np.random.default_rng(seed)
    # The long one is beyond what Parquet keeps statistics for; the last is no UTF-8.
    keys = [f"{n:05d}" for n in range(1200)] + ["k" * 10_000, "\udce9"]
    if order == "shuffled":
        rng.shuffle(keys)
    write(folder, [embedded(keys, rng, True)])
    (file,) = embeddings(folder)
    whole = file.read()
    for place in [*rng.integers(len(keys), size=3), keys.index("k" * 10_000), keys.index("\udce9")]:
        row = file.row(keys[place])
        assert row is not None and row.equals(whole.slice(place, 1))
        one = file.row(keys[place], ["image", "key"])
        assert one is not None and one.equals(whole.slice(place, 1).select(["image", "key"]))
    assert file.row("00600x") is None and file.row("") is None


def test_a_disk_that_fails_is_not_called_damage(tmp_path, monkeypatch):
    def fail(self: Folder, name: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Folder, "open_seekable", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        read_footer(Folder(str(tmp_path)), "a-0123456789")
