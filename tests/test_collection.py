"""A collection's identity: written once, checked at every open."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_encoder import FakeEncoder

from chiasm.pipeline.collection import (
    Collection,
    Identity,
    LedgerEntry,
    Relocations,
    RunRecord,
    ShardFiles,
    ShardSummary,
    SummaryWriter,
    Survey,
    Tally,
    create_or_check,
    earlier_parquet_name,
    failure_name,
    ledger_name,
    parquet_name,
    read_entry,
    read_identity,
    schema_version,
    shard_id_of,
    shard_of_entry,
    shard_of_failure,
    summaries,
    write_entry,
)
from chiasm.pipeline.collection import identity as identity_module
from chiasm.pipeline.collection.identity import NAME
from chiasm.pipeline.collection.ledger import MOST_KEPT
from chiasm.pipeline.collection.run_record import marked_killed
from chiasm.pipeline.collection.summaries import ShardFile, run_of_part
from chiasm.pipeline.errors import CollectionError, EncoderError, StorageError
from chiasm.pipeline.records import Dropped, Note, Shard
from chiasm.pipeline.storage import Folder, Stat


def test_the_first_run_writes_the_identity_and_later_ones_keep_it(tmp_path):
    folder = Folder(str(tmp_path))
    first = Identity.of(FakeEncoder())
    assert create_or_check(folder, first, "r1") == first
    later = replace(first, precision="bfloat16", device="cuda", versions={})
    assert create_or_check(folder, later, "r2") == first, (
        "precision and device never cause a refusal"
    )
    assert Collection.open(str(tmp_path)).identity == first


def test_another_space_is_refused_in_one_line(tmp_path):
    folder = Folder(str(tmp_path))
    create_or_check(folder, Identity.of(FakeEncoder()), "r1")
    with pytest.raises(CollectionError) as raised:
        create_or_check(folder, Identity.of(FakeEncoder("other")), "r2")
    assert "expected encoder fake (" in str(raised.value)
    assert "found fake:other (" in str(raised.value)
    assert read_identity(folder).encoder == "fake"


def test_of_many_encoders_at_once_exactly_one_makes_the_collection(tmp_path):
    folder = Folder(str(tmp_path))
    accepted, start = [], threading.Barrier(8)

    def run(number: int) -> None:
        start.wait()
        try:
            create_or_check(folder, Identity.of(FakeEncoder(str(number))), f"r{number}")
        except CollectionError:
            return
        accepted.append(f"fake:{number}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert accepted == [read_identity(folder).encoder]


@pytest.mark.parametrize("dim", [0, -1, 1 << 31, 10**30])
@pytest.mark.parametrize("name", ["dim", "dims"])
def test_a_width_that_no_vector_has_is_told(tmp_path, dim, name):
    fields = json.loads(Identity.of(FakeEncoder()).to_json())
    fields |= {"schema": 2, "dims": {"image": 8, "text": 8}}
    fields[name] = dim if name == "dim" else {"image": dim, "text": 8}
    (tmp_path / NAME).write_text(json.dumps(fields))
    with pytest.raises(CollectionError, match=rf"{name}.*: Input should be .* than or equal to"):
        Collection.open(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"{", "the identity of a collection"),
        (b"[]", "the identity of a collection"),
        (
            json.dumps({"schema": 99}).encode(),
            "found schema version 99, of which .* reads 3",
        ),
        (json.dumps({"schema": 1, "odd": 2}).encode(), "the identity of a collection"),
    ],
)
def test_a_damaged_identity_is_told(tmp_path, content, found):
    folder = Folder(str(tmp_path))
    folder.write_whole(NAME, content)
    with pytest.raises(CollectionError, match=found):
        Collection.open(str(tmp_path))


def test_no_collection_says_what_to_type(tmp_path):
    with pytest.raises(CollectionError, match="make one: chiasm embed SHARDS --to"):
        Collection.open(str(tmp_path / "none"))


def test_a_quarantined_shard_is_set_aside_in_its_ledger_file(tmp_path):
    folder, shard = Folder(str(tmp_path)), Shard("file:///a.tar", "a-0123456789", 1, "1")
    entry = LedgerEntry(
        shard,
        "0" * 8,
        rows=0,
        dropped=(Dropped("k", "read", "truncated"),),
        notes=(Note("k", "no_caption"),),
        quarantined="no tar",
        attempts=3,
    )
    write_entry(folder, entry, "r1")
    fields = json.loads(folder.read_bytes(ledger_name(shard.id)))
    assert fields["set_aside"] == "no tar" and "quarantined" not in fields
    assert list(fields)[:3] == ["schema", "samples", "source"]
    assert read_entry(folder, shard.id) == entry


def test_schema_1_holds_no_widths_of_columns_and_schema_2_does():
    identity = Identity.of(FakeEncoder())
    assert identity.schema == 1 and "dims" not in json.loads(identity.to_json())
    wider = replace(identity, schema=2, dims={"image": 4, "depth": 4})
    assert json.loads(wider.to_json())["dims"] == {"image": 4, "depth": 4}


def test_every_file_is_text_as_people_write_it_one_field_a_line():
    shard = Shard("file:///图\udcff.tar", "a-0123456789", 1, "1")
    record = RunRecord("r1", "图\udcff", "h", 1, 1.0, 2.0).to_json()
    for data in (
        replace(Identity.of(FakeEncoder()), encoder="图\udcff").to_json(),
        LedgerEntry(shard, "0" * 8, rows=0).to_json(),
        record,
        marked_killed(record),
    ):
        fields = json.loads(data.decode("utf-8", "surrogatepass"))
        text = json.dumps(fields, ensure_ascii=False, indent=1) + "\n"
        assert data == text.encode("utf-8", "surrogatepass") and "图".encode() in data
    relocated = Relocations().with_moves({shard.id: (shard, "file:///b.tar")}).to_json()
    assert relocated == json.dumps(json.loads(relocated), indent=1).encode() + b"\n"
    assert json.loads(marked_killed(record))["state"] == "killed"


@pytest.mark.parametrize(
    ("dims", "modalities", "message"),
    [
        ({"image": 4, "text": 4, "joint": 4}, "image text", ""),
        ({"image": 4, "depth": 4}, "image depth", ""),
        ({"image": 4, "text": 5}, "image text", "one width.* found image 4, text 5; project"),
        ({}, "", "columns of one width.* found none"),
        (
            {"image": 4},
            "image text",
            "a width for each .* modalities image, text, widths for image",
        ),
        ({"image": 4, "joint": 4}, "image joint", "a width for each modality"),
        ({"image": 4, "Depth": 4}, "image Depth", "modalities named in .* found Depth; choose"),
        ({"image": 4, "key": 4}, "image key", "modalities named in .* found key; choose"),
    ],
)
def test_columns_that_a_collection_cannot_hold_are_refused(dims, modalities, message):
    known = dict.fromkeys(modalities.split())
    encoder = SimpleNamespace(name="e", dims=dims, modalities=known)
    if not message:
        identity_module._check_columns(encoder)
        return
    with pytest.raises(EncoderError, match=message):
        Identity.of(encoder)


def test_an_identity_that_is_removed_meanwhile_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Folder, "write_new", lambda *_: True)
    with pytest.raises(CollectionError, match="expected an identity, found none any more"):
        create_or_check(Folder(str(tmp_path)), Identity.of(FakeEncoder()), "r1")


def test_a_tally_counts_all_and_keeps_some_of_each_reason():
    tally = Tally()
    tally.keep(3)
    for number in range(MOST_KEPT + 5):
        tally.drop(Dropped(str(number), "decode", "a"))
        tally.note(Note(str(number), "n"))
    tally.drop(Dropped("x", "read", "b"))
    assert (tally.rows, tally.dropped_count, tally.samples) == (3, MOST_KEPT + 6, MOST_KEPT + 9)
    assert tally.drop_counts == {"a": MOST_KEPT + 5, "b": 1} and tally.note_counts["n"] == 105
    assert [kept.key for kept in tally.dropped] == [*map(str, range(MOST_KEPT)), "x"]
    assert [kept.key for kept in tally.notes] == [*map(str, range(MOST_KEPT))]
    assert (tally.dropped_in("decode"), tally.dropped_in("read")) == (MOST_KEPT + 5, 1)


def test_notes_of_a_sample_go_with_it():
    tally = Tally()
    for key, reason in (("a", "no_caption"), ("a", "odd"), ("b", "odd"), ("b", "no_caption")):
        tally.note(Note(key, reason))
    tally.refuse(Dropped("a", "encode", "refused"), ["no_caption", "no_picture"])
    assert tally.note_counts == {"odd": 1, "no_caption": 1, "no_picture": -1}
    assert [(note.key, note.reason) for note in tally.notes] == [("b", "odd"), ("b", "no_caption")]
    assert tally.drop_counts == {"refused": 1}


@pytest.mark.parametrize(
    ("name", "entry", "failure", "parquet"),
    [
        ("a-01.json", "a-01", None, None),
        ("a-01.failed.json", None, "a-01", None),
        ("a-01.parquet", None, None, "a-01"),
        ("s~_a-01.parquet", None, None, "_a-01"),
        ("a-01.txt", None, None, None),
        (".a-01.json.r1~0a.tmp", None, None, None),
        (".a-01.parquet.r1~0a.tmp", None, None, None),
    ],
)
def test_a_name_tells_the_shard_whose_file_it_is(name, entry, failure, parquet):
    for folder in ("", "ledger/"):
        assert shard_of_entry(folder + name) == entry
        assert shard_of_failure(folder + name) == failure
    for folder in ("", "embeddings/"):
        assert shard_id_of(folder + name) == parquet


def test_a_shard_has_one_name_for_each_of_its_files():
    assert ledger_name("a-01") == "ledger/a-01.json"
    assert failure_name("a-01") == "ledger/a-01.failed.json"
    assert parquet_name("a-01") == "embeddings/a-01.parquet" and not earlier_parquet_name("a-01")
    assert parquet_name("_a-01") == "embeddings/s~_a-01.parquet"
    assert earlier_parquet_name("_a-01") == "embeddings/_a-01.parquet"


def test_an_entry_that_is_there_and_cannot_be_read_is_not_taken_for_missing(tmp_path):
    folder = Folder(str(tmp_path))
    assert read_entry(folder, "a-01") is None
    (tmp_path / ledger_name("a-01")).mkdir(parents=True)
    with pytest.raises(StorageError, match="found a folder"):
        read_entry(folder, "a-01")


def test_the_version_of_a_schema_is_1_for_pictures_and_texts_of_one_width():
    for dims, version in [
        ({"image": 4, "text": 4, "joint": 4}, 1),
        ({"image": 4}, 1),
        ({"image": 4, "text": 5}, 2),
        ({"image": 4, "depth": 4}, 2),
    ]:
        assert schema_version(dims) == version


def test_a_summary_is_done_only_if_it_is_neither_given_up_nor_unfinished():
    shard = Shard("file:///a.tar", "a-0123456789", 1, "1")
    summary = ShardSummary(shard, "0" * 8, 5, {"a": 2, "b": 1})
    assert summary.done and summary.samples == 8
    assert not replace(summary, quarantined="no tar").done
    assert not replace(summary, unfinished=True).done


class HandClock:
    """A Clock that goes on where a test says so."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_summaries_are_written_after_so_many_shards_or_seconds_and_read_back(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(summaries, "SHARDS_OF_A_WRITE", 3)
    monkeypatch.setattr(summaries, "SHARDS_OF_A_PART", 4)
    folder, clock = Folder(str(tmp_path)), HandClock()
    writer = SummaryWriter(folder, "r-1", clock)
    given = [
        ShardSummary(
            Shard(f"file:///{n}.tar", f"s{n}-0123456789", 1, "1"),
            "0" * 8,
            n,
            {"a": 2} if n == 1 else {},
            {"\udcff": 1} if n == 2 else {},
            "no tar" if n == 3 else None,
            ShardFile(5, "l"),
            ShardFile(6, "e") if n else None,
            embedded_from=Shard("file:///b.tar", "b-0123456789", 2, "2") if n == 4 else None,
            rules=1 + n % 2,
            damage="cut" if n == 5 else None,
        )
        for n in range(6)
    ]

    def stored() -> list[list[ShardSummary]]:
        parts = [summaries._read_part(folder, name) for name in folder.list("summaries")]
        return [[*part.shards] for part in parts]

    writer.write()
    assert folder.list("summaries") == []
    clock.now = summaries.SECONDS_OF_A_WRITE - 0.1  # a write of nothing counts as one
    writer.write()
    clock.now += summaries.SECONDS_OF_A_WRITE - 0.1
    writer.add(given[0])
    assert stored() == []
    clock.now += 0.1
    writer.add(given[1])
    assert stored() == [given[:2]]
    writer.add(given[2])
    assert stored() == [given[:2]]
    writer.add(given[3])  # the part is full
    writer.add(given[4])
    writer.add(given[5])
    assert stored() == [given[:4]]
    writer.write()
    assert stored() == [given[:4], given[4:]]
    names = folder.list("summaries")
    assert names == ["summaries/r-1-0000.json", "summaries/r-1-0001.json"]
    assert [run_of_part(name) for name in names] == ["r-1", "r-1"]
    monkeypatch.setattr(Folder, "write_whole", lambda *_: folder.read_bytes("nothing"))
    writer.add(given[0])
    writer.write()
    assert "summaries are not written: " in caplog.text


@pytest.mark.parametrize(
    ("valid", "live", "few", "removed"),
    [(1, (), 2, 3), (2, (), 2, 0), (1, ("r1",), 2, 0), (1, (), 3, 0), (1, ("r1",), 1, 2)],
)
def test_small_parts_of_ended_runs_are_put_together_where_they_are_many(
    tmp_path, monkeypatch, valid, live, few, removed
):
    """A part is small where less than half of a part's shards hold."""
    monkeypatch.setattr(summaries, "SHARDS_OF_A_PART", 4)
    monkeypatch.setattr(summaries, "FEW_PARTS", few)
    folder, stats = Folder(str(tmp_path)), {}
    for run in range(3):
        writer = SummaryWriter(folder, f"r{run}", HandClock())
        for number in range(3):
            shard = Shard("file:///a.tar", f"s{run}{number}-0123456789", 1, "1")
            stat = Stat(7, "l" if number < valid else "another")
            stats[shard.id] = Stat(7, "l")
            writer.add(ShardSummary(shard, "0" * 8, number).with_files(stat, None))
        writer.write()
    survey = Survey(folder, ShardFiles(stats, {}, set()))
    described = {summary.source.id for summary in survey.summaries()}
    assert len(described) == 3 * valid
    assert survey.parts == {f"summaries/r{run}-0000.json": valid for run in range(3)}
    SummaryWriter(folder, "new", HandClock()).put_together(survey, lambda run: run in live)
    left = [run_of_part(name) for name in folder.list("summaries")]
    assert len(left) == 3 - removed + (removed > 0) and ("new" in left) == (removed > 0)
    again = Survey(folder, survey.files)
    assert {summary.source.id for summary in again.summaries()} == described


def test_an_entry_of_another_shard_or_that_has_gone_is_no_summary(tmp_path):
    folder, shard = Folder(str(tmp_path)), Shard("file:///a.tar", "a-0123456789", 1, "1")
    write_entry(folder, LedgerEntry(shard, "0" * 8, rows=0, quarantined="no tar"), "r1")
    folder.write_whole(ledger_name("copy"), folder.read_bytes(ledger_name(shard.id)))
    files = ShardFiles({name: Stat(1, "1") for name in (shard.id, "copy", "gone")}, {}, set())
    shard_ids = [shard.id, "copy", "gone", "never"]
    own, *others = Survey(folder, files).read(shard_ids, skip_damaged=False)
    assert own is not None and own.quarantined == "no tar" and others == [None] * 3


def test_damage_is_what_the_reader_of_a_shard_reports_and_no_other_drop():
    shard = Shard("file:///a.tar", "a-0123456789", 1, "1")
    for stage, reason, damaged in [
        ("read", "truncated", True),
        ("decode", "truncated", False),
        ("read", "no_caption", False),
    ]:
        entry = LedgerEntry(shard, "0" * 8, 1, (Dropped("k", stage, reason, "at byte 9"),))
        assert entry.damage == (f"{reason} in sample k: at byte 9" if damaged else None)
