"""Collections on an object store: the same bytes as on local disk, the same answers, few copies."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import environment, make_shard
from fake_encoder import FakeEncoder
from faulty_server import Faults
from PIL import Image
from undisturbed import SETTINGS, embed

from chiasm.index import open_collection
from chiasm.index.build import build_index
from chiasm.index.segments import current_number, numbers
from chiasm.index.segments.cache import cache_folder
from chiasm.index.sheet import write_sheet
from chiasm.index.verify import check
from chiasm.jobs.status import read_status
from chiasm.pipeline.collection import (
    Identity,
    Run,
    create_or_check,
    embeddings,
    find_embedding,
    runs,
)
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder, streams
from chiasm.pipeline.worklist import WorkList


def put_shards(s3, tmp_path: Path, count: int = 3, start: int = 0, **options) -> list[Shard]:
    for number in range(start, start + count):
        path = make_shard(tmp_path / "tars" / f"{number}.tar", 20, seed=number, **options)
        Folder(f"{s3.root}/shards").write_whole(path.name, path.read_bytes())
    return list_shards([f"{s3.root}/shards"])


@pytest.fixture
def both(s3, tmp_path) -> tuple[Folder, Folder]:
    """One collection on local disk, one on the store, of the same shards of the store."""
    shards = put_shards(s3, tmp_path)
    return embed(shards, str(tmp_path / "here")), embed(shards, f"{s3.root}/there")


def test_the_bytes_are_those_of_local_disk(s3, both):
    here, there = both
    written = {f"there/{name}": here.read_bytes(name) for name in here.list("embeddings")}
    assert len(written) == 3
    assert s3.keys("there/embeddings/") == written
    for ours, theirs in zip(embeddings(here), embeddings(there), strict=True):
        assert ours.footer == theirs.footer
        assert ours.read().equals(theirs.read())
        np.testing.assert_array_equal(ours.vectors("joint")[0], theirs.vectors("joint")[0])
        groups = [list(file.groups(["key", "image"])) for file in (ours, theirs)]
        assert groups[0] == groups[1]
    assert read_status(there.url).rows == 60


def test_faults_at_random_change_no_byte(s3, tmp_path):
    shards = put_shards(s3, tmp_path)
    here = embed(shards, str(tmp_path / "here"))
    s3.server.faults = Faults(share=0.1, seed=3)
    there = embed(shards, f"{s3.root}/there")
    build_index(there.url)
    assert sum(s3.server.failed.values()) > 3
    assert [there.read_bytes(n) for n in here.list("embeddings")] == [
        here.read_bytes(n) for n in here.list("embeddings")
    ]
    assert check(there.url, reencode=10).findings == []


def test_a_search_answers_as_on_local_disk(s3, both, tmp_path):
    answers = []
    for folder in both:
        build_index(folder.url)
        answers.append(open_collection(folder.url).search("picture 3", k=4))
    here, there = (answer.as_json()["results"] for answer in answers)
    assert here == there and len(there) == 4
    s3.server.seen.clear()
    assert answers[1][0].picture() == answers[0][0].picture()
    assert s3.server.seen == {"range": 2}
    write_sheet([answers[1]], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 500
    report = check(both[1].url, reencode=10)
    assert report.findings == [] and report.checked["pictures"] == 10


def test_index_files_are_pulled_once_and_only_those_that_are_needed(s3, both):
    there = both[1]
    build_index(there.url)
    open_collection(there.url).search("picture 3", column="text")
    assert len(list(cache_folder().iterdir())) == 3, (
        "the catalog's checksums, parts of it, the vectors"
    )
    s3.server.seen.clear()
    open_collection(there.url).search("picture 4", column="text")
    # The collection, CURRENT with the manifest, that it is there, the segment, and that nothing was
    # relocated.
    assert s3.server.seen["range"] == 5


def test_what_is_wrong_in_the_bucket_is_found_there(s3, both):
    there = both[1]
    build_index(there.url)
    assert check(there.url).ok
    (raw,) = (name for name in s3.keys("there/index/") if name.endswith("image.f16"))
    name = raw.removeprefix("there/")
    there.write_whole(name, there.read_bytes(name)[::-1])
    (found,) = check(there.url).findings
    assert found.where == name and "expected checksum" in found.what


def test_two_builds_at_once_get_two_numbers(s3, both):
    there = both[1]
    with ThreadPoolExecutor(2) as building:
        built = list(building.map(lambda _: build_index(there.url).generation, range(2)))
    assert sorted(numbers(there)) == [1, 2]
    assert current_number(there) == max(built) == 2


def test_two_runs_share_the_shards_and_embed_none_twice(s3, tmp_path):
    shards = put_shards(s3, tmp_path, 6)
    folder, encoder = Folder(f"{s3.root}/there"), FakeEncoder()
    start, both_have_one = threading.Barrier(2), threading.Barrier(2)

    def work(_: int) -> set[str]:
        with Run(folder, "embed", {}) as run:
            work = WorkList(shards, run, SETTINGS)
            work.skip_finished(create_or_check(folder, Identity.of(encoder), run.id))
            start.wait()
            done: set[str] = set()
            while not work.over:
                if (task := work.take()) is None:
                    time.sleep(0.05)
                    continue
                if not done:
                    both_have_one.wait(60)
                entry = embed_shard(task.shard, encoder, folder, SETTINGS, run_id=run.id)
                work.finish(task, entry)
                done.add(task.shard.id)
            return done

    with ThreadPoolExecutor(2) as working:
        one, other = working.map(work, range(2))
    assert one and other and not one & other and len(one | other) == 6
    here = embed(shards, str(tmp_path / "here"))
    assert s3.keys("there/embeddings/") == {
        f"there/{name}": here.read_bytes(name) for name in here.list("embeddings")
    }


def test_a_network_that_fails_is_no_damaged_collection(s3, both, monkeypatch):
    there = both[1]
    shard_id = embeddings(there)[0].shard_id
    monkeypatch.setattr(streams, "TAIL", 4000)
    file = find_embedding(there, shard_id)
    with file.open() as parquet:
        s3.server.faults = Faults(always={"range": "cut"})
        with pytest.raises(StorageError, match="5 attempts failed"):
            parquet.read()
    with pytest.raises(StorageError, match="5 attempts failed"):
        file.read()
    with pytest.raises(StorageError, match="5 attempts failed"):
        embeddings(there)
    s3.server.faults = Faults()
    name = f"embeddings/{shard_id}.parquet"
    there.write_whole(name, there.read_bytes(name)[:-9])
    with pytest.raises(CollectionError, match="expected a whole Parquet file"):
        embeddings(there)


def test_runs_that_have_ended_are_not_read_again(s3):
    folder = Folder(s3.root)
    for _ in range(5):
        with Run(folder, "embed", {}):
            pass
    with Run(folder, "embed", {}) as run, Run(folder, "embed", {}) as other:
        other.claim(["a"])
        assert [found.claimed for found in run.others()] == [("a",)]
        s3.server.seen.clear()
        assert [found.claimed for found in run.others()] == [("a",)]
        assert s3.server.seen["range"] == 1, "that of the one that runs"
    assert [found.state for found in runs(folder)] == ["failed"] * 7


UPLOAD_AND_HANG = """
import sys
from chiasm.pipeline.storage import s3, uploads
from chiasm.pipeline.collection.runs import Run
from chiasm.pipeline.storage.folder import Folder
uploads.SINGLE_PUT_BYTES = s3.PART = 5 << 20
folder = Folder(sys.argv[1])
name = "embeddings/a-0123456789.parquet"
with Run(folder, "test", {}) as run, folder.create(name, run.id) as file:
    run.claim(["a-0123456789"])
    file.write(bytes(11 << 20))
    print(run.id, flush=True)
    file.commit()
"""


def test_a_run_killed_in_the_middle_of_an_upload_leaves_nothing_that_is_paid_for(s3):
    folder = Folder(s3.root)
    s3.server.faults = Faults(always={"part": "503"})
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOAD_AND_HANG, s3.root],
        stdout=subprocess.PIPE,
        env=environment(),
    )
    with process, Run(folder, "embed", {}) as run:
        process.stdout.readline()
        while not s3.server.seen["part"]:
            pass
        assert run.sweep(["embeddings"]) == [], "it lives"
        assert len(s3.uploads()) == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert run.sweep(["embeddings"]) == [folder.url_of("embeddings/a-0123456789.parquet")]
    assert s3.uploads() == []
