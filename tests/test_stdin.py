"""Lines of standard input: in any encoding that says which one it is, as they arrive."""

from __future__ import annotations

import codecs
import os

import pytest
from conftest import make_shard

from chiasm.jobs.cli.options import list_command_shards
from chiasm.jobs.cli.search import _batches
from chiasm.jobs.console import lines_of, streams
from chiasm.pipeline.errors import UsageError

TEXT = "a red boat\r\n\n 犬が走る \né"
BIG_ENDIAN = {"utf-16-be": codecs.BOM_UTF16_BE, "utf-32-be": codecs.BOM_UTF32_BE}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", *BIG_ENDIAN)


def encoded(text: str, encoding: str) -> bytes:
    return BIG_ENDIAN.get(encoding, b"") + text.encode(encoding)


@pytest.fixture
def pipe(monkeypatch):
    """A pipe, whose reading end is the process's standard input."""
    read, write = os.pipe()
    with os.fdopen(read) as stdin, os.fdopen(write, "wb", buffering=0) as end:
        monkeypatch.setattr("sys.stdin", stdin)
        yield read, end


@pytest.mark.parametrize("chunk", [1, 1 << 16])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lines_are_read_in_the_encoding_that_their_mark_names(encoding, chunk, pipe, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", chunk)
    read, end = pipe
    end.write(encoded(TEXT, encoding))
    end.close()
    lines = [line for lines in lines_of(read, "strict") for line in lines]
    assert lines == TEXT.split("\n")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_queries_and_lists_of_a_windows_shell_are_read(encoding, pipe, tmp_path):
    _, end = pipe
    end.write(encoded(TEXT, encoding))
    end.close()
    queries = [query for batch in _batches(None, str, True) for query in batch]
    assert queries == ["a red boat", "犬が走る", "é"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_list_of_shards_is_read(encoding, pipe, tmp_path):
    _, end = pipe
    paths = [make_shard(tmp_path / name, 1) for name in ("犬.tar", "é.tar")]
    end.write(encoded("\r\n".join(map(str, paths)), encoding))
    end.close()
    shards = list_command_shards(["-"], allow_query=False)
    assert [shard.url for shard in shards] == [path.as_uri() for path in paths]


def test_a_name_that_is_no_utf8_can_be_listed(pipe, tmp_path):
    _, end = pipe
    path = make_shard(tmp_path / "odd\udcff.tar", 1)
    end.write(os.fsencode(path))
    end.close()
    assert len(list_command_shards(["-"], allow_query=False)) == 1


def test_a_line_is_answered_before_the_next_one_is_written(pipe):
    read, end = pipe
    lines = lines_of(read, "replace")
    for line in (b"a\n", b"\xc3\xa9\n", b"\xff\xfe\n"):
        end.write(line)
        assert next(lines) == [line[:-1].decode("utf-8", "replace")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32-be"])
def test_a_null_character_is_refused_by_its_line(encoding, pipe, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 7)
    read, end = pipe
    end.write(b"first\nsecond\n" + "third".encode(encoding))
    end.close()
    with pytest.raises(UsageError) as refused:
        list(lines_of(read, "replace"))
    assert str(refused.value) == (
        "line 3 of stdin: expected text in UTF-8, or in UTF-16 with a byte order mark, "
        "found a null character"
    )
