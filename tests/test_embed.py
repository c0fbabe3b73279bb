"""The write path in one process: each sample a row or a drop, vectors in place, bytes the same."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import HandClock, jpeg, make_shard
from encoding import encode_texts, mean_of
from fake_encoder import FakeEncoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tars import tar_bytes

from chiasm.index.verify import check
from chiasm.jobs.cli import embed as cli
from chiasm.jobs.status import read_status
from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.collection import (
    ParquetWriter,
    embeddings,
    entries,
    find_embedding,
    read_entry,
)
from chiasm.pipeline.editions import EmbedSettings, accepted_editions, edition_of
from chiasm.pipeline.embed import Limit, embed_shard
from chiasm.pipeline.embed_summary import summary_error
from chiasm.pipeline.encoders import Encoded
from chiasm.pipeline.errors import EncoderError, SourceError, StorageError
from chiasm.pipeline.images import DECODING, DecodeSettings
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.records import Dropped, Note, Sample, Shard
from chiasm.pipeline.relocate import relocate
from chiasm.pipeline.shards import RULES, ReadSettings, list_shards, read_member, read_samples
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.timing import Stopwatch

SMALL = EmbedSettings(batch=BatchSettings(size=4, decode_threads=2))


def embed(path: Path, to: Path, settings: EmbedSettings = SMALL, limit: int | None = None):
    (shard,) = list_shards([str(path)])
    folder = Folder(str(to))
    entry = embed_shard(shard, FakeEncoder(), folder, settings, run_id="r1", limit=limit)
    return shard, folder, entry


def mixed_shard(path: Path, kinds: str) -> Path:
    """One sample a letter: p pair, i picture only, t text only, b broken picture, e no use."""
    import random

    rng = random.Random(kinds)
    with tarfile.open(path, "w") as tar:
        for number, kind in enumerate(kinds):
            members = {}
            if kind in "pi":
                members["jpg"] = jpeg(rng)
            if kind in "pt":
                members["txt"] = f"text {number}".encode()
            if kind == "b":
                members = {"jpg": b"no picture", "txt": b"of a broken one"}
            if kind == "e":
                members["cls"] = b"3"
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{number:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(kinds=st.text("pitbe", min_size=1, max_size=14))
def test_every_sample_is_a_row_or_a_drop_and_vectors_stand_at_their_places(kinds, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("mixed")
    shard, folder, entry = embed(mixed_shard(tmp / "a.tar", kinds), tmp / "c")
    kept = [number for number, kind in enumerate(kinds) if kind in "pit"]
    assert (entry.samples, entry.rows) == (len(kinds), len(kept))
    assert [drop.key for drop in entry.dropped] == [
        f"{number:04d}" for number, kind in enumerate(kinds) if kind in "be"
    ]
    assert read_entry(folder, shard.id).dropped == entry.dropped
    file = find_embedding(folder, shard.id)
    table = file.read()
    assert table["key"].to_pylist() == [f"{number:04d}" for number in kept]
    image, has_image = file.vectors("image")
    text, has_text = file.vectors("text")
    joint, has_joint = file.vectors("joint")
    assert has_image.tolist() == [kinds[number] in "pi" for number in kept]
    assert has_text.tolist() == [kinds[number] in "pt" for number in kept]
    assert has_joint.tolist() == [kinds[number] == "p" for number in kept]
    encoder = FakeEncoder()
    for row, number in enumerate(kept):
        if has_text[row]:
            np.testing.assert_allclose(
                text[row], encode_texts(encoder, [f"text {number}"])[0], atol=1e-3
            )
        if has_joint[row]:
            pair = mean_of(image[row : row + 1], text[row : row + 1])
            np.testing.assert_allclose(joint[row], pair[0], atol=2e-3)


def test_a_row_tells_where_its_picture_lies(tmp_path):
    shard, folder, _ = embed(make_shard(tmp_path / "a.tar", 5), tmp_path / "c")
    for row in find_embedding(folder, shard.id).read().to_pylist():
        with open(tmp_path / "a.tar", "rb") as file:
            file.seek(row["offset"])
            data = file.read(row["size"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert row["member"] == row["key"] + ".jpg"
        assert (row["width"], row["height"]) == (32, 32)
        assert json.loads(row["json"])["number"] == int(row["key"])


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_no_byte(threads, tmp_path):
    path = make_shard(tmp_path / "a.tar", 30)
    settings = replace(SMALL, batch=replace(SMALL.batch, decode_threads=threads))
    shard, folder, _ = embed(path, tmp_path / "one")
    _, other, _ = embed(path, tmp_path / "other", settings)
    name = f"embeddings/{shard.id}.parquet"
    assert folder.read_bytes(name) == other.read_bytes(name)


def test_a_limit_cuts_and_says_so_in_the_edition(tmp_path):
    path = make_shard(tmp_path / "a.tar", 10)
    _, _, cut = embed(path, tmp_path / "cut", limit=4)
    _, _, whole = embed(path, tmp_path / "whole")
    _, _, same = embed(path, tmp_path / "same", limit=10)
    assert (cut.rows, whole.rows, same.rows) == (4, 10, 10)
    assert cut.edition != whole.edition == same.edition


def test_notes_do_not_count_against_a_limit():
    items = [
        Note("a", "x"),
        Sample("a", {}, (), None),
        Note("a", "y"),
        Dropped("b", "", ""),
    ]
    cut = Limit(1)
    assert len(list(cut.take(iter(items)))) == 3
    assert cut.limit_reached == 1


def test_an_edition_follows_what_decides_the_rows_and_nothing_else():
    shard = Shard("file:///a.tar", "a-1", 10, "1")
    base = edition_of(shard, "f", SMALL)
    assert base == edition_of(shard, "f", replace(SMALL, batch=BatchSettings(size=99)))
    others = {
        edition_of(replace(shard, size=11), "f", SMALL),
        edition_of(replace(shard, version="2"), "f", SMALL),
        edition_of(shard, "g", SMALL),
        edition_of(shard, "f", replace(SMALL, read=ReadSettings(caption_field="x"))),
        edition_of(shard, "f", SMALL, 3),
    }
    assert len(others | {base}) == 6


def test_an_encoder_that_gives_no_unit_vectors_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    nan = np.full((4, 8), np.nan, np.float32)
    monkeypatch.setattr(FakeEncoder, "encode", lambda self, _, items: Encoded(nan[: len(items)]))
    with pytest.raises(EncoderError) as caught:
        embed(make_shard(tmp_path / "a.tar", 4), tmp_path / "c")
    assert str(caught.value) == (
        "encoder fake: expected unit vectors for two texts and two pictures, as a trial, found "
        f"image: NaN or infinity (at 00000000 to 00000003 of {tmp_path / 'a.tar'}); its weights "
        "are damaged: fetch or train them again"
    )
    assert embeddings(Folder(str(tmp_path / "c"))) == []
    assert list((tmp_path / "c").rglob("*.tmp")) == []


def test_a_compressed_shard_has_no_offsets_but_its_pictures_are_found(tmp_path):
    import gzip

    plain = make_shard(tmp_path / "a.tar", 4)
    packed = tmp_path / "b.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    shard, folder, entry = embed(packed, tmp_path / "c")
    assert entry.rows == 4
    table = find_embedding(folder, shard.id).read()
    assert table["offset"].null_count == 4
    plain_shard, plain_folder, _ = embed(plain, tmp_path / "d")
    expected = find_embedding(plain_folder, plain_shard.id).read()
    assert table["sha256"].equals(expected["sha256"])
    from chiasm.pipeline.records import Place

    place = Place(table["member"][2].as_py(), None, table["size"][2].as_py())
    data = read_member(shard.url, place)
    assert hashlib.sha256(data).hexdigest() == table["sha256"][2].as_py()


def test_a_shard_that_cannot_be_read_leaves_nothing(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(SourceError):
        embed(tmp_path / "a.tar", tmp_path / "c")
    assert list((tmp_path / "c").rglob("*.*")) == []


def test_a_stopwatch_adds_up_over_threads():
    times = HandClock()
    clock, together = Stopwatch(times), threading.Barrier(4)

    def work(_: int) -> None:
        with clock.stage("work"):
            together.wait()
            times.now += 0.5

    with ThreadPoolExecutor(4) as working:
        list(working.map(work, range(4)))
    assert clock.seconds == {"work": 2.0}


# --- shards that change, are cut, or lack much ----------------------------------------------------


def test_a_shard_replaced_after_it_was_listed_is_embedded_as_it_is(tmp_path):
    path = make_shard(tmp_path / "a.tar", 3)
    (before,) = list_shards([str(path)])
    make_shard(path, 5, seed=1)
    os.utime(path, ns=(1, 1))
    (now,) = list_shards([str(path)])
    folder = Folder(str(tmp_path / "c"))
    entry = embed_shard(before, FakeEncoder(), folder, SMALL, run_id="r1")
    assert (entry.source, entry.rows) == (now, 5) and now != before
    assert entry.edition == edition_of(
        now, FakeEncoder().fingerprint, SMALL, rules=RULES, decoding=DECODING
    )
    file = find_embedding(folder, before.id)
    assert file is not None and (file.footer.source, file.edition) == (now, entry.edition)


def test_a_shard_that_changes_while_it_is_read_leaves_nothing(tmp_path):
    path = make_shard(tmp_path / "a.tar", 8)
    (shard,) = list_shards([str(path)])
    folder = Folder(str(tmp_path / "c"))
    small = replace(SMALL, batch=BatchSettings(size=1, decode_threads=1, queue=1))
    message = "it changed while it was read; run the same command"
    with pytest.raises(SourceError, match=message):
        embed_shard(
            shard, FakeEncoder(), folder, small, run_id="r1",
            watch=lambda tally: os.utime(path, ns=(1, 1)),
        )  # fmt: skip
    assert list((tmp_path / "c").rglob("*.*")) == []
    (shard,) = list_shards([str(path)])
    few = Limit(2).take(read_samples(shard, ReadSettings()))
    next(few)
    os.utime(path, ns=(2, 2))
    with pytest.raises(SourceError, match=message):
        list(few)


def full_disk(*_: object) -> None:
    raise StorageError("embeddings", expected="space", found="no space left on the disk")


def test_rows_keep_their_entry_until_the_new_ones_are_in_place(tmp_path, monkeypatch):
    path, to = make_shard(tmp_path / "old" / "a.tar", 3), str(tmp_path / "c")
    make_collection(path, to, FakeEncoder())
    folder, (before,) = Folder(to), entries(Folder(to))
    make_shard(path, 4, seed=1)
    for _ in range(2):  # what the second attempt finds is what the first one left
        with monkeypatch.context() as patch, pytest.raises(StorageError, match="no space"):
            patch.setattr(ParquetWriter, "commit", full_disk)
            (shard,) = list_shards([str(path)])
            embed_shard(shard, FakeEncoder(), folder, SMALL, run_id="r1")
        stored = read_entry(folder, shard.id)
        assert stored is not None and (stored.rows, stored.replaced) == (4, before)
        (file,) = embeddings(folder)
        assert (file.rows, file.edition) == (3, before.edition)
        assert list(entries(folder)) == [before]
    assert read_status(to).rows == 3
    (finding,) = check(to).findings
    assert finding.what.startswith("it has changed since it was embedded"), "the shard has"

    content = path.read_bytes()
    path.write_bytes(b"no tar" * 100)  # the shard is lost: the rows are not
    assert make_collection(path, to, FakeEncoder()).failed
    assert read_status(to).rows == 3 and [file.rows for file in embeddings(folder)] == [3]

    path.write_bytes(content)
    assert make_collection(path, to, FakeEncoder()).rows == 4
    assert [entry.rows for entry in entries(folder)] == [4] and check(to).findings == []


def test_rows_whose_new_entry_waits_can_be_relocated(tmp_path, monkeypatch):
    path, to = make_shard(tmp_path / "old" / "a.tar", 3), str(tmp_path / "c")
    content = path.read_bytes()
    make_collection(path, to, FakeEncoder())
    make_shard(path, 4, seed=1)
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="no space"):
        patch.setattr(ParquetWriter, "commit", full_disk)
        embed_shard(*list_shards([str(path)]), FakeEncoder(), Folder(to), SMALL, run_id="r1")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.tar").write_bytes(content)
    summary = relocate(Folder(to), str(tmp_path / "old"), str(tmp_path / "new"))
    assert (len(summary.moved), summary.refused) == (1, [])
    (entry,) = entries(Folder(to))
    assert (entry.rows, entry.replaced) == (3, None) and entry.source.url.endswith("new/a.tar")
    assert make_collection(tmp_path / "new", to, FakeEncoder()).skipped == 1
    assert check(to).findings == []


def test_a_ledger_keeps_a_hundred_records_of_a_reason_and_counts_the_rest(tmp_path):
    path = mixed_shard(tmp_path / "a.tar", "t" * 250 + "e" * 120 + "p")
    shard, folder, entry = embed(path, tmp_path / "c")
    stored = read_entry(folder, shard.id)
    assert stored is not None
    for one in (entry, stored):
        assert (one.samples, one.rows, one.dropped_count) == (371, 251, 120)
        assert (len(one.dropped), one.reasons()) == (100, {"empty": 120})
        assert (len(one.notes), one.note_reasons()) == (100, {"no_picture": 250})
    file = find_embedding(folder, shard.id)
    assert file is not None and file.footer.agrees_with(stored)


def test_rules_of_reading_are_in_the_edition_but_for_the_first():
    shard = Shard("file:///a.tar", "a-1", 10, "1")
    scaled = EmbedSettings(decode=DecodeSettings(scaled=True))  # the default of the time
    first = edition_of(shard, "f", scaled)
    assert first == "d3c0ee2e"  # as it was before rules had a version
    today = {"rules": RULES, "decoding": DECODING}
    now = edition_of(shard, "f", EmbedSettings(), **today)
    accepted = list(accepted_editions(shard, "f", EmbedSettings()))
    assert accepted[0] == now and {first, now} < {*accepted} and len({*accepted}) == len(accepted)
    assert [*accepted_editions(shard, "f", EmbedSettings(), reembed=True)] == [now]
    with_limit = edition_of(shard, "f", EmbedSettings(), 7, **today)
    assert with_limit in accepted_editions(shard, "f", EmbedSettings(), 7)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_of_the_first_decoding_count_as_made_by_any_settings_of_today(scaled, exact):
    shard = Shard("file:///a.tar", "a-1", 10, "1")
    settings = EmbedSettings(decode=DecodeSettings(scaled=scaled, exact=exact))
    for was_scaled in (False, True):
        before = EmbedSettings(decode=DecodeSettings(scaled=was_scaled))
        old = edition_of(shard, "f", before, rules=RULES)
        assert old in accepted_editions(shard, "f", settings)
        assert old not in accepted_editions(shard, "f", settings, reembed=True)
        small = replace(before, decode=replace(before.decode, max_megapixels=1))
        assert edition_of(shard, "f", small) not in accepted_editions(shard, "f", settings)
    other = replace(settings, decode=replace(settings.decode, exact=not exact))
    now = edition_of(shard, "f", other, rules=RULES, decoding=DECODING)
    assert now not in accepted_editions(shard, "f", settings)


def make_older(
    folder: Folder,
    shard: Shard,
    fields_added: tuple[str, ...],
    settings: EmbedSettings,
    **versions: int,
) -> None:
    """Make a shard's files those of an earlier version, before these fields of entries."""
    entry, name = read_entry(folder, shard.id), f"embeddings/{shard.id}.parquet"
    assert entry is not None
    edition = edition_of(shard, FakeEncoder().fingerprint, settings, **versions)
    folder.write_whole(
        name, folder.read_bytes(name).replace(entry.edition.encode(), edition.encode())
    )
    fields = json.loads(entry.to_json()) | {"edition": edition}
    for added in fields_added:
        del fields[added]
    folder.write_whole(f"ledger/{shard.id}.json", json.dumps(fields).encode())


def test_shards_of_earlier_rules_are_done_and_renewed_when_asked(tmp_path):
    path, to = make_shard(tmp_path / "a.tar", 3), tmp_path / "c"
    make_collection(path, to, FakeEncoder())
    (shard,) = list_shards([str(path)])
    assert read_status(str(to)).earlier_rules == 0
    added = ("rules", "drop_counts", "note_counts")
    make_older(Folder(str(to)), shard, added, EmbedSettings(), rules=1, decoding=DECODING)
    assert read_status(str(to)).earlier_rules == 1
    assert make_collection(path, to, FakeEncoder()).skipped == 1
    again = make_collection(path, to, FakeEncoder(), reembed=True)
    assert (again.done, again.skipped) == (1, 0) and read_status(str(to)).earlier_rules == 0
    assert make_collection(path, to, FakeEncoder(), reembed=True).skipped == 1


def test_shards_of_older_decoding_are_done_and_renewed_when_asked(tmp_path, chiasm):
    path, to = make_shard(tmp_path / "a.tar", 3), tmp_path / "c"
    make_collection(path, to, FakeEncoder())
    (shard,) = list_shards([str(path)])
    entry = read_entry(Folder(str(to)), shard.id)
    assert entry is not None and entry.decoding == DECODING
    line = "1 shards made by older decoding; chiasm embed --reembed makes them again"
    assert read_status(str(to)).older_decoding == 0 and line not in chiasm("status", to).stdout
    scaled = EmbedSettings(decode=DecodeSettings(scaled=True))
    make_older(Folder(str(to)), shard, ("decoding",), scaled, rules=RULES)
    assert read_status(str(to)).older_decoding == 1 and line in chiasm("status", to).stdout
    assert make_collection(path, to, FakeEncoder()).skipped == 1
    again = make_collection(path, to, FakeEncoder(), reembed=True)
    assert (again.done, again.skipped) == (1, 0) and read_status(str(to)).older_decoding == 0
    assert make_collection(path, to, FakeEncoder(), reembed=True).skipped == 1


def test_a_shard_that_is_cut_is_named_and_fails(tmp_path, capsys):
    path, to = make_shard(tmp_path / "a.tar", 20), tmp_path / "c"
    with tarfile.open(path) as tar:
        inside = tar.getmember("00000007.jpg").offset_data + 100
    data = path.read_bytes()
    path.write_bytes(data[:inside])
    summary = make_collection(path, to, FakeEncoder())
    (damaged,) = summary.damaged
    assert damaged["shard"].endswith("a.tar")
    assert damaged["reason"] == "truncated in sample 00000007: unexpected end of data"
    assert summary.exit_code == 1 and summary.as_json()["shards"]["damaged"] == [damaged]
    summary = replace(summary, max_loss=1.0)
    assert re.search("1 cut or damaged .*--allow-damaged", str(summary_error(summary)))
    assert read_status(str(to)).damaged == [damaged]
    cli.print_odd(summary)
    assert capsys.readouterr().err.startswith(f"damaged {path}: truncated in sample")
    allowed = make_collection(path, to, FakeEncoder(), allow_damaged=True)
    assert summary_error(replace(allowed, max_loss=1.0)) is None and allowed.skipped == 1


def test_a_shard_without_its_end_mark_has_a_note(tmp_path):
    path = make_shard(tmp_path / "a.tar", 200)
    with tarfile.open(path) as tar:
        behind = tar.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:behind])
    summary = make_collection(path, tmp_path / "c", FakeEncoder())
    assert (summary.exit_code, summary.rows, summary.dropped, summary.damaged) == (0, 200, 0, [])
    assert summary.notes["no_end_mark"] == 1 and summary_error(summary) is None


@pytest.mark.parametrize(
    "members, field, hints",
    [
        ({"jpg": b"", "txt": b"a"}, "", []),
        ({"jpg": b""}, "", ["6 rows have no caption (the first has members jpg); captions are"]),
        ({"jpg": b"", "md": b"a"}, "", ["6 rows have no caption (the first has members jpg, md)"]),
        ({"jpg": b"", "json": b'{"caption": "a", "n": 1}'}, "", []),
        (
            {"jpg": b"", "json": b'{"caption": "a", "n": 1}'},
            "captoin",
            ["6 rows lack the field asked for (captoin: the fields of json are "
             "caption, n); name one"],
        ),
        ({"jpg": b"", "txt": "红色".encode("gbk")}, "", ["6 texts are neither UTF-8"]),
        ({"txt": b"a"}, "", ["6 rows have no picture"]),
        ({"1.jpg": b"", "2.txt": b"a"}, "", ["12 rows have a picture or a caption alone"]),
        ({"1.jpg": b"", "3.jpg": b"", "2.txt": b"a"}, "", ["18 rows have a picture or a cap"]),
        ({"jpg": b"", "txt": b" "}, "",
         ["6 rows have no caption: the texts beside their pictures (jpg, txt) are empty"]),
    ],
)  # fmt: skip
def test_what_most_rows_lack_is_told(tmp_path, members, field, hints):
    import random

    rng = random.Random(0)
    files = {}
    for key in "abcdef":
        for name, data in members.items():
            member = f"{key}{name}" if name[0].isdigit() else f"{key}.{name}"
            files[member] = jpeg(rng) if name.endswith("jpg") else data
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    settings = EmbedSettings(read=ReadSettings(caption_field=field))
    summary = make_collection(tmp_path / "a.tar", tmp_path / "c", FakeEncoder(), settings=settings)
    assert len(summary.hints) == len(hints) and summary.as_json()["hints"] == summary.hints
    for found, expected in zip(summary.hints, hints, strict=True):
        assert found.startswith(expected)
