"""Files of results: written over no device, link, collection, input or other output."""

from __future__ import annotations

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_shard
from fake_encoder import FakeEncoder
from PIL import Image

from chiasm.index import Query, Recorder, build_index, open_collection, search_file
from chiasm.index.output_files import file_to_write
from chiasm.index.sheet import write_sheet
from chiasm.jobs.cli import search_outputs
from chiasm.jobs.cli.app import application
from chiasm.pipeline.encoders import ENCODERS
from chiasm.pipeline.errors import ChiasmError, StorageError, UsageError
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.storage import Folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    make_collection(make_shard(root / "s.tar", 8, seed=0), root / "c", FakeEncoder())
    build_index(root / "c")
    return root / "c"


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setitem(ENCODERS, "fake", lambda *_: FakeEncoder())


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A folder with a copy of the collection, `c`, a link to it, and files to search by."""
    shutil.copytree(made, tmp_path / "c")
    (tmp_path / "link").symlink_to(tmp_path / "c")
    (tmp_path / "into.json").symlink_to(tmp_path / "c" / "collection.json")
    (tmp_path / "q.txt").write_text("a boat\n")
    pq.write_table(pa.table({"text": ["a boat"]}), tmp_path / "q.parquet")
    os.link(tmp_path / "q.parquet", tmp_path / "same.parquet")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "boat.png")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(root) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refusal(words: list[str]) -> str:
    with pytest.raises(ChiasmError) as error:
        application()(words, standalone_mode=False)
    assert "\n" not in str(error.value)
    return str(error.value)


INSIDE = "expected a file outside the collection, found one in "
OWN = "expected a file of its own, found that of "


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a --receipt c/collection.json", f"--receipt: c/collection.json: {INSIDE}"),
        ("a --receipt link/collection.json", f"--receipt: link/collection.json: {INSIDE}"),
        ("a --receipt into.json", f"--receipt: into.json: {INSIDE}"),
        ("a --receipt sub/../c/new/r.json", f"--receipt: sub/../c/new/r.json: {INSIDE}"),
        ("a --sheet c/a.png", f"--sheet: c/a.png: {INSIDE}"),
        ("a --sheet a.png --receipt sub/../a.png", f"--receipt: sub/../a.png: {OWN}--sheet"),
        ("--image boat.png --sheet boat.png", f"--sheet: boat.png: {OWN}--image boat.png"),
        ("b --image 0.5:boat.png --receipt boat.png", f"--receipt: boat.png: {OWN}--image"),
        ("--queries q.parquet --to q.parquet", f"q.parquet: {OWN}the queries"),
        ("--queries q.parquet --to same.parquet", f"same.parquet: {OWN}the queries"),
        ("--queries q.txt --to c/embeddings/X.parquet", f"c/embeddings/X.parquet: {INSIDE}"),
        ("a --receipt sub/", "--receipt: sub/: expected a file to write, found the name of a f"),
        ("a --receipt new/", "--receipt: new/: expected a file to write, found the name of a f"),
        ("a --receipt ..", "--receipt: ..: expected a file to write, found the name of a folder"),
        ("a --receipt sub", "--receipt: sub: expected a file to write, found something else the"),
        ("a --receipt=", "--receipt: '': expected a path or a URL, found an empty one"),
    ],
)
def test_nothing_is_written_over_what_is_needed(here, words, message, monkeypatch):
    if "--queries" not in words:  # refused before the collection is opened
        monkeypatch.setattr("chiasm.jobs.cli.search.open_collection", None)
    before = contents(here)
    assert refusal(["search", "c", *words.split()]).startswith(message)
    assert contents(here) == before and (here / "into.json").is_symlink()


def test_nor_by_a_program(here):
    index, before = open_collection("c"), contents(here)
    recorder = Recorder(index)
    recorder.search([Query("a")])
    with pytest.raises(UsageError, match=INSIDE):
        recorder.write("c/collection.json")
    with pytest.raises(UsageError, match=INSIDE):
        search_file(index, "q.txt", here / "link" / "X.parquet")
    with pytest.raises(UsageError, match=f"{OWN}the queries"):
        search_file(index, here / "q.parquet", "q.parquet")
    assert contents(here) == before


def test_a_link_is_followed_to_a_file_and_refused_where_something_else_is(here):
    """As /dev/stdout is a link to a file, a pipe or a terminal."""
    os.mkfifo(here / "pipe")
    for name, target in (("stdout", "file"), ("new", "none.json"), ("device", "pipe")):
        (here / name).symlink_to(here / target)
    (here / "file").write_text("before")
    answer = open_collection("c").search("a")
    for name, target in (("stdout", "file"), ("new", "none.json")):
        folder, found = file_to_write(name)
        assert folder.local == here.resolve() and found == target
        folder.write_whole(found, b"after")
        assert (here / name).is_symlink() and (here / target).read_text() == "after"
    (here / "pipe.png").symlink_to(here / "pipe")
    (here / "loop.png").symlink_to("loop.png")
    for bad in ("device", "pipe", "pipe.png", "loop.png"):
        with pytest.raises(StorageError, match=f"^{bad}: expected a file to write, found someth"):
            file_to_write(bad)
    for bad in ("pipe.png", "loop.png"):
        with pytest.raises(StorageError):
            write_sheet([answer], bad)
    (here / "sheet.png").symlink_to(here / "drawn.png")
    write_sheet([answer], "sheet.png")
    assert (here / "sheet.png").is_symlink() and (here / "drawn.png").stat().st_size > 0


def test_a_file_that_has_no_name_any_more_is_refused(here):
    with open(here / "gone", "wb") as file:
        (here / "gone").unlink()
        link = here / "stdout"
        link.symlink_to(f"/proc/self/fd/{file.fileno()}")
        if not link.exists():
            pytest.skip("a system without /proc")
        with pytest.raises(StorageError, match="found something else there"):
            file_to_write(str(link))


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_the_file_that_lines_come_from_or_go_to_is_no_other_output(here, stream, monkeypatch):
    with open(here / "lines", "w+") as file:
        monkeypatch.setattr(search_outputs, "STREAMS", {stream: file.fileno()})
        found = refusal(["search", "c", "a", "--receipt", "lines"])
    assert found == f"--receipt: lines: {OWN}{stream}"


def test_a_file_in_a_store_is_compared_by_its_url():
    collection = Folder("s3://bucket/c")
    assert file_to_write("s3://bucket/c.json", collection)[1] == "c.json"
    with pytest.raises(UsageError, match=INSIDE):
        file_to_write("s3://bucket/c/r.json", collection)
    with pytest.raises(UsageError, match=f"{OWN}--to"):
        file_to_write("s3://bucket/r.json", collection, {"--to": "s3://bucket/r.json"})


def test_one_condition_is_taken(here):
    words = ["search", "c", "a", "--where", "width > 1", "--where", "width < 9"]
    expected = "--where: expected one condition, found 2; write them as one: (CONDITION) AND (CONDI"
    assert refusal(words).startswith(expected)
    delete = ["index", "delete", "c", "--where", "width > 1", "--where", "width < 9"]
    assert refusal(delete).startswith(expected)


def test_a_bad_name_is_named_where_it_was_given(here):
    message = refusal(["search", "c", "--image", "", "--receipt", "r.json"])
    assert message.startswith("--image: ''") and "expected a path or a URL" in message
    with pytest.raises(StorageError, match="expected a file to write, found File name too long"):
        file_to_write("a" * 300 + ".json")
