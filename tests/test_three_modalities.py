"""A joint vector of three modalities: the mean of those that a row has, weighted where weights are
stated."""

from __future__ import annotations

import io
import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from array_encoder import make_arrays
from conftest import jpeg
from fake_encoder import FakeEncoder
from hypothesis import given
from hypothesis import strategies as st
from three_encoder import ThreeEncoder, load
from tiny_sounds import make_sounds

from chiasm.index import Query, build_index, open_collection
from chiasm.index.verify import check
from chiasm.pipeline.collection import Collection, embeddings, read_identity
from chiasm.pipeline.encoders import EncoderSettings, load_encoder, register_encoder, unit
from chiasm.pipeline.encoders.base import joins
from chiasm.pipeline.encoders.registry import ENCODERS
from chiasm.pipeline.encoders.shortened import shortened
from chiasm.pipeline.encoders.weighted import weighted
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.model.config import FusionConfig
from chiasm.pipeline.model.frozen_joint import (
    FrozenJointConfig,
    FrozenJointNetwork,
    save_frozen_joint,
)
from chiasm.pipeline.pretrained import parse_weights
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.verify import check_shards

ALL = ("image", "array", "text")
PATTERNS = [
    names for size in (3, 2, 1) for names in itertools.combinations(ALL, size)
]  # which members a sample has
WEIGHTS = "image=2,array=0,text=0.5"


@pytest.fixture(autouse=True, scope="module")
def registered():
    register_encoder("three", load)
    register_encoder("fusing", lambda model, settings: Fusing())
    yield
    del ENCODERS["three"], ENCODERS["fusing"]


class Fusing(ThreeEncoder):
    """A joint vector that no mean is."""

    name = "fusing"

    def encode_joint(self, parts):
        return parts["image"].vectors[:, ::-1].copy()


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    rng = np.random.default_rng(0)
    samples = []
    for number, names in enumerate(PATTERNS):
        array = io.BytesIO()
        np.save(array, rng.normal(size=6).astype(np.float32) + 2)
        members = {
            "image": ("jpg", jpeg(random.Random(number))),
            "array": ("npy", array.getvalue()),
            "text": ("txt", (["one", "two", "three", "four"][number % 4]).encode()),
        }
        samples.append(dict(members[name] for name in names))
    return make_sounds(tmp_path_factory.mktemp("three") / "s-00000.tar", samples)


def rows_of(path) -> list[dict]:
    (file,) = embeddings(Folder(str(path)))
    return file.read(["key", "image", "array", "text", "joint"]).to_pylist()


def mean_of(row: dict, weights: dict[str, float]) -> np.ndarray:
    parts = [weights[name] * np.float32(row[name]) for name in ALL if row[name] is not None]
    return unit(np.sum(parts, axis=0)[None])[0]


@pytest.mark.parametrize("given_weights", [None, WEIGHTS])
def test_a_row_has_the_mean_of_what_it_has(tmp_path, shard, given_weights):
    encoding = EncoderSettings(joint_weights=given_weights)
    summary = make_collection(shard, tmp_path / "c", "three", encoding=encoding)
    assert summary.rows == len(PATTERNS) and not summary.dropped
    assert summary.notes == {"no_picture": 3, "no_member": 3, "no_caption": 3}
    weights = dict.fromkeys(ALL, 1.0) | (parse_weights(given_weights) if given_weights else {})
    for row, names in zip(rows_of(tmp_path / "c"), PATTERNS, strict=True):
        assert {name for name in ALL if row[name] is not None} == set(names)
        has = len(names) > 1 and any(weights[name] for name in names)
        assert (row["joint"] is not None) == has
        if has:
            np.testing.assert_allclose(row["joint"], mean_of(row, weights), atol=2e-3)
    assert list(check_shards(Collection.open(str(tmp_path / "c")), Counter())) == []
    build_index(tmp_path / "c")
    assert check(tmp_path / "c", reencode=10).findings == []


def test_two_modalities_have_a_joint_vector_only_together(tmp_path, shard):
    make_collection(shard, tmp_path / "c", FakeEncoder())
    (file,) = embeddings(Folder(str(tmp_path / "c")))
    rows = file.read(["image", "text", "joint"]).to_pylist()
    for row in rows:
        both = row["image"] is not None and row["text"] is not None
        assert (row["joint"] is not None) == both


def test_a_fusion_takes_all_of_its_modalities(tmp_path, shard):
    make_collection(shard, tmp_path / "c", "fusing")
    assert [row["joint"] is not None for row in rows_of(tmp_path / "c")] == [True] + [False] * 6


def test_a_joint_vector_of_one_modality_is_a_finding(tmp_path, shard):
    make_collection(shard, tmp_path / "c", "three")
    (path,) = (tmp_path / "c" / "embeddings").iterdir()
    footer, table = pq.read_metadata(path).metadata[b"chiasm"], pq.read_table(path)
    place = table.schema.get_field_index("joint")
    moved = table["joint"].combine_chunks().take([6, 1, 2, 3, 4, 5, 0])
    table = table.set_column(place, table.schema.field(place), moved)
    pq.write_table(table.replace_schema_metadata({b"chiasm": footer}), path)
    (found,) = check_shards(Collection.open(str(tmp_path / "c")), Counter())
    assert "joint vector is null in 2 rows, the first 0" in str(found)


def test_the_collection_keeps_the_weights_and_every_query_has_them(tmp_path, shard):
    encoding = EncoderSettings(joint_weights="text=0.5,image=2")
    make_collection(shard, tmp_path / "c", "three", encoding=encoding)
    identity = read_identity(Folder(str(tmp_path / "c")))
    assert identity is not None and identity.options.joint_weights == "image=2,text=0.5"
    assert make_collection(shard, tmp_path / "c", "three").skipped == 1
    again = replace(encoding, joint_weights="image=2.0, text=.5")
    assert make_collection(shard, tmp_path / "c", "three", encoding=again).skipped == 1
    with pytest.raises(UsageError, match=r"^encoder\.joint_weights=image=1,text=1: expected what"):
        make_collection(
            shard, tmp_path / "c", "three", encoding=EncoderSettings(joint_weights="image=1,text=1")
        )
    build_index(tmp_path / "c")
    searcher = open_collection(tmp_path / "c")
    (hit,) = searcher.search("one", image=np.full((9, 9, 3), 7, np.uint8), column="joint", k=1)
    encoder, weights = searcher.encoder, {"image": 2.0, "text": 0.5}
    parts = {
        "image": encoder.encode("image", [np.full((9, 9, 3), 7, np.uint8)]),
        "text": encoder.encode("text", ["one"]),
    }
    wanted = unit(sum(weights[name] * part.vectors for name, part in parts.items()))
    np.testing.assert_allclose(encoder.encode_joint_queries(parts), wanted, atol=1e-6)
    assert hit.score == pytest.approx(float(wanted[0] @ _joint(searcher, hit)), abs=2e-3)


def _joint(searcher, hit) -> np.ndarray:
    return searcher.vectors("joint", [hit.hit.position])[0]


def test_a_query_of_three_is_their_mean(tmp_path, shard):
    make_collection(shard, tmp_path / "c", "three")
    build_index(tmp_path / "c")
    searcher = open_collection(tmp_path / "c")
    first = searcher.search_many([Query(vector=np.arange(1.0, 5), column="joint", k=10)])[0]
    whole = next(hit for hit in first if hit.key == "00000")
    query = Query(
        whole.caption,
        whole.picture(),
        members={"array": whole.data("array")},
        column="joint",
        k=3,
    )
    (answer,) = searcher.search_many([query])
    assert answer[0].key == "00000" and answer[0].score == pytest.approx(1, abs=2e-3)
    assert str(query) == f'"{whole.caption}" + picture (given as bytes) + array (given as bytes)'


@pytest.mark.parametrize(
    ("weights", "line"),
    [
        ("sound=1", "expected modalities of three: image, array, text, found sound"),
        ("image=0,array=0,text=0", "expected a weight above 0, found none"),
    ],
)
def test_weights_that_do_not_fit_the_encoder_are_refused(weights, line):
    with pytest.raises(UsageError) as refused:
        load_encoder("three", EncoderSettings(joint_weights=weights))
    assert line in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "weights",
    ["", "image", "image=", "=1", "image=-1", "image=nan", "image=inf", "image=1e999", "image=1,",
     "image=1,image=2", "image=1 2", "image:2", "image=0x2", "image=" + "9" * 400],
)  # fmt: skip
def test_what_is_no_weights_is_refused_before_a_model_is_loaded(weights):
    with pytest.raises(UsageError, match=r"^encoder\.joint_weights=.*each modality once"):
        EncoderSettings(joint_weights=weights)


@pytest.mark.parametrize("name", ["fusing", "pocket"])
def test_a_fusion_of_its_own_takes_no_weights(name):
    with pytest.raises(UsageError, match=r"joint vector is a mean, which is .*'s not, found a fus"):
        load_encoder(name, EncoderSettings(joint_weights="image=2"))


@given(st.lists(st.floats(0, 9).map(lambda x: round(x, 3)), min_size=3, max_size=3))
def test_weights_of_the_same_ratios_are_one_space(numbers):
    if not any(numbers):
        return
    encoder = ThreeEncoder()
    one, more = (
        weighted(encoder, ",".join(f"{n}={x * by:.6f}" for n, x in zip(ALL, numbers, strict=True)))
        for by in (1, 4)
    )
    assert one.fingerprint == more.fingerprint
    assert (one.fingerprint == encoder.fingerprint) == (len(set(numbers)) == 1)
    for size in (1, 2, 3):
        for names in itertools.combinations(ALL, size):
            some = any(dict(zip(ALL, numbers, strict=True))[name] for name in names)
            assert joins(one, set(names)) == (size > 1 and some)


def test_vectors_that_are_cut_keep_their_weights():
    whole = weighted(ThreeEncoder(), WEIGHTS)
    short = shortened(whole, 2)
    rng = np.random.default_rng(1)
    items = {"array": [rng.random(6)], "text": ["two"]}
    parts = {name: short.encode(name, some) for name, some in items.items()}
    wanted = whole.encode_joint({name: whole.encode(name, some) for name, some in items.items()})
    np.testing.assert_array_equal(short.encode_joint(parts), unit(wanted[:, :2]))
    assert not joins(short, {"array"}) and joins(short, {"array", "text"})
    assert not joins(weighted(ThreeEncoder(), "text=0,array=0"), {"array", "text"})


def test_what_else_an_encoder_can_do_it_can_with_weights():
    encoder = load_encoder("three", EncoderSettings(joint_weights=WEIGHTS))
    assert encoder.name == "three" and encoder.modalities.keys() == {IMAGE, "array", TEXT}
    assert not hasattr(encoder, "match")
    with pytest.raises(UsageError, match="a weight above 0 for array, found 0"):
        encoder.encode_joint_queries({"array": encoder.encode("array", [np.ones(6)])})


def test_a_shard_of_arrays_and_texts_alone_is_embedded_too(tmp_path):
    shard = make_arrays(tmp_path / "a.tar", [np.eye(4, 6)[0] + 0.1, None])
    make_collection(shard, tmp_path / "c", "three")
    assert [row["joint"] is not None for row in rows_of(tmp_path / "c")] == [True, False]


def test_a_fusion_learned_on_top_takes_its_two_modalities_and_leaves_the_third_out(tmp_path, shard):
    fusion = FusionConfig(width=8, depth=1, heads=2, slots=2)
    network = FrozenJointNetwork(FrozenJointConfig("three", ThreeEncoder.fingerprint, 4, fusion))
    save_frozen_joint(tmp_path / "joint", network.eval())
    name = f"joint:{tmp_path / 'joint'}"
    encoder = load_encoder(name)
    assert list(encoder.modalities) == ["image", "text"]
    assert encoder.dims == {"image": 4, "text": 4, "joint": 4}
    make_collection(shard, tmp_path / "c", name)
    (file,) = embeddings(Folder(str(tmp_path / "c")))
    for row in file.read(["image", "text", "joint"]).to_pylist():
        both = row["image"] is not None and row["text"] is not None
        assert (row["joint"] is not None) == both
    with pytest.raises(UsageError, match="found a fusion of its own"):
        load_encoder(name, EncoderSettings(joint_weights="image=2"))
