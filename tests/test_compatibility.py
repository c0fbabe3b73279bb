"""What was stored is still read: editions, fingerprints, shard ids, and a collection of 3f015cd.

The figures below are those of commit 3f015cd. A change of any of them makes every stored collection
stale or unreadable. The collection, and the weights that made it, were made with that commit's code
by `python -m benchmarks.compatibility --fixture tests/data/collection-schema-1`; without
`--fixture` the same command compares a larger one. To that commit these weights were `pocket`; what
ships now is another model of that name, so they are named by `--encoder`. A two-tower model, its
towers and a collection by it are of the same commit: `--two-tower-fixture tests/data/two-tower-6`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TESTS

from chiasm.index import open_collection
from chiasm.index.verify import check
from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.collection import embeddings, entries, parquet_name
from chiasm.pipeline.editions import EmbedSettings, accepted_editions, edition_of
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import load_encoder
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.model.checkpoint import SHIPPED
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import ReadSettings, list_shards, shard_id
from chiasm.pipeline.storage import Folder

STORED = TESTS / "data" / "collection-schema-1"
SHARD = Shard(
    url="s3://bucket/photos/00000.tar",
    id="00000-9b46692830",
    size=10240,
    version='"9b74c9897bac770ffc029102a200c5de"',
)
FINGERPRINT = "00112233445566778899aabbccddeeff"
TWO_TOWER = TESTS / "data" / "two-tower-6"
MODEL = f"pocket:{STORED / 'model'}"
MODEL_FINGERPRINT = "ef40844b27e0db38f93b2fa0ebaf0e5f"
FLOAT32 = EncoderSettings(precision="float32")
SCALED = DecodeSettings(scaled=True)  # the default of that commit


@pytest.mark.parametrize(
    ("settings", "limit", "edition"),
    [
        (EmbedSettings(decode=SCALED), None, "a7273aa8"),
        (EmbedSettings(decode=SCALED, batch=BatchSettings(size=8)), None, "a7273aa8"),
        (EmbedSettings(decode=SCALED), 7, "173797a2"),
        (EmbedSettings(ReadSettings(caption_field="caption"), SCALED), None, "43a5d77d"),
        (EmbedSettings(decode=DecodeSettings(scaled=False)), None, "482caca0"),
    ],
    ids=["defaults", "batch size", "limit", "caption field", "scaled decoding"],
)
def test_an_edition_is_the_one_that_was_stored(settings, limit, edition):
    assert edition_of(SHARD, FINGERPRINT, settings, limit) == edition
    today = replace(settings, decode=DecodeSettings())
    assert edition in accepted_editions(SHARD, FINGERPRINT, today, limit)
    assert edition not in accepted_editions(SHARD, FINGERPRINT, today, limit, reembed=True)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///data/photos/00000.tar", "00000-bd3c09a67e"),
        ("s3://bucket/photos/00000.tar", "00000-9b46692830"),
        ("https://host/a%20b/%E5%9B%BE.tar.gz", "_-ba63c5c13a"),
        ("hf://datasets/x/y/train-{0}.tar.zst", "train-_0_-d7d0634f77"),
        (f"file:///data/{'x' * 200}.tgz", f"{'x' * 120}-64b44a739d"),
    ],
    ids=["local", "s3", "escaped", "odd characters", "long"],
)
def test_a_shard_id_is_the_one_that_was_stored(url, expected):
    assert shard_id(url) == expected


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(MODEL, FLOAT32)


def test_the_fingerprint_of_a_model_is_the_one_that_was_stored(encoder):
    assert encoder.fingerprint == MODEL_FINGERPRINT


@pytest.fixture
def stored(tmp_path) -> Path:
    """A copy of the stored collection, its files as old as the index says that they are."""
    collection = tmp_path / "collection"
    shutil.copytree(STORED / "collection", collection)
    _restore_times(collection)
    return collection


def _restore_times(collection: Path) -> None:
    for segment in collection.glob("index/segments/*/segment.json"):
        for indexed in json.loads(segment.read_text())["shards"]:
            modified = int(indexed["version"])
            os.utime(collection / parquet_name(indexed["shard"]), ns=(modified, modified))


@pytest.fixture
def shard_urls(s3) -> list[str]:
    """The stored collection's two shards and one more, where its ledger says that they are."""
    names = sorted(path.name for path in (STORED / "shards").glob("*.tar"))
    for name in names:
        data = (STORED / "shards" / name).read_bytes()
        s3.direct.put_object(Bucket="bucket", Key=f"schema-1/{name}", Body=data)
    return [f"s3://bucket/schema-1/{name}" for name in names]


@pytest.mark.parametrize(
    "expected",
    json.loads((STORED / "answers.json").read_text())["answers"],
    ids=lambda expected: expected["text"],
)
def test_a_stored_collection_gives_the_answers_that_it_gave(stored, shard_urls, expected):
    stages = [expected["rerank"]] if "rerank" in expected else []
    answer = open_collection(stored, encoding=FLOAT32, encoder=MODEL).search(
        expected["text"], column=expected["column"], k=3, rerank=stages
    )
    assert [result.id for result in answer] == [hit["id"] for hit in expected["results"]]
    scores = [hit["score"] for hit in expected["results"]]
    # What is reranked is decoded and resized again, today in another way.
    within = 1e-3 if stages else 1e-4
    assert [result.score for result in answer] == pytest.approx(scores, abs=within)


def test_other_weights_of_the_same_name_are_refused_and_the_old_ones_named(stored, chiasm):
    expected = f"expected encoder pocket ({MODEL_FINGERPRINT[:12]}), found another of that name"
    advice = "name the weights that made it, as in --encoder pocket:DIR, or embed the shards"
    sheet = ("--sheet", stored.parent / "sheet.png", "--explain-hits")
    ask = ("ask", stored, "is there a boat in the picture?", *sheet, "--model", MODEL)
    for command in (("search", stored, "a boat"), ("check", stored, "--reencode", "1"), ask):
        ran = chiasm(*command)
        said = ran.stdout + ran.stderr
        assert ran.returncode == 1 and expected in said and advice in said
    receipt = stored.parent / "receipt.json"
    named = ("--encoder", MODEL)
    for command in (
        ("search", stored, "a boat", "--json", "--receipt", receipt),
        ("replay", receipt),
    ):
        ran = chiasm(*command, *named)
        assert ran.returncode == 0 and ran.stdout, ran.stderr
    ran = chiasm(*ask, *named)  # the weights of the collection are taken, and have no decoder
    assert ran.returncode == 2 and "expected one with a decoder" in ran.stderr
    shipped = load_encoder("pocket", FLOAT32).fingerprint
    ran = chiasm("search", stored, "a boat", "--encoder", f"pocket:{SHIPPED}")
    assert ran.returncode == 1
    assert f"found pocket:{SHIPPED} ({shipped[:12]})" in ran.stderr


def test_a_stored_collection_passes_every_check(stored, shard_urls):
    report = check(str(stored), reencode=7, encoder=MODEL)
    assert [str(finding) for finding in report.findings] == []
    assert (report.checked["shards"], report.checked["rows"]) == (2, 7)


def test_a_stored_ledger_is_read_whole(stored):
    first, second = entries(Folder(str(stored)))
    assert (first.rows, second.rows) == (3, 4)
    assert first.reasons() == {"not_a_picture": 1}
    assert [(note.key, note.reason) for note in first.notes] == [("000002", "no_caption")]
    assert first.source.url == "s3://bucket/schema-1/scenes-00000.tar"
    assert first.span is not None and first.quarantined is None and first.attempts == 1


def test_a_shard_embedded_today_gives_the_rows_that_are_stored(encoder, tmp_path, shard_urls):
    target = Folder(str(tmp_path / "today"))
    for shard in list_shards(shard_urls[:2]):
        embed_shard(shard, encoder, target, EmbedSettings(), run_id="test")
        name = parquet_name(shard.id)
        paths = (target.local / name, STORED / "collection" / name)
        made, kept = map(pq.read_table, paths)
        assert made.schema == kept.schema
        footers = [json.loads(pq.read_metadata(path).metadata[b"chiasm"]) for path in paths]
        assert footers[0].pop("edition") != footers[1].pop("edition")  # read by other rules
        assert (footers[0].pop("encoder"), footers[1].pop("encoder")) == (MODEL, "pocket")
        assert footers[0] == footers[1]
        vectors = ["image", "text", "joint"]
        assert made.drop(vectors) == kept.drop(vectors)
        for column in vectors:
            ours, theirs = made[column].to_pylist(), kept[column].to_pylist()
            assert [row is None for row in ours] == [row is None for row in theirs]
            # float16; another processor rounds otherwise
            assert np.allclose(
                [row for row in ours if row], [row for row in theirs if row], atol=2e-3
            )


def test_a_stored_collection_is_resumed_and_added_to(stored, shard_urls, chiasm):
    kept = {path.name: path.read_bytes() for path in stored.glob("embeddings/*.parquet")}
    command = ("embed", *shard_urls, "--to", stored, "--encoder", MODEL, "--max-loss", "1")
    ran = chiasm(*command, "--json")
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout)
    assert (summary["shards"]["skipped"], summary["shards"]["done"]) == (2, 1)
    assert summary["rows"] == 11
    for name, data in kept.items():
        assert (stored / "embeddings" / name).read_bytes() == data

    ran = chiasm("index", "build", stored, "--encoder", MODEL)
    assert ran.returncode == 0, ran.stderr
    answer = open_collection(stored, encoder=MODEL).search("a flower in a meadow", k=20)
    added = [file.shard_id for file in embeddings(Folder(str(stored)))][-1]
    assert len(answer) == 11
    assert sum(result.id.startswith(added) for result in answer) == 4
    assert check(str(stored)).findings == []


@pytest.mark.parametrize(
    "expected",
    json.loads((TWO_TOWER / "answers.json").read_text())["answers"],
    ids=lambda expected: expected["column"],
)
def test_a_stored_two_tower_model_searches_what_it_embedded(tmp_path, monkeypatch, expected):
    """Its towers' fingerprints are those of today, however pictures are decoded by now; else the
    model, or the encoder of the collection, would be another."""
    shutil.copytree(TWO_TOWER, tmp_path, dirs_exist_ok=True)
    collection = tmp_path / "collection"
    _restore_times(collection)
    monkeypatch.chdir(tmp_path)  # the model names its towers from there
    opened = open_collection(collection, encoding=FLOAT32, encoder="two-tower:model")
    answer = opened.search(expected["text"], column=expected["column"], k=3)
    assert [result.id for result in answer] == [hit["id"] for hit in expected["results"]]
    scores = [hit["score"] for hit in expected["results"]]
    # The commit searched in bfloat16; the least gap of two scores is 0.006.
    assert [result.score for result in answer] == pytest.approx(scores, abs=2e-3)
