"""Generations: swapped whole, whatever is killed, whoever builds at the same time."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import environment
from tiny_collection import add_shard, make_collection

from chiasm.index import IndexSettings, Query, build_index, open_collection
from chiasm.index.build import fill
from chiasm.index.segments import SEGMENTS, TRAINED, current_number, numbers, open_current
from chiasm.index.verify import check
from chiasm.jobs.cli.status import format_index
from chiasm.jobs.status import read_status
from chiasm.pipeline.collection import parquet_name
from chiasm.pipeline.errors import CollectionError, StaleIndexError
from chiasm.pipeline.storage import Folder, is_temporary

NO_MERCY = IndexSettings(keep_generations=1, keep_seconds=0)
CELLS = IndexSettings(tune=False, exact_below=1, segment_rows=40)
QUERY = Query(vector=np.ones(8))


@pytest.fixture
def no_read_ahead(monkeypatch):
    """A shard is read when its turn has come, so that a test can replace it before that."""
    monkeypatch.setattr(fill, "READS_AHEAD", 0)


def files_on_disk(folder: Folder) -> tuple[list[str], list[str]]:
    """Segments and trained indexes on disk."""
    return folder.folders(SEGMENTS), folder.folders(TRAINED)


def live_segments(folder: Folder) -> list[str]:
    live = open_current(folder)
    assert live is not None
    return [f"{SEGMENTS}/{entry.id}" for entry in live.manifest.segments]


def temporaries(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if is_temporary(file.name)]


def test_the_last_generations_and_the_young_ones_are_kept(tmp_path):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (60,))
    keep_two = IndexSettings(keep_generations=2, keep_seconds=0, tune=False, exact_below=1)
    for expected in ([1], [1, 2], [2, 3], [3, 4]):
        build_index(str(tmp_path), settings=keep_two)
        assert numbers(folder) == expected and current_number(folder) == expected[-1]
        segments, trained = files_on_disk(folder)
        assert len(segments) == len(trained) == len(expected)
    for expected in (3, 4):
        build_index(str(tmp_path))
        assert len(numbers(folder)) == expected, "all are younger than an hour"
    build_index(str(tmp_path), settings=NO_MERCY)
    assert files_on_disk(folder) == (live_segments(folder), []) and len(live_segments(folder)) == 1


def test_an_open_generation_answers_while_newer_ones_replace_it(tmp_path):
    make_collection(tmp_path, (50,))
    build_index(str(tmp_path), settings=NO_MERCY)
    collection = open_collection(tmp_path)
    query = Query(vector=np.ones(8))
    before = collection.search_many([query])[0]
    for _ in range(2):
        build_index(str(tmp_path), settings=NO_MERCY)
    assert collection.search_many([query])[0].results == before.results


def test_a_manifest_that_cannot_be_read_stops_no_build_and_loses_no_segment(tmp_path):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))
    newer = folder.read_bytes("index/generations/000001.json").replace(
        b'"schema": 2', b'"schema": 99'
    )
    folder.write_whole("index/generations/000001.json", newer)
    with pytest.raises(CollectionError, match="schema version 99, of which this chiasm reads 2"):
        open_collection(tmp_path)
    summary = build_index(str(tmp_path))
    assert summary.generation == 2 and len(files_on_disk(folder)[0]) == 2
    build_index(str(tmp_path), settings=NO_MERCY)
    assert numbers(folder) == [3]


def test_a_manifest_that_cannot_be_read_is_named_and_goes_once_it_is_old(tmp_path, caplog):
    """Until then every segment stays, which it may name, but for those of a build that fails."""
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20,))
    for _ in range(2):
        build_index(str(tmp_path))
    damaged = tmp_path / "index/generations/000001.json"
    damaged.write_bytes(b"{")
    caplog.clear()
    build_index(str(tmp_path))
    (warning,) = [line for line in caplog.messages if "000001.json" in line]
    assert "no valid JSON" in warning and "all segments are kept, since it may name" in warning
    assert "remove that file" in warning
    (finding,) = check(str(tmp_path)).findings
    assert "000001.json" in str(finding) and "remove that file" in finding.fix

    def fail(stage: str, done: int, total: int) -> None:
        if stage == "fill":
            raise KeyboardInterrupt

    before = files_on_disk(folder)
    with pytest.raises(KeyboardInterrupt):
        build_index(str(tmp_path), progress=fail)
    assert files_on_disk(folder) == before and len(before[0]) == 3
    mark = tmp_path / "index/generations/000001.replaced"
    os.utime(mark, (mark.stat().st_mtime - 3600,) * 2)
    build_index(str(tmp_path), settings=IndexSettings(keep_generations=9))
    assert numbers(folder) == [2, 3, 4] and len(files_on_disk(folder)[0]) == 3
    assert check(str(tmp_path)).ok


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "CURRENT: expected a generation's number, found ''"),
        (b"zwei", "CURRENT: expected a generation's number, found 'zwei'"),
        (b"000009\n", "000009.json: expected the generation that index/CURRENT names"),
    ],
)
def test_beside_a_damaged_current_the_newest_whole_generation_answers_and_says_so(
    tmp_path, content, message, caplog
):
    make_collection(tmp_path, (20,))
    for _ in range(2):
        build_index(str(tmp_path))
    (tmp_path / "index/CURRENT").write_bytes(content)
    collection = open_collection(tmp_path)
    assert collection.generation.number == 2 and len(collection.search_many([QUERY])[0]) == 10
    assert message in caplog.text and "generation 000002 answers instead" in caplog.text
    status = read_status(str(tmp_path)).index
    assert (status.state, status.generation) == ("current", 2)
    assert message in format_index(status) and status.do in format_index(status) != ""
    assert [message in str(finding) for finding in check(str(tmp_path)).findings] == [True]
    build_index(str(tmp_path))
    assert check(str(tmp_path)).ok and open_collection(tmp_path).generation.instead_of == ""


@pytest.mark.parametrize("missing", ["rows.arrow", "segment.json", "image.f16"])
def test_beside_a_generation_without_its_files_the_one_before_answers(tmp_path, missing, caplog):
    make_collection(tmp_path, (20,))
    for _ in range(2):
        build_index(str(tmp_path))
    (live,) = live_segments(Folder(str(tmp_path)))
    (tmp_path / live / missing).unlink()
    collection = open_collection(tmp_path)
    assert collection.generation.number == 1 and "generation 000001 answers" in caplog.text
    assert len(collection.search_many([QUERY])[0]) == 10
    (tmp_path / "index/generations/000001.json").unlink()
    with pytest.raises(CollectionError, match=f"{missing}: expected .*, found no such file"):
        open_collection(tmp_path)


def test_without_current_the_newest_whole_generation_answers(tmp_path, caplog):
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))
    (tmp_path / "index/CURRENT").unlink()
    assert len(open_collection(tmp_path)) == 20 and "index/CURRENT is missing" in caplog.text


def test_an_index_older_than_its_embeddings_is_refused_unless_allowed(tmp_path):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20, 30))
    build_index(str(tmp_path))
    add_shard(folder, "s1", 30, edition="0000000b", seed=5)
    add_shard(folder, "s2", 10)
    os.unlink(tmp_path / parquet_name("s0-0123456789"))
    with pytest.raises(StaleIndexError) as error:
        open_collection(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: expected an index of the embeddings beside it, found an older one "
        f"(shards: 1 changed, 1 gone, 1 new); run chiasm index add {tmp_path}"
    )
    assert len(open_collection(tmp_path, allow_stale=True)) == 50
    build_index(str(tmp_path))
    answer = open_collection(tmp_path).search_many([Query(vector=np.ones(8), k=40)])[0]
    assert {result.id.partition("@")[2] for result in answer} == {"0000000a", "0000000b"}


def test_rewriting_the_same_rows_makes_no_index_stale(tmp_path):
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))
    before = (tmp_path / parquet_name("s0-0123456789")).stat().st_mtime_ns
    add_shard(Folder(str(tmp_path)), "s0", 20)
    assert (tmp_path / parquet_name("s0-0123456789")).stat().st_mtime_ns != before
    assert len(open_collection(tmp_path)) == 20


def test_a_shard_that_is_not_done_makes_no_index_stale(tmp_path):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))
    add_shard(folder, "s1", 10)
    folder.remove("ledger/s1-0123456789.json")
    assert len(open_collection(tmp_path)) == 20


def ids_found(path: Path, rows: int) -> set[str]:
    answer = open_collection(path, allow_stale=True).search_many([Query(vector=np.ones(8), k=rows)])
    return {result.id for result in answer[0]}


@pytest.mark.usefixtures("no_read_ahead")
@pytest.mark.parametrize(
    ("when", "settings"),
    [
        (("survey", 20), IndexSettings()),
        (("survey", 50), CELLS),
        (("tune image", 0), CELLS),
        (("fill", 20), IndexSettings(segment_rows=20)),
        (("fill", 50), IndexSettings()),
    ],
)
def test_a_shard_embedded_anew_while_it_is_indexed_is_taken_from_its_new_file(
    tmp_path, when, settings
):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20, 30, 10))
    replaced: list[bool] = []

    def replace(stage: str, done: int, total: int) -> None:
        if (stage, done) == when and not replaced:
            replaced.append(True)
            add_shard(folder, "s1", 31, edition="0000000b", seed=7)

    summary = build_index(str(tmp_path), settings=settings, progress=replace)
    assert (summary.rows, summary.shards, summary.vectors["image"]) == (61, 3, 61)
    assert len(open_collection(tmp_path)) == 61, "it is not stale"
    ids = ids_found(tmp_path, 61)
    assert len(ids) == 61 and {f"s1-0123456789/{row}@0000000b" for row in range(31)} < ids
    assert check(str(tmp_path)).ok and temporaries(tmp_path) == []


@pytest.mark.usefixtures("no_read_ahead")
def test_a_shard_embedded_anew_again_and_again_is_left_out_and_the_index_says_so(tmp_path, caplog):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20, 30, 10))
    editions = iter(range(11, 99))

    def replace(stage: str, done: int, total: int) -> None:
        if stage == "fill":
            add_shard(folder, "s1", 30, edition=f"{next(editions):08x}")

    summary = build_index(str(tmp_path), progress=replace)
    assert (summary.rows, summary.shards) == (30, 2)
    assert "shard s1-0123456789 is not in this index" in caplog.text
    with pytest.raises(StaleIndexError, match="1 new"):
        open_collection(tmp_path)
    assert {name.partition("/")[0] for name in ids_found(tmp_path, 30)} == {
        "s0-0123456789",
        "s2-0123456789",
    }


@pytest.mark.usefixtures("no_read_ahead")
def test_a_shard_whose_new_json_has_other_types_is_left_out(tmp_path, caplog):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20, 30))

    def replace(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("fill", 20):
            add_shard(folder, "s1", 30, edition="0000000b", json_of=lambda row: '{"number": "x"}')

    assert build_index(str(tmp_path), progress=replace).rows == 20
    assert "its json has other types" in caplog.text


@pytest.mark.usefixtures("no_read_ahead")
def test_a_shard_removed_while_it_is_indexed_is_not_in_the_index(tmp_path):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20, 30))

    def forget(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("fill", 20):
            folder.remove(parquet_name("s1-0123456789"))
            folder.remove("ledger/s1-0123456789.json")

    assert build_index(str(tmp_path), progress=forget).rows == 20
    assert len(open_collection(tmp_path)) == 20


BUILDERS = """
import json, os, signal, sys
from chiasm.index import IndexSettings, build_index
from chiasm.index.faiss_runtime import load_faiss
load_faiss()
steps, last = 0, None
STEPS = 'open', 'os.mkdir', 'os.rename', 'os.link', 'os.remove', 'os.scandir'

def step(event, arguments):
    global steps
    if event in STEPS:
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

for line in sys.stdin:
    children = []
    reading, writing = os.pipe()
    for last in json.loads(line):
        pid = os.fork()
        if not pid:
            sys.addaudithook(step)
            settings = IndexSettings(tune=False, exact_below=1, segment_rows=40)
            build_index(sys.argv[1], columns=['image'], settings=settings)
            os.write(writing, b'%d\\n' % steps)
            os._exit(0)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    os.close(writing)
    taken = [int(told) for told in os.read(reading, 4096).split()]
    os.close(reading)
    print(json.dumps([max(taken, default=0), codes]), flush=True)
"""


@pytest.fixture
def builders(tmp_path):
    """Builds in processes of their own, that start in no time: builders(None, 9) runs one to its
    end, kills one at its ninth step in the file system, and returns the most steps of one that came
    to its end, and their exit codes."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDERS, str(tmp_path)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None

    def run(*last: int | None) -> tuple[int, list[int]]:
        print(json.dumps(last), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    with process:
        yield run
        process.stdin.close()


def test_a_kill_at_any_moment_leaves_the_live_generation_and_no_mess(tmp_path, builders):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (40,) * 5)
    build_index(str(tmp_path), settings=CELLS)
    truth = open_collection(tmp_path).search_many([Query(vector=np.ones(8))])[0].results
    whole, codes = builders(None)
    assert codes == [0] and current_number(folder) == 2
    dice = random.Random(0)
    for step in dice.sample(range(1, whole), 12):
        assert builders(step)[1] == [-signal.SIGKILL]
        assert current_number(folder) in numbers(folder)
        again = open_collection(tmp_path).search_many([Query(vector=np.ones(8))])[0].results
        assert again == truth
    build_index(str(tmp_path), settings=NO_MERCY)
    assert temporaries(tmp_path) == [] and files_on_disk(folder) == (
        live_segments(folder),
        [],
    )
    assert check(str(tmp_path)).ok


def test_builds_at_once_do_not_harm_each_other(tmp_path, builders):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (40,) * 4)
    assert builders(None, None, None, 9, None)[1] == [0, 0, 0, -signal.SIGKILL, 0]
    assert numbers(folder) == [1, 2, 3, 4] and current_number(folder) == 4
    assert check(str(tmp_path)).ok
    build_index(str(tmp_path), settings=NO_MERCY)
    assert temporaries(tmp_path) == [] and files_on_disk(folder) == (
        live_segments(folder),
        [],
    )


@pytest.mark.usefixtures("no_read_ahead")
def test_a_build_that_covers_less_does_not_replace_one_that_covers_more(tmp_path):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (40, 30))

    def overtaken(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("fill", 70):
            add_shard(folder, "s2", 20)
            assert build_index(str(tmp_path)).rows == 90

    summary = build_index(str(tmp_path), progress=overtaken)
    assert summary.generation == current_number(folder) == 1
    assert len(open_collection(tmp_path)) == 90
    assert files_on_disk(folder)[0] == live_segments(folder), "the rest is swept"


def test_a_sweep_leaves_what_a_living_build_has_written(tmp_path, builders):
    make_collection(tmp_path, (40, 40))

    def other_build(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("fill", 80):  # one segment is whole, one is half-written
            assert builders(None)[1] == [0]

    summary = build_index(str(tmp_path), settings=CELLS, progress=other_build)
    assert summary.generation == 2 and check(str(tmp_path)).ok


def test_a_full_disk_ends_in_one_line_and_leaves_the_live_generation(tmp_path):
    path = tmp_path / "c"
    make_collection(path, (2000,), dim=64)
    build_index(str(path), settings=IndexSettings(tune=False))
    limited = (
        "import resource, sys; from chiasm.index import IndexSettings, build_index; "
        "from chiasm.pipeline.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try: build_index(sys.argv[1], settings=IndexSettings(tune=False))\n"
        "except StorageError as error: print(error)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", limited, str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.count("\n") == 1 and "the limit of a file's size reached" in ran.stdout
    assert ran.stderr == "" and temporaries(path) == []
    assert len(open_collection(path)) == 2000


def test_a_collection_can_be_moved(tmp_path):
    make_collection(tmp_path / "here", (20,))
    build_index(str(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copy)
    shutil.rmtree(tmp_path / "here")
    assert len(open_collection(tmp_path / "there")) == 20, "new times, the same editions"
    assert check(str(tmp_path / "there")).ok
