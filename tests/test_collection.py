"""A collection's identity: written once, checked at every open."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
from fake_encoder import FakeEncoder

from chiasm.pipeline.collection import (
    Collection,
    Identity,
    LedgerEntry,
    create_or_check,
    ledger_name,
    read_entry,
    read_identity,
    write_entry,
)
from chiasm.pipeline.collection.identity import NAME
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.records import Dropped, Note, Shard
from chiasm.pipeline.storage import Folder


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
            "found schema version 99, of which .* reads 2",
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
