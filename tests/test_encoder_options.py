"""Options of an encoder: kept in collection.json, used by every query, part of the fingerprint."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_shard
from encoding import encode_joint, encode_texts
from fake_encoder import DIM, FakeEncoder, FakeMatcher, register

from chiasm.index import build_index, open_collection
from chiasm.jobs.config import compose
from chiasm.jobs.embed_shards import resolve_settings
from chiasm.pipeline.collection import Identity, embeddings, read_entry, read_identity
from chiasm.pipeline.encode_batch import encode
from chiasm.pipeline.encoders import Encoded, EncoderSettings, Matcher, load_encoder, unit
from chiasm.pipeline.encoders.explainer import require_explainer
from chiasm.pipeline.encoders.shortened import shortened
from chiasm.pipeline.errors import CollectionError, EncoderError, UsageError
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.pretrained import EncoderOptions
from chiasm.pipeline.records import Batch, Decoded
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.timing import Stopwatch

SHORT = EncoderSettings(dims=3)
PIXELS = np.arange(2 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 3, 16, 16)
TEXTS = ["a boat", "two boats"]


register()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A collection and its index, of vectors that are cut to three numbers."""
    root = tmp_path_factory.mktemp("options")
    shard = make_shard(root / "s-00000.tar", 20, seed=1)
    make_collection(shard, root / "c", "fake", encoding=SHORT)
    build_index(str(root / "c"))
    return root / "c"


def test_cut_vectors_are_the_first_numbers_made_unit_again():
    whole, short = FakeEncoder(), shortened(FakeEncoder(), 3)
    assert short.dims == {"image": 3, "text": 3, "joint": 3}
    np.testing.assert_array_equal(
        encode_texts(short, TEXTS), unit(encode_texts(whole, TEXTS)[:, :3])
    )
    np.testing.assert_array_equal(
        encode_joint(short, PIXELS, TEXTS), unit(encode_joint(whole, PIXELS, TEXTS)[:, :3])
    )
    part = short.encode("text", TEXTS).take(np.array([1]))
    image = short.encode("image", PIXELS[1:])
    np.testing.assert_array_equal(
        short.encode_joint_queries({"image": image, "text": part}),
        encode_joint(short, PIXELS[1:], TEXTS[1:]),
    )


def test_another_width_is_another_space_and_the_whole_width_is_the_encoder_itself():
    encoder = FakeEncoder()
    prints = {shortened(encoder, dims).fingerprint for dims in range(1, DIM + 1)}
    assert len(prints) == DIM
    assert shortened(encoder, DIM) is encoder


@pytest.mark.parametrize("dims", [DIM + 1, 10_000])
def test_more_numbers_than_there_are_is_a_usage_error(dims):
    with pytest.raises(UsageError, match=f"encoder.dims={dims}: expected at most {DIM}"):
        load_encoder("fake", EncoderSettings(dims=dims))


def test_a_matcher_matches_as_before_whatever_the_width_of_its_vectors():
    whole = FakeMatcher("matcher")
    short = load_encoder("fake:matcher", SHORT)
    assert isinstance(short, Matcher)
    assert not isinstance(load_encoder("fake", SHORT), Matcher)
    pairs = np.array([[0, 1], [1, 0]])
    sides = ("text", TEXTS), ("image", PIXELS)
    np.testing.assert_array_equal(short.match(*sides, pairs), whole.match(*sides, pairs))


def test_a_matcher_with_weights_is_one_to_whoever_looks_without_running_it():
    """`isinstance` of a protocol looks so from Python 3.12 on."""
    weighted = load_encoder("fake:matcher", EncoderSettings(joint_weights="image=2"))
    assert inspect.getattr_static(weighted, "match", None) is not None
    assert isinstance(weighted, Matcher) and weighted.joint_weights == {"image": 2.0, "text": 1.0}


def test_what_cuts_vectors_is_said_where_they_are_not_explained():
    with pytest.raises(UsageError, match=r"cut to 3 numbers by encoder\.dims; embed without it"):
        require_explainer(load_encoder("pocket", EncoderSettings(dims=3)))


@pytest.mark.parametrize("option", ["query_prompt", "document_prompt"])
def test_an_option_that_a_family_does_not_take_is_refused(option):
    settings = EncoderSettings(**{option: "x"})
    with pytest.raises(UsageError, match=rf"^encoder\.{option}: .*found fake; leave it out"):
        load_encoder("fake", settings)


def test_options_are_kept_by_the_collection_and_used_by_every_query(made):
    stored = json.loads((made / "collection.json").read_bytes())
    assert stored["options"] == {"dims": 3}
    identity = read_identity(Folder(str(made)))
    assert identity is not None and identity.options == EncoderOptions(dims=3)
    (file,) = embeddings(Folder(str(made)))
    vectors, _ = file.vectors("text")
    captions = [str(caption) for caption in file.read(["caption"])["caption"]]
    wanted = unit(encode_texts(FakeEncoder(), captions)[:, :3])
    np.testing.assert_allclose(vectors.astype(np.float32), wanted, atol=1e-3)
    best = open_collection(made).search(captions[4], column="text", k=1)[0]
    assert best.caption == captions[4]


def test_a_later_run_takes_the_options_of_the_collection_and_refuses_others(made, tmp_path):
    made = shutil.copytree(made, tmp_path / "copy")
    more = make_shard(tmp_path / "s-00001.tar", 3, seed=2)
    assert make_collection(more, made, "fake").rows == 3
    assert make_collection(more, made, "fake", encoding=SHORT).skipped == 1
    line = r"^encoder\.dims=4: expected what .* was made with, found 3; leave it out"
    with pytest.raises(UsageError, match=line):
        make_collection(more, made, "fake", encoding=EncoderSettings(dims=4))
    identity = read_identity(Folder(str(made)))
    flags = {"encoder.name": "fake", "encoder.dims": 4}
    with pytest.raises(UsageError, match=line):
        resolve_settings(compose("laptop", (), flags), identity, "c")
    settings, name = resolve_settings(compose("laptop", ()), identity, "c")
    assert (settings.encoder.dims, name) == (3, "fake")


def test_an_option_for_a_collection_without_it_is_refused(tmp_path):
    shard = make_shard(tmp_path / "s-00000.tar", 3)
    make_collection(shard, tmp_path / "c", "fake")
    assert "options" not in json.loads((tmp_path / "c" / "collection.json").read_bytes())
    with pytest.raises(UsageError, match="found none"):
        make_collection(shard, tmp_path / "c", "fake", encoding=SHORT)


@pytest.mark.parametrize("options", [{"dims": 0}, {"dims": "x"}, {"query_prompt": 3}, []])
def test_damaged_options_are_one_line_that_names_the_file(tmp_path, options):
    fields = json.loads(Identity.of(FakeEncoder()).to_json())
    (tmp_path / "collection.json").write_text(json.dumps({**fields, "options": options}))
    with pytest.raises(CollectionError, match=r"collection\.json: .*options"):
        read_identity(Folder(str(tmp_path)))


def test_options_of_a_later_version_are_passed_over(tmp_path):
    fields = json.loads(Identity.of(FakeEncoder(), SHORT).to_json())
    fields["options"]["later"] = 1
    (tmp_path / "collection.json").write_text(json.dumps(fields))
    identity = read_identity(Folder(str(tmp_path)))
    assert identity == replace(Identity.of(FakeEncoder()), options=EncoderOptions(dims=3))


def test_a_number_below_one_is_a_usage_error():
    for name in ("dims", "pool_tokens"):
        with pytest.raises(UsageError, match=rf"encoder\.{name}: expected 1 or more, found 0"):
            EncoderSettings(**{name: 0})
        with pytest.raises(UsageError, match=rf"encoder\.{name}"):
            compose("laptop", [f"encoder.{name}=0"])


class Cutting(FakeEncoder):
    """A model of ten characters of a text."""

    def encode(self, modality, items):
        made = super().encode(modality, items)
        if modality != "text":
            return made
        cut = np.array([max(0, len(text) - 10) for text in items])
        return Encoded(made.vectors, tokens_cut=cut)


class Ragged(FakeEncoder):
    def encode(self, modality, items):
        made = super().encode(modality, items)
        return Encoded(made.vectors, tokens=np.zeros((len(items), 2)))


def test_vectors_of_tokens_are_not_cut():
    with pytest.raises(EncoderError, match=r"leave encoder\.dims out"):
        shortened(Ragged(), 3).encode("text", TEXTS)


@pytest.mark.parametrize("encoder", [Cutting(), shortened(Cutting(), 3)], ids=["whole", "cut"])
def test_a_caption_longer_than_the_model_takes_is_noted(tmp_path, encoder):
    captions = ["short", "of twelve ch", "x" * 25, "fault:raise", "ten letter"]
    shard = make_shard(tmp_path / "s.tar", 5, captions=captions)
    summary = make_collection(shard, tmp_path / "c", encoder)
    assert summary.notes == {"text_truncated": 2}
    entry = read_entry(Folder(str(tmp_path / "c")), list_shards([str(shard)])[0].id)
    assert entry is not None
    assert [(note.reason, note.detail) for note in entry.notes] == [
        ("text_truncated", "the last 2 tokens of its caption"),
        ("text_truncated", "the last 15 tokens of its caption"),
    ]
    assert not summary.hints  # two of four rows are not more than half


def test_most_captions_cut_is_a_hint(tmp_path):
    shard = make_shard(tmp_path / "s.tar", 3, captions=["x" * 12] * 3)
    (hint,) = make_collection(shard, tmp_path / "c", Cutting()).hints
    assert hint.startswith("3 captions are longer than the model takes (the last 2 tokens")


def test_notes_of_parts_are_of_their_own_rows():
    captions = ["x" * 11, "fault:raise", "y", "z" * 13]
    rows = [
        Decoded(str(number), (text,), None, {"image": PIXELS[0], "text": text})
        for number, text in enumerate(captions)
    ]
    rows.insert(2, Decoded("picture", (), None, {"image": PIXELS[1]}))
    embedded = encode(Batch(rows), Cutting(), Stopwatch())
    assert [note.key for note in embedded.notes] == ["0", "3"]
