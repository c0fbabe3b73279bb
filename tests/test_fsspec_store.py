"""A store over an fsspec filesystem: what its answers and its errors mean."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from types import SimpleNamespace

import aiohttp
import pytest

from chiasm.pipeline.storage.fsspec_store import FsspecStore
from chiasm.pipeline.storage.object_store import ByteRange
from chiasm.pipeline.storage.store_errors import (
    AlreadyExists,
    NotFound,
    RangeNotSatisfiable,
    Refused,
    TransientError,
)


def store_with(**methods) -> FsspecStore:
    return FsspecStore(SimpleNamespace(**methods))


def raising(error: Exception):
    def call(*_args, **_kwargs):
        raise error

    return call


def with_fields(error: Exception, **fields: object) -> Exception:
    for name, value in fields.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError("f"), NotFound),
        (FileExistsError("f"), AlreadyExists),
        (PermissionError("f"), Refused),
        (IsADirectoryError("f"), Refused),
        (NotImplementedError("f"), Refused),
        (ValueError("f"), Refused),
        (OSError("f"), TransientError),
        (aiohttp.ClientError("f"), TransientError),  # of a network package, and no OSError
        (with_fields(OSError("f"), code=412), AlreadyExists),
        (with_fields(OSError("f"), status=412), AlreadyExists),
        (with_fields(OSError("f"), response=SimpleNamespace(status_code=403)), Refused),
        (with_fields(OSError("f"), code=403), Refused),
        (with_fields(OSError("f"), code=408), TransientError),
        (with_fields(OSError("f"), code=429), TransientError),
        (with_fields(OSError("f"), code=503), TransientError),
        (with_fields(OSError("f"), code=4), TransientError),
        (RuntimeError("f"), RuntimeError),  # a fault of a program, not of a network
    ],
)
def test_an_error_of_a_filesystem_is_one_of_a_store(error, expected):
    with pytest.raises(expected) as caught:
        store_with(rm_file=raising(error)).remove("b/a")
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("info", "version"),
    [
        ({"etag": '"e"', "generation": 3}, "e"),
        ({"etag": "", "ETag": "E", "mtime": 5}, "E"),
        ({"generation": 3, "mtime": 5}, "3"),
        ({"last_modified": 7}, "7"),
        ({}, ""),
    ],
)
def test_the_version_is_what_changes_with_the_content(info, version):
    found = store_with(info=lambda path: {"type": "file", "size": 4, **info}).head("b/a")
    assert (found.size, found.version, found.modified) == (4, version, None)


def test_a_time_is_told_where_the_filesystem_has_one_and_a_folder_is_no_object():
    changed = datetime(2026, 1, 1, tzinfo=UTC)
    for name in ("mtime", "last_modified", "created"):
        info = {"type": "file", "size": None, name: changed}
        found = store_with(info=lambda path, info=info: info).head("b/a")
        assert (found.size, found.modified) == (-1, changed.timestamp())
    with pytest.raises(NotFound):
        store_with(info=lambda path: {"type": "directory", "size": 0}).head("b/a")


def test_a_range_is_that_of_the_content_and_never_short():
    data = b"0123456789"
    info = {"type": "file", "size": 10}

    def cat(path, start, end):
        return data[start:end]

    store = store_with(info=lambda path: info, cat_file=cat)
    for start, size, first, expected in [
        (0, 3, 0, b"012"),
        (8, 5, 8, b"89"),
        (-4, 4, 6, b"6789"),
        (-40, 40, 0, data),
        (0, 10, 0, data),
    ]:
        assert store.get("b/a", start, size) == ByteRange(first, expected, 10, None)
    for start in (10, 11):
        with pytest.raises(RangeNotSatisfiable):
            store.get("b/a", start, 1)
    info["size"] = 0
    with pytest.raises(RangeNotSatisfiable):
        store.get("b/a", 0, 1)
    info["size"] = 12
    with pytest.raises(TransientError, match="2 bytes of 4"):
        store.get("b/a", 8, 4)


def test_a_listing_leaves_out_the_folder_itself():
    entries = [
        {"name": "b/c", "type": "directory"},
        {"name": "/b/c/", "type": "file", "size": 0},
        {"name": "/b/c/2", "type": "file", "size": 2},
        {"name": "b/c/1", "type": "file", "size": 1},
        {"name": "b/c/z", "type": "directory"},
        {"name": "b/c/d", "type": "directory"},
    ]
    found = {entry["name"]: entry for entry in entries[2:]}
    store = store_with(ls=lambda folder, detail: entries, find=lambda folder, detail: found)
    for deep in (False, True):
        listing = store.list("b/c/", deep=deep)
        assert listing.files == ["b/c/1", "b/c/2"] and listing.folders == ["b/c/d", "b/c/z"]
        assert [listing.stats[name].size for name in listing.files] == [1, 2]
    assert not store_with(ls=raising(FileNotFoundError())).list("b/c/").files


def test_a_name_that_was_to_be_new_is_put_in_that_mode_and_taken_by_other_bytes():
    modes = []
    store = store_with(pipe_file=lambda path, data, mode: modes.append(mode))
    store.put("b/a", b"1")
    store.put("b/a", b"1", create_token="t")
    assert modes == ["overwrite", "create"]
    taken = store_with(pipe_file=raising(FileExistsError()), cat_file=lambda path: b"1")
    taken.put("b/a", b"1", create_token="t")  # the answer to our own put was lost
    with pytest.raises(AlreadyExists):
        taken.put("b/a", b"2", create_token="t")


class Upload(io.BytesIO):
    """What is written to a filesystem until it is committed or discarded."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.content, self.calls, self.fails = b"", [], fails

    def close(self) -> None:
        self.content = self.getvalue()
        if self.fails:
            raise OSError("no network")
        super().close()

    def commit(self) -> None:
        self.calls.append("commit")

    def discard(self) -> None:
        self.calls.append("discard")


def test_a_large_object_is_whole_or_discarded():
    file = io.BytesIO(b"0123456789")
    file.read()  # it has just been written: it stands at its end
    for fails, exists, token, calls in [
        (False, False, "t", ["commit"]),
        (False, True, "", ["commit"]),
        (True, False, "t", ["discard"]),
        (False, True, "t", []),
    ]:
        upload = Upload(fails)
        store = store_with(
            open=lambda path, mode, autocommit, upload=upload: upload if not autocommit else None,
            exists=lambda path, exists=exists: exists,
        )
        if calls == ["commit"]:
            store.upload("b/a", file, 10, create_token=token)
            assert upload.content == b"0123456789"
        else:
            with pytest.raises(TransientError if fails else AlreadyExists):
                store.upload("b/a", file, 10, create_token=token)
        assert upload.calls == calls
