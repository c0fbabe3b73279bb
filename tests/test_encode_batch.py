"""Samples that an encoder does not take are dropped by name; a model at fault ends the run."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from conftest import make_shard
from encoding import encode_joint, encode_texts
from fake_encoder import FakeEncoder

from chiasm.pipeline import encode_batch
from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.collection import Collection, find_embedding, read_entry
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encode_batch import encode
from chiasm.pipeline.encoders import ENCODERS, Encoded, EncoderSettings
from chiasm.pipeline.errors import EncoderError, Undecodable
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.records import Batch, Decoded, Dropped
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.timing import Stopwatch
from chiasm.pipeline.verify.reencode import check_members


class Recording(FakeEncoder):
    """Remembers the captions of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[str]] = []

    def encode(self, modality, items):
        if modality == "text":
            self.calls.append(list(items))
        return super().encode(modality, items)


def batch_of(captions) -> Batch:
    pixels = np.arange(len(captions) * 3 * 16 * 16, dtype=np.uint8).reshape(-1, 3, 16, 16)
    return Batch(
        [
            Decoded(f"k{number}", (caption,), None, {"image": pixels[number], "text": caption})
            for number, caption in enumerate(captions)
        ]
    )


def encoded(captions, encoder=None):
    return encode(batch_of(captions), encoder or FakeEncoder(), Stopwatch(), "a.tar")


@pytest.mark.parametrize("size", [1, 2, 5, 8, 13])
@pytest.mark.parametrize("fault", ["raise", "nan", "inf", "zero", "long", "memory"])
def test_bad_samples_are_found_wherever_they_are_and_the_others_keep_their_vectors(size, fault):
    rng, encoder = np.random.default_rng(size), FakeEncoder()
    spots = [{0}, {size - 1}, set(range(1, size)), set(range(size)), {0, size // 2, size - 1}]
    spots += [set(np.flatnonzero(rng.random(size) < 0.4).tolist()) for _ in range(3)]
    for bad in spots:
        if fault == "memory" and size > 1 and len(bad) == size:
            continue  # the machine's fault, see below
        recording = Recording()
        captions = [
            f"fault:{fault}" if number in bad else f"text {number}" for number in range(size)
        ]
        made = encoded(captions, recording)
        kept = [number for number in range(size) if number not in bad]
        assert [row.key for row in made.batch.rows] == [f"k{number}" for number in kept]
        reason = {"raise": "refused", "memory": "out_of_memory", "nan": "not_finite",
                  "inf": "not_finite", "zero": "not_unit", "long": "not_unit"}[fault]  # fmt: skip
        assert [(drop.key, drop.stage, drop.reason) for drop, _ in made.refused] == [
            (f"k{number}", "encode", reason) for number in sorted(bad)
        ]
        assert all(drop.detail.startswith("text: ") for drop, _ in made.refused)
        if not kept:
            assert made.columns == {}
            continue
        texts = [captions[number] for number in kept]
        assert recording.calls[-1] == texts  # together, whatever was dropped
        pixels = [batch_of(captions).rows[number].inputs["image"] for number in kept]
        for column, wanted in (
            ("image", encoder.encode("image", pixels).vectors),
            ("text", encode_texts(encoder, texts)),
            ("joint", encode_joint(encoder, pixels, texts)),
        ):
            np.testing.assert_array_equal(made.columns[column].vectors, wanted)
            assert made.columns[column].has.all()


def test_a_pair_that_is_refused_though_its_picture_and_text_are_not_is_dropped():
    class Pairs(FakeEncoder):
        def encode_joint(self, parts):
            bad = encode_texts(self, ["text 3"])
            if (parts["text"].vectors == bad).all(1).any():
                raise ValueError("such a pair\nin many lines")
            return super().encode_joint(parts)

    made = encoded([f"text {number}" for number in range(6)], Pairs())
    (refused,) = made.refused
    assert refused == (Dropped("k3", "encode", "refused", "joint: ValueError: such a pair"), ())
    assert len(made.batch) == 5 and made.columns["joint"].has.all()


def test_rows_without_a_modality_stay_in_place_when_others_are_dropped():
    captions = ["one", "fault:raise", "three", "four"]
    rows = batch_of(captions).rows
    rows[2] = Decoded("k2", (), None, {"image": rows[2].inputs["image"]})
    rows[3] = Decoded("k3", ("four",), None, {"text": "four"})
    made = encode(Batch(rows), FakeEncoder(), Stopwatch())
    has = {name: column.has.tolist() for name, column in made.columns.items()}
    assert has == {
        "image": [True, True, False], "text": [True, False, True], "joint": [True, False, False],
    }  # fmt: skip


class Small(FakeEncoder):
    """A device with memory for so many samples at once, and for captions of ten characters."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def encode(self, modality, items):
        if len(items) > self.room or any(modality == "text" and len(i) > 10 for i in items):
            raise MemoryError
        return super().encode(modality, items)


def test_no_sample_is_dropped_because_a_whole_batch_does_not_fit():
    captions = [f"text {number}" for number in range(9)]
    made, whole = encoded(captions, Small(2)), encoded(captions)
    assert made.refused == () and [row.key for row in made.batch.rows] == [
        f"k{number}" for number in range(9)
    ]
    for name, column in whole.columns.items():
        np.testing.assert_array_equal(made.columns[name].vectors, column.vectors)
        np.testing.assert_array_equal(made.columns[name].has, column.has)


def test_a_sample_that_does_not_fit_alone_is_dropped_and_none_that_fits_is_the_machines_fault(
    monkeypatch,
):
    monkeypatch.setattr(encode_batch, "probe_encoder", lambda encoder: None)
    made = encoded(["one", "a caption of many words", "three"], Small(2))
    assert [(drop.key, drop.reason) for drop, _ in made.refused] == [("k1", "out_of_memory")]
    with pytest.raises(EncoderError) as caught:
        encoded(["a", "b", "c"], Small(0))
    assert str(caught.value) == (
        "encoder fake: expected memory for the forward pass of one sample, k0 to k2 of a.tar, "
        "found image: MemoryError; free memory, or take a smaller model or another --device"
    )


def test_samples_that_do_not_go_together_are_rows_all_the_same():
    class Together(FakeEncoder):
        def encode(self, modality, items):
            if modality == "text" and len({len(item) for item in items}) > 1:
                raise ValueError("stack expects each tensor to be equal size")
            return super().encode(modality, items)

    made = encoded(["a", "bb", "c", "dd", "ee", "f"], Together())
    assert made.refused == () and len(made.batch) == 6
    np.testing.assert_array_equal(
        made.columns["text"].vectors,
        encode_texts(FakeEncoder(), ["a", "bb", "c", "dd", "ee", "f"]),
    )


def test_an_encoder_that_leaves_out_what_it_does_not_take_shifts_no_row():
    class Skipping(FakeEncoder):
        def encode(self, modality, items):
            taken = [i for i in items if modality == "image" or i != "text 2"]
            if not taken:
                return Encoded(np.zeros((0, 8), np.float32))
            return super().encode(modality, taken)

    made = encoded([f"text {number}" for number in range(5)], Skipping())
    assert [(drop.key, drop.detail) for drop, _ in made.refused] == [
        ("k2", "text: shape (0, 8), not (1, 8)")
    ]
    wanted = encode_texts(FakeEncoder(), ["text 0", "text 1", "text 3", "text 4"])
    np.testing.assert_array_equal(made.columns["text"].vectors, wanted)


def embed(path, to, encoder, size=4):
    (shard,) = list_shards([str(path)])
    settings = EmbedSettings(batch=BatchSettings(size=size, decode_threads=1))
    folder = Folder(str(to))
    return shard, folder, embed_shard(shard, encoder, folder, settings, run_id="r1")


@pytest.mark.parametrize("size", [1, 3, 64])
def test_a_shard_with_samples_that_are_refused_is_whole_but_for_them(tmp_path, size):
    captions = ["one", "fault:raise", "three", "fault:nan", "fault:zero", "six"]
    path = make_shard(tmp_path / "a.tar", 7, captions=captions)
    shard, folder, entry = embed(path, tmp_path / "c", FakeEncoder(), size)
    assert [(drop.key[-1], drop.reason) for drop in entry.dropped] == [
        ("1", "refused"), ("3", "not_finite"), ("4", "not_unit"),
    ]  # fmt: skip
    assert entry.dropped[0].detail == "text: ZeroDivisionError: a fault was asked for"
    assert (entry.samples, entry.rows) == (7, 4)
    assert read_entry(folder, shard.id).dropped == entry.dropped
    table = find_embedding(folder, shard.id).read()
    assert [key[-1] for key in table["key"].to_pylist()] == ["0", "2", "5", "6"]
    assert table["caption"].to_pylist() == ["one", "three", "six", "picture 6 of 0"]
    np.testing.assert_allclose(
        find_embedding(folder, shard.id).vectors("text")[0],
        encode_texts(FakeEncoder(), table["caption"].to_pylist()),
        atol=1e-3,
    )


def test_a_sample_that_is_refused_ends_no_run_and_is_told_by_shard_and_key(shards, tmp_path):
    odd = make_shard(tmp_path / "odd.tar", 4, seed=9, captions=["fault:raise"])
    summary = make_collection([shards[0], odd, shards[1]], tmp_path / "c", "fake")
    assert (summary.done, summary.rows, summary.dropped) == (3, 43, 1)
    assert summary.reasons == {"refused": 1} and summary.failed == []
    ((url, drop),) = summary.dropped_samples
    assert url.endswith("/odd.tar") and drop.key == "00900000"


def test_a_refused_sample_has_no_notes(tmp_path, monkeypatch):
    class Half(FakeEncoder):
        def encode(self, modality, items):
            if modality == "image":
                raise ValueError("no pictures")
            return super().encode(modality, items)

    path = make_shard(tmp_path / "a.tar", 3, captions=["", "", ""])
    assert {note.reason for note in embed(path, tmp_path / "b", FakeEncoder())[2].notes} == {
        "no_caption"
    }
    monkeypatch.setattr(encode_batch, "probe_encoder", lambda encoder: None)
    entry = embed(path, tmp_path / "c", Half())[2]
    assert (entry.rows, len(entry.dropped), entry.notes) == (0, 3, ())


class Hopeless(FakeEncoder):
    """Takes what the trial gives it, and no sample."""

    where = "encode"

    def preprocess(self, modality, raw):
        if self.where == "preprocess" and modality == "text" and raw.startswith("picture"):
            raise ValueError("no such text")
        return super().preprocess(modality, raw)

    def encode(self, modality, items):
        if self.where == "encode" and modality == "text" and items[0].startswith("picture"):
            raise ValueError("no such text")
        return super().encode(modality, items)


@pytest.mark.parametrize("where", ["preprocess", "encode"])
def test_a_model_that_takes_no_sample_of_many_ends_the_run_in_one_line(
    tmp_path, monkeypatch, where
):
    monkeypatch.setattr(encode_batch, "MOST_REFUSED", 6)
    encoder = Hopeless()
    encoder.where = where
    few = embed(make_shard(tmp_path / "few.tar", 5), tmp_path / "few", encoder)[2]
    assert (few.rows, len(few.dropped)) == (0, 5)
    path = make_shard(tmp_path / "a.tar", 9)
    with pytest.raises(EncoderError, match=r"expected vectors for some samples of .*a\.tar, found"):
        embed(path, tmp_path / "c", encoder)
    assert list((tmp_path / "c").rglob("*.json")) == []


def test_a_model_that_fails_from_some_moment_on_ends_the_run(tmp_path):
    """As a CUDA device does after one illegal access: everything fails from then on."""

    class Dying(FakeEncoder):
        dead = False

        def encode(self, modality, items):
            self.dead |= modality == "text" and "fault:raise" in items
            if self.dead:
                raise RuntimeError("CUDA error: device-side assert triggered")
            return super().encode(modality, items)

    captions = [f"text {number}" for number in range(6)] + ["fault:raise"]
    path = make_shard(tmp_path / "a.tar", 12, captions=captions)
    with pytest.raises(EncoderError, match=r"assert triggered \(at 00000004 to 00000007 of .*a\."):
        embed(path, tmp_path / "c", Dying())


def test_what_the_encoder_cannot_use_by_its_own_word_is_dropped_too():
    class Choosy(FakeEncoder):
        def encode(self, modality, items):
            if modality == "text" and "\ud83d" in items:
                "\ud83d".encode()
            if modality == "text" and "empty" in items:
                raise Undecodable("corrupt", "no words")
            return super().encode(modality, items)

    made = encoded(["one", "\ud83d", "empty"], Choosy())
    assert [(drop.key, drop.reason) for drop, _ in made.refused] == [
        ("k1", "refused"), ("k2", "refused"),
    ]  # fmt: skip
    assert all(drop.detail.isascii() and drop.detail for drop, _ in made.refused)


def test_check_tells_of_a_row_that_the_encoder_does_not_take_any_more(tmp_path, monkeypatch):
    make_collection(make_shard(tmp_path / "a.tar", 5), tmp_path / "c", "fake")

    class Later(FakeEncoder):
        def encode(self, modality, items):
            if modality == "text" and "picture 2 of 0" in items:
                raise ValueError("not any more")
            return super().encode(modality, items)

    monkeypatch.setitem(ENCODERS, "fake", lambda model, settings: Later(model))
    collection, checked = Collection.open(str(tmp_path / "c")), Counter()
    (finding,) = check_members(collection, 5, checked, EncoderSettings())
    assert ", row 2: the encoder does not take it: refused: text: ValueError" in str(finding)
    assert checked == {"pictures": 5}
