"""The write path in one process: each sample a row or a drop, vectors in place, bytes the same."""

from __future__ import annotations

import hashlib
import io
import json
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

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.collection import embeddings, find_embedding, read_entry
from chiasm.pipeline.editions import EmbedSettings, edition_of
from chiasm.pipeline.embed import Limit, embed_shard
from chiasm.pipeline.encoders import Encoded
from chiasm.pipeline.errors import EncoderError, SourceError
from chiasm.pipeline.records import Dropped, Note, Sample, Shard
from chiasm.pipeline.shards import ReadSettings, list_shards, read_member
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
