"""`check` finds each kind of damage, names where it is and what to do, and else finds nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import environment, make_shard
from fake_encoder import FakeEncoder
from tiny_collection import SHARDS, add_shard, make_collection

from chiasm.index import IndexSettings, build_index
from chiasm.index.build import add_to_index
from chiasm.index.verify import check
from chiasm.jobs.cli.status import status
from chiasm.jobs.status import read_status
from chiasm.pipeline.collection import Identity, create_or_check, find_embedding
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import ENCODERS
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.forget import forget
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.verify import sources


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Two shards of vectors, indexed in cells and in two segments."""
    path = tmp_path_factory.mktemp("check") / "c"
    make_collection(path, (60, 50), holes=0.1)
    build_index(str(path), settings=IndexSettings(tune=False, exact_below=1, segment_rows=60))
    return path


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Path:
    """Two shards of pictures, embedded by the write path."""
    root = tmp_path_factory.mktemp("pictures")
    shards = [make_shard(root / f"s-{n}.tar", 15, seed=n, broken=n) for n in range(2)]
    encoder, folder = FakeEncoder(), Folder(str(root / "c"))
    create_or_check(folder, Identity.of(encoder), "test")
    for shard in list_shards([str(path) for path in shards]):
        embed_shard(shard, encoder, folder, EmbedSettings(), run_id="test")
    build_index(str(root / "c"))
    return root / "c"


def findings(path: Path, **options) -> list[str]:
    return [str(finding) for finding in check(str(path), **options).findings]


def test_an_undamaged_collection_has_no_findings(drawn, embedded):
    report = check(str(drawn))
    assert report.ok and report.findings == []
    counted = {"shards": 2, "rows": 110, "vectors": 297, "sources": 2, "segments": 2}
    assert {**report.checked, "vectors": 297} == counted and report.checked["vectors"] > 250
    assert check(str(embedded), reencode=10).checked["pictures"] == 10
    report = check(str(embedded), reencode=1000)
    assert report.ok and report.checked["pictures"] == 29


def test_a_collection_without_an_index_or_rows_has_no_findings(tmp_path):
    make_collection(tmp_path, (5, 0))
    assert check(str(tmp_path)).ok
    with pytest.raises(CollectionError, match="expected a collection"):
        check(str(tmp_path / "none"))


LEDGER = "ledger/s1-0123456789.json"
PARQUET = "embeddings/s1-0123456789.parquet"


def change_ledger(**fields: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        record = json.loads((path / LEDGER).read_text())
        (path / LEDGER).write_text(json.dumps({**record, **fields}))

    return change


def change_rows(column: str, changed: Callable[[list], list]) -> Callable[[Path], None]:
    """Write the Parquet file again with other values in one column, footer and all."""

    def change(path: Path) -> None:
        rewrite(path / PARQUET, column, changed)

    return change


def rewrite(file: Path, column: str, changed: Callable[[list], list]) -> None:
    footer = pq.read_metadata(file).metadata[b"chiasm"]
    table = pq.read_table(file)
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    values = pa.array(changed(table[column].to_pylist()), type=field.type)
    table = table.set_column(place, field, values).replace_schema_metadata({"chiasm": footer})
    pq.write_table(table, file)


def doubled(vectors: list) -> list:
    return [None if vector is None else [2 * x for x in vector] for vector in vectors]


def flip_a_byte(pattern: str, share: float = 0.5) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = sorted(path.glob(pattern))[-1]
        data = bytearray(file.read_bytes())
        data[int(len(data) * share)] ^= 1
        file.write_bytes(data)

    return change


def gone(pattern: str) -> Callable[[Path], None]:
    return lambda path: sorted(path.glob(pattern))[-1].unlink()


DAMAGE = {
    "ledger gone": (gone(LEDGER), "shard s1-0123456789: embeddings without a ledger entry"),
    "ledger cut": (
        lambda path: (path / LEDGER).write_text("{"),
        f"{LEDGER}: expected a ledger entry, found no valid JSON",
    ),
    "embeddings gone": (gone(PARQUET), "shard s1-0123456789: a ledger entry without embeddings"),
    "embeddings cut": (
        lambda path: (path / PARQUET).write_bytes((path / PARQUET).read_bytes()[:500]),
        "expected a whole Parquet file",
    ),
    "one bit of the embeddings": (
        flip_a_byte(PARQUET, 0.2),
        "expected a whole Parquet file, found could not verify page integrity, CRC checksum",
    ),
    "samples": (
        change_ledger(samples=52),
        "shard s1-0123456789: 50 rows + 0 dropped in the ledger, of 52 samples; delete ",
    ),
    "rows": (
        change_ledger(rows=49, samples=49),
        "shard s1-0123456789: Parquet footer and ledger entry disagree (rows 50 and 49); "
        f"run chiasm embed {SHARDS}/s1.tar --to",
    ),
    "edition": (
        change_ledger(edition="0000000b"),
        "footer and ledger entry disagree (edition 0000000a and 0000000b)",
    ),
    "keys": (
        change_rows("key", lambda keys: [keys[0], keys[0], *keys[2:]]),
        "shard s1-0123456789: duplicate key: 2 rows have 's1/000000'",
    ),
    "shard": (
        change_rows("shard", lambda ids: ["s0-0123456789", *ids[1:]]),
        "shard s1-0123456789: rows whose column shard names another",
    ),
    "length": (
        change_rows("text", doubled),
        "text vectors without unit norm, the first in row 0: 2",
    ),
    "not a number": (
        change_rows("joint", lambda rows: [*rows[:-1], [float("nan")] * 8]),
        "1 joint vectors without unit norm, the first in row 49: nan",
    ),
    "vector missing": (
        change_rows("image", lambda rows: [None] * 3 + rows[3:]),
        "shard s1-0123456789: image vector is null in",
    ),
    "vector from nowhere": (
        change_rows("caption", lambda rows: [None] * 50),
        "shard s1-0123456789: text vector is not null, though its source is, in",
    ),
    "dim": (
        lambda path: (path / "collection.json").write_text(
            (path / "collection.json").read_text().replace('"dim": 8', '"dim": 16')
        ),
        "shard s1-0123456789: column types are not those of dim 16: image, text, joint",
    ),
    "fingerprint": (
        lambda path: (path / "collection.json").write_text(
            (path / "collection.json").read_text().replace(FakeEncoder().fingerprint, "0" * 32)
        ),
        "shard s1-0123456789: embedded by fake (",
    ),
    "CURRENT gone": (
        gone("index/CURRENT"),
        "index/CURRENT: missing, though generations exist; run chiasm index build",
    ),
    "generation gone": (
        gone("index/generations/*.json"),
        "expected the generation that index/CURRENT names, found no such file",
    ),
    "catalog": (flip_a_byte("index/segments/*/rows.arrow"), "rows.arrow: expected checksum"),
    "vectors": (flip_a_byte("index/segments/*/image.f16"), "image.f16: expected checksum"),
    "lists": (flip_a_byte("index/segments/*/joint.lists"), "joint.lists: expected checksum"),
    "sizes": (flip_a_byte("index/segments/*/joint.sizes"), "joint.sizes: expected checksum"),
    "trained": (
        flip_a_byte("index/trained/*/text.safetensors"),
        "text.safetensors: expected checksum",
    ),
    "segment.json": (
        flip_a_byte("index/segments/*/segment.json"),
        "segment.json: expected blake2b",
    ),
    "vectors gone": (
        gone("index/segments/*/text.f16"),
        "text.f16: missing; run chiasm index",
    ),
    "stale": (
        lambda path: add_shard(Folder(str(path)), "s2", 3),
        "000001: stale: shard s2-0123456789 is new since the build; run chiasm index add",
    ),
    "catalog differs": (
        change_rows("caption", lambda rows: [row and row + "!" for row in rows]),
        "shard s1-0123456789: column caption of the catalog differs from the embeddings",
    ),
    "vectors differ": (
        change_rows("image", lambda rows: [row and row[::-1] for row in rows]),
        "image vectors differ from the embeddings, the first in row 0",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_is_found_where_it_is(drawn, tmp_path, damage):
    change, expected = DAMAGE[damage]
    shutil.copytree(drawn, tmp_path / "c")
    change(tmp_path / "c")
    found = findings(tmp_path / "c")
    assert any(expected in finding for finding in found), found
    assert all("\n" not in finding for finding in found)


def test_a_damaged_file_hides_nothing_else(embedded, tmp_path):
    shutil.copytree(embedded, tmp_path / "c")
    first, second = sorted((tmp_path / "c/embeddings").glob("*.parquet"))
    data = bytearray(first.read_bytes())
    data[len(data) // 3] ^= 4
    first.write_bytes(data)
    rewrite(second, "sha256", lambda rows: ["0" * 64, *rows[1:]])
    found = findings(tmp_path / "c", reencode=100)
    assert sum("CRC checksum verification failed" in line for line in found) == 1
    assert sum("column sha256 of the catalog differs from the" in line for line in found) == 1
    assert sum("row 0: the shard holds another picture at" in line for line in found) == 1
    with pytest.raises(CollectionError, match="delete it and run chiasm embed again"):
        build_index(str(tmp_path / "c"))


def test_a_quarantined_shard_is_no_finding(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "c")
    record = json.loads((tmp_path / "c" / LEDGER).read_text())
    aside = {**record, "rows": 0, "samples": 0, "set_aside": "killed its worker", "attempts": 3}
    aside["source"] = {**record["source"], "id": "bad-0123456789"}
    (tmp_path / "c/ledger/bad-0123456789.json").write_text(json.dumps(aside))
    assert findings(tmp_path / "c") == []


def copied(embedded: Path, to: Path) -> Path:
    """The collection beside shards that may be changed: its rows name the new ones."""
    shutil.copytree(embedded.parent, to)
    encoder, folder = FakeEncoder(), Folder(str(to / "d"))
    create_or_check(folder, Identity.of(encoder), "test")
    for shard in list_shards([str(to / "s-*.tar")]):
        embed_shard(shard, encoder, folder, EmbedSettings(), run_id="test")
    return to / "d"


def test_a_shard_with_other_bytes_is_found_by_its_digests(embedded, tmp_path):
    path = copied(embedded, tmp_path / "x")
    shard = tmp_path / "x" / "s-0.tar"
    data = shard.read_bytes()
    (file,) = (path / "embeddings").glob("s-0-*.parquet")
    place = pq.read_table(file, columns=["member", "offset"]).to_pylist()[3]
    shard.write_bytes(data[: place["offset"] + 200] + b"X" + data[place["offset"] + 201 :])
    found = findings(path, reencode=100)
    assert len(found) == 1
    assert found[0].startswith(f"shard {file.stem}, row 3: ")
    assert f"holds another picture at {place['member']}" in found[0] or "corrupt" in found[0]
    shard.unlink()
    found = findings(path, reencode=100)
    rows = [line for line in found if "found nothing there; check the path" in line]
    assert len(rows) == 15 and len(found) == 16


def test_every_shard_is_looked_for_and_only_another_one_is_a_change(embedded, tmp_path, capsys):
    path = copied(embedded, tmp_path / "x")
    first, second = tmp_path / "x/s-0.tar", tmp_path / "x/s-1.tar"
    os.utime(first)
    report = check(path)
    assert report.ok and report.checked["sources"] == 2, "new times, the same bytes"
    (file,) = (path / "embeddings").glob("s-1-*.parquet")
    offset = pq.read_table(file, columns=["offset"])["offset"].to_pylist()[-1]
    data = bytearray(second.read_bytes())
    data[offset + 20] ^= 1
    second.write_bytes(data)
    (found,) = check(path).findings
    assert found.where == f"shard {file.stem}" and "it has changed since it was" in found.what
    assert found.fix == f"run chiasm embed {second} --to {path}"
    first.write_bytes(first.read_bytes() + bytes(512))
    assert "bytes, embedded were" in findings(path)[0]
    first.unlink()
    second.unlink()
    (found,) = check(path).findings
    assert (found.where, found.what) == (
        f"shards of {tmp_path}/x",
        "2 of its 2 shards are not there any more (s-0.tar, s-1.tar)",
    )
    assert f"chiasm relocate {path} --from {tmp_path}/x --to FOLDER" in found.fix
    status(str(path))
    message = "2 of its 2 shards are not where they were, such as"
    assert f"{message} {first}; {found.fix}\n" in capsys.readouterr().out


def test_a_store_out_of_reach_is_no_finding(embedded, tmp_path, monkeypatch):
    def out_of_reach(url: str) -> None:
        raise StorageError(url, expected="an answer", found="none")

    monkeypatch.setattr(sources, "stat_or_none", out_of_reach)
    report = check(embedded)
    assert report.ok and report.checked["sources out of reach"] == 2
    seen = sources.look_at_sources(["s3://b/1.tar", "s3://b/2.tar"])
    assert seen == sources.SourcesSeen(2, 2, (), 2)
    assert seen.describe("c") == "2 of its 2 shards are out of reach"
    assert read_status(str(embedded)).sources == seen


def test_a_look_at_sources_asks_for_few_of_them_and_says_so(monkeypatch):
    requests: list[str] = []
    monkeypatch.setattr(sources, "stat_or_none", lambda url: requests.append(url))
    urls = [f"file:///old/{n:06d}.tar" for n in range(100_000)]
    seen = sources.look_at_sources(urls)
    assert sorted(requests) == sorted(seen.missing) and len(requests) == seen.checked == 8
    assert {urls[0], urls[-1]} < set(requests)
    assert seen.describe("c d").startswith(
        "8 of its 100,000 shards were looked at, 8 of which are not where they were, such as "
        "/old/000000.tar; if they were moved, run chiasm relocate 'c d' --from /old --to FOLDER; "
    )
    assert sources.look_at_sources([]) == sources.SourcesSeen(0, 0)


def test_vectors_of_other_pictures_are_found_by_encoding_them_again(embedded, tmp_path):
    path = copied(embedded, tmp_path / "x")
    (file,) = (path / "embeddings").glob("s-0-*.parquet")
    rewrite(file, "image", lambda rows: rows[1:] + rows[:1])
    assert findings(path) == [], "unit length and in place: only the encoder can tell"
    found = findings(path, reencode=100)
    assert len(found) == 15
    assert "row 0: its image vector has cosine" in found[0] and "less than 0.999" in found[0]


def test_another_encoder_of_the_same_name_is_a_finding(embedded, monkeypatch):
    class Retrained(FakeEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.fingerprint = "0" * 32

    monkeypatch.setitem(ENCODERS, "fake", lambda model, settings: Retrained())
    (found,) = findings(embedded, reencode=5)
    assert found.startswith("encoder fake: ") and found.endswith(
        f"expected encoder fake ({FakeEncoder().fingerprint[:12]}), found another of that name "
        "(000000000000); name the weights that made it, as in --encoder fake:DIR, or embed "
        "the shards into another collection"
    )


def test_an_encoder_that_cannot_be_loaded_is_a_finding(embedded, monkeypatch):
    monkeypatch.delitem(ENCODERS, "fake")
    (found,) = findings(embedded, reencode=5)
    assert found.startswith("encoder fake: encoder 'fake': expected one of pocket")


def test_checking_needs_no_torch(drawn):
    program = "import sys; from chiasm.index.verify import check; "
    program += "print(check(sys.argv[1]).ok, 'torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program, str(drawn)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["True", "False"]


def test_check_of_a_stale_index_advises_the_command_that_mends_it(drawn, tmp_path, chiasm):
    path = tmp_path / "my photos"
    shutil.copytree(drawn, path)
    add_shard(Folder(str(path)), "s2", 3)
    command = f"chiasm index add '{path}'"
    (finding,) = check(path).findings
    assert finding.fix == check(path).advice() == f"run {command}"
    done = chiasm("check", path)
    assert done.returncode == 1 and done.stdout.splitlines()[0] == str(finding)
    assert done.stderr == (
        f"chiasm: {path}: expected no findings, found 1, listed above; run {command}\n"
    )
    add_to_index(path)
    assert check(path).findings == [] and check(path).advice() == ""


def test_the_fix_of_damaged_rows_can_be_followed(embedded, tmp_path):
    """Embedding alone would skip the shard: its ledger entry and footer still agree."""
    path = copied(embedded, tmp_path / "x")
    (file,) = (path / "embeddings").glob("s-0-*.parquet")
    rewrite(file, "text", doubled)
    (finding,) = check(path).findings
    source = tmp_path / "x" / "s-0.tar"
    assert finding.fix == f"delete {file} and run chiasm embed {source} --to {path} --encoder fake"
    folder, (shard,) = Folder(str(path)), list_shards([str(source)])
    assert find_embedding(folder, shard.id) is not None, "embed would skip it"
    file.unlink()
    assert find_embedding(folder, shard.id) is None
    embed_shard(shard, FakeEncoder(), folder, EmbedSettings(), run_id="test")
    assert findings(path) == []


def test_every_file_that_other_programs_would_read_is_named(embedded, tmp_path):
    path = copied(embedded, tmp_path / "x")
    (file,) = (path / "embeddings").glob("s-0-*.parquet")
    rows = len(pq.read_table(path / "embeddings"))
    (path / "embeddings/old").mkdir()
    for name in (f"s~{file.name}", f"{file.stem} (1).parquet", f"{file.name}.bak", "old/a.parquet"):
        shutil.copy(file, path / "embeddings" / name)
    for name in (".hidden", "_SUCCESS"):
        (path / "embeddings" / name).touch()
    assert len(pq.read_table(path / "embeddings")) == rows + 4 * len(pq.read_table(file))
    folder = f"{path}/embeddings"
    other = "pandas, pyarrow and Spark read all of this folder; this is no shard's; move"
    assert findings(path) == [
        f"shard {file.stem} (1): its Parquet footer names shard {file.stem}: it is a copy; "
        f"run chiasm forget {path} -- '{file.stem} (1)'",
        f"embeddings/{file.name}.bak: {other} {folder}/{file.name}.bak elsewhere",
        f"embeddings/s~{file.name}: a second file of shard {file.stem}, which pandas, pyarrow and "
        f"Spark read too; delete '{folder}/s~{file.name}'",
        f"embeddings/old: {other} {folder}/old elsewhere",
    ]
    forget(Folder(str(path)), [f"{file.stem} (1)"])
    (path / "embeddings" / f"{file.name}.bak").unlink()
    shutil.rmtree(path / "embeddings/old")
    os.rename(path / "embeddings" / f"s~{file.name}", file)
    assert findings(path) == [] and len(pq.read_table(path / "embeddings")) == rows
    os.rename(file, path / "embeddings" / f"s~{file.name}")
    assert findings(path)[-1].endswith(f"it never has; rename it to embeddings/{file.name}")


def test_findings_with_different_fixes_are_advised_line_by_line(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "c")
    gone("index/segments/*/text.f16")(tmp_path / "c")
    gone(PARQUET)(tmp_path / "c")
    report = check(tmp_path / "c")
    assert len(report.findings) > 1 and report.advice() == "do what each line says"
