"""The protocols of encoders and matchers: defaults, registration, a modality of its own, batches
cut by cost."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from array_encoder import ArrayEncoder, embed_arrays, make_arrays
from commands import run_command
from conftest import dropped, environment, make_shard, samples
from fake_encoder import FakeEncoder, FakeMatcher

from chiasm.index import Query
from chiasm.index.query import encode_queries
from chiasm.pipeline.batches import BatchSettings, batches
from chiasm.pipeline.collection import Collection, Identity
from chiasm.pipeline.encoders import (
    ENCODERS,
    Encoded,
    Input,
    Matcher,
    Ragged,
    load_encoder,
    load_matcher,
    normalized_mean,
    register_encoder,
    require_modality,
)
from chiasm.pipeline.errors import EncoderError, Undecodable, UsageError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.shards import ReadSettings, list_shards, read_member, read_samples
from chiasm.pipeline.verify import check_members

AXES = np.eye(4, 6, dtype=np.float32) + 0.1


def test_rows_are_taken_from_everything_that_is_encoded():
    ragged = Ragged(np.arange(12.0).reshape(6, 2), np.array([1, 3, 2]))
    taken = ragged.take(np.array([2, 0]))
    np.testing.assert_array_equal(taken.values, np.arange(12.0).reshape(6, 2)[[4, 5, 0]])
    np.testing.assert_array_equal(taken.lengths, [2, 1])
    encoded = Encoded(np.eye(3, dtype=np.float32), ragged, np.array([0, 5, 7]), ragged)
    rows = encoded.take(np.array([1]))
    np.testing.assert_array_equal(rows.vectors, [[0, 1, 0]])
    assert rows.tokens_cut.tolist() == [5] and rows.state.lengths.tolist() == [3]
    assert rows.tokens.values.shape == (3, 2) and len(encoded) == 3


def test_by_default_queries_are_encoded_as_rows_and_joined_by_the_mean():
    encoder = FakeEncoder()
    texts = encoder.encode("text", ["a", "b"])
    queries = encoder.encode_queries("text", ["a", "b"])
    np.testing.assert_array_equal(texts.vectors, queries.vectors)
    images = encoder.encode("image", [np.zeros((3, 16, 16)), np.ones((3, 16, 16))])
    parts = {"image": images, "text": texts}
    mean = normalized_mean([images.vectors, texts.vectors])
    np.testing.assert_array_equal(encoder.encode_joint(parts), mean)
    np.testing.assert_array_equal(encoder.encode_joint_queries(parts), mean)
    assert isinstance(FakeMatcher(), Matcher) and not isinstance(encoder, Matcher)


def test_a_modality_that_a_model_does_not_take_is_refused_by_name():
    with pytest.raises(
        UsageError, match="expected one that takes image, found one for array, text"
    ):
        require_modality(ArrayEncoder(), "image")


def test_a_registered_family_is_a_name_of_this_process():
    with pytest.raises(UsageError, match="expected one of pocket, hf:ID_OR_DIR"):
        load_encoder("mine:x")
    register_encoder("mine", lambda model, settings: FakeEncoder(model))
    assert load_encoder("mine:x").name == "fake:x"
    with pytest.raises(UsageError, match="one that matches"):
        load_matcher("mine:x")
    for taken in ("pocket", "a:b", ""):
        with pytest.raises(ValueError, match="a new family without a colon"):
            register_encoder(taken, lambda model, settings: FakeEncoder(model))
    del ENCODERS["mine"]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder on the path with the metadata of a package that declares two encoders."""
    info = tmp_path / "site" / "theirs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[chiasm.encoders]\narrays = array_encoder:load\ngone = array_encoder:no_such\n"
    )
    monkeypatch.syspath_prepend(str(info.parent))
    return info.parent


def test_an_installed_package_declares_an_encoder(installed):
    assert load_encoder("arrays").name == "arrays"
    with pytest.raises(EncoderError, match=r"expected the entry point array_encoder:no_such"):
        load_encoder("gone")
    with pytest.raises(UsageError, match="joint:DIR, fake, arrays, gone"):
        load_encoder("none-of-these")


def test_an_installed_encoder_reaches_ray_workers_and_a_later_search(installed, tmp_path):
    make_arrays(tmp_path / "a.tar", [*AXES, *AXES[::-1] * 2])
    variables = environment()
    variables["PYTHONPATH"] += f":{installed}"

    def run(*arguments):
        ran = run_command([*map(str, arguments)], variables)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    run("embed", tmp_path / "a.tar", "--to", tmp_path / "c", "--encoder", "arrays")
    run("index", "build", tmp_path / "c")
    found = run("search", tmp_path / "c", "mostly three", "--column", "array", "-k", "2")
    assert "00002" in found and "00005" in found
    np.save(tmp_path / "query.npy", AXES[1])
    found = run("search", tmp_path / "c", "--member", f"array={tmp_path / 'query.npy'}", "-k", "2")
    assert "00001" in found and "00006" in found  # of the arrays, without --column
    assert "no findings" in run("check", tmp_path / "c", "--reencode", "5")


def test_a_modality_of_its_own_adds_its_columns_under_schema_2(tmp_path):
    shard, entry, file = embed_arrays(tmp_path, [AXES[0], AXES[1], None, b"no array", AXES[3]])
    assert [(drop.key, drop.reason) for drop in entry.dropped] == [("00003", "not_an_array")]
    assert [(note.key, note.reason, note.detail) for note in entry.notes] == [
        ("00002", "no_member", "array")
    ]
    table = pq.read_table(tmp_path / "c" / "embeddings")
    assert table.column_names[-5:] == [
        "array", "array_sha256", "array_member", "array_offset", "array_size",
    ]  # fmt: skip
    assert table["image"].null_count == table["width"].null_count == 4
    vectors, has = file.vectors("array")
    assert has.tolist() == [True, True, False, True]
    np.testing.assert_allclose(
        vectors[0], ArrayEncoder().encode("array", [AXES[0]]).vectors[0], atol=1e-3
    )
    place = next(s for s in samples(read_arrays(shard)) if s.key == "00001").sources["array"].place
    assert (place.member, place.offset) == (
        table["array_member"][1].as_py(),
        table["array_offset"][1].as_py(),
    )
    assert np.load(io.BytesIO(read_member(shard.url, place))).tolist() == AXES[1].tolist()
    identity = Collection.open(str(tmp_path / "c")).identity
    assert identity.schema == file.footer.schema == 2
    assert identity.dims == file.footer.dims == dict.fromkeys(("array", "text", "joint"), 4)
    assert list(identity.columns) == ["image", "text", "joint", "array"]


def read_arrays(shard):
    return read_samples(shard, ReadSettings(), {"array": ("npy",), "text": ()})


def test_a_sample_with_any_of_the_modalities_is_a_row(tmp_path):
    (shard,) = list_shards([str(make_arrays(tmp_path / "a.tar", [AXES[0], None]))])
    assert [s.missing for s in samples(read_arrays(shard))] == [{}, {"array": "no_member"}]
    only = list(read_samples(shard, ReadSettings(), {"array": ("npy",)}))
    assert [(type(item).__name__, item.key) for item in only] == [
        ("Sample", "00000"), ("Dropped", "00001"),
    ]  # fmt: skip


def test_extensions_are_preferred_in_their_order(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("k.second", "k.first", "k.third"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    (shard,) = list_shards([str(tmp_path / "a.tar")])
    (sample,) = samples(read_samples(shard, ReadSettings(), {"m": ("first", "second", "third")}))
    assert sample.sources["m"].data == b"k.first"


def test_batches_are_cut_by_the_cost_of_the_forward_pass(tmp_path):
    (shard,) = list_shards([str(make_shard(tmp_path / "a.tar", 7))])
    encoder = FakeEncoder()
    one = encoder.cost("image", np.zeros((3, 16, 16), np.uint8)) + encoder.cost(
        "text", "picture 0 of 0"
    )
    assert one == 4 * 3 * 16 * 16 + 4 * len("picture 0 of 0")

    def sizes(settings):
        items = read_samples(shard, ReadSettings())
        return [len(batch) for batch in batches(items, encoder, DecodeSettings(), settings)]

    settings = BatchSettings(size=4)
    assert sizes(settings) == [4, 3]
    assert sizes(replace(settings, max_bytes=2 * one)) == [2, 2, 2, 1]
    assert sizes(replace(settings, max_bytes=1)) == [1] * 7  # one always passes


@pytest.mark.parametrize(
    ("dims", "modalities", "found"),
    [
        ({"image": 8, "text": 4}, ("image", "text"), "image 8, text 4"),
        ({}, ("image",), "found none"),
        ({"image": 8, "joint": 8}, ("image", "text"), "modalities image, text, widths for image"),
        ({"joint": 8}, ("joint",), "modalities joint"),
        ({"key": 8}, ("key",), "found key"),
        ({"../x": 8}, ("../x",), r"found \.\./x"),
        ({"array": 8, "array_size": 8}, ("array", "array_size"), "found array_size"),
    ],
)
def test_columns_that_a_collection_cannot_hold_are_refused(dims, modalities, found):
    encoder = ArrayEncoder()
    encoder.dims, encoder.modalities = dims, dict.fromkeys(modalities, Input())
    with pytest.raises(EncoderError, match=found):
        Identity.of(encoder)


def test_the_extensions_of_pictures_and_texts_are_the_readers_own(tmp_path):
    (shard,) = list_shards([str(make_shard(tmp_path / "a.tar", 3))])
    plain = samples(read_samples(shard, ReadSettings()))
    named = {"image": ("jpg",), "text": ("txt",)}
    assert samples(read_samples(shard, ReadSettings(), named)) == plain


def test_a_modality_may_have_the_extension_of_a_film(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.mp4", "1.txt", "2.depth.png", "2.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
        link = tarfile.TarInfo("3.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "1.mp4"
        tar.addfile(link)
    (shard,) = list_shards([str(tmp_path / "a.tar")])
    wanted = {"image": (), "text": (), "film": ("mp4",), "depth": ("depth.png",)}
    items = list(read_samples(shard, ReadSettings(), wanted))
    assert [sorted(sample.sources) for sample in samples(items)] == [["film"], ["depth"]]
    assert dropped(items) == [("3", "no_file")]


def test_check_encodes_other_modalities_again(tmp_path, monkeypatch):
    monkeypatch.setitem(ENCODERS, "arrays", lambda model, settings: ArrayEncoder())
    embed_arrays(tmp_path, [AXES[0], None, AXES[2]])
    collection = Collection.open(str(tmp_path / "c"))
    checked: Counter[str] = Counter()
    assert list(check_members(collection, 10, checked, EncoderSettings())) == [] and checked == {
        "members": 2
    }
    monkeypatch.setattr(ArrayEncoder, "preprocess", lambda self, modality, raw: AXES[3])
    monkeypatch.setattr(
        ArrayEncoder, "encode", lambda self, modality, items: Encoded(np.eye(4)[[3] * len(items)])
    )
    found = [
        str(finding) for finding in check_members(collection, 10, Counter(), EncoderSettings())
    ]
    assert any("its array vector has cosine" in line for line in found)


def test_a_query_that_the_encoder_cannot_use_is_one_line():
    class Picky(FakeEncoder):
        def preprocess(self, modality, raw):
            raise Undecodable("corrupt", "no such words")

    with pytest.raises(UsageError, match="no such words"):
        encode_queries([Query("a red boat")], Picky(), 8)
