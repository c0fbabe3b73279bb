"""Object stores that answer otherwise than S3 does, and keys that are no names in a folder."""

from __future__ import annotations

import errno
import io
import re
import sys
import threading
import tracemalloc
import types
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ProfileNotFound
from botocore.parsers import ResponseParserError
from conftest import noise
from faulty_server import Faults, Response

from chiasm.pipeline.errors import SourceError, StorageError, UnreachableError, UsageError
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import (
    Folder,
    Stat,
    glob,
    is_folder,
    open_stream,
    read_range,
    remote,
    retry,
    s3_session,
    schemes,
    stat,
    uploads,
)
from chiasm.pipeline.storage import s3 as s3_store
from chiasm.pipeline.storage.object_store import ByteRange, Listing
from chiasm.pipeline.storage.remote import ObjectFiles
from chiasm.pipeline.storage.retry import RetrySettings
from chiasm.pipeline.storage.s3_errors import translating_errors
from chiasm.pipeline.storage.store_errors import (
    AlreadyExists,
    Cancelled,
    Conflict,
    NotFound,
    RangeNotSatisfiable,
    Refused,
    RetriesExhausted,
    StoreError,
    TransientError,
    Unsupported,
    VersionChanged,
)

PARTS = 5 << 20


@pytest.fixture
def change(s3, monkeypatch):
    """Changes the answers of this test's store: by `spoil(request, response)`, and by what
    `instead(request)` returns in place of doing it."""
    answer = s3.server.answer

    def install(spoil=lambda request, response: response, instead=lambda request: None):
        def changed(request):
            return instead(request) or spoil(request, answer(request))

        monkeypatch.setattr(s3.server, "answer", changed)

    return install


@pytest.fixture
def in_parts(monkeypatch):
    """Objects of more than a part go up in parts."""
    monkeypatch.setattr(uploads, "SINGLE_PUT_BYTES", PARTS)
    monkeypatch.setattr(s3_store, "PART", PARTS)


def with_headers(response: Response, **changed: str | None) -> Response:
    """The response with headers changed, without those that are None; `_` stands for `-`."""
    names = {name.replace("_", "-").lower(): value for name, value in changed.items()}
    kept = {name: value for name, value in response.headers.items() if name.lower() not in names}
    return replace(response, headers=kept | {n: v for n, v in names.items() if v is not None})


def with_body(response: Response, body: bytes) -> Response:
    return replace(with_headers(response, Content_Length=None), body=body)


def error(status: int, code: str = "") -> Response:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>" if code else ""
    return Response(status, {"Content-Type": "application/xml"}, body.encode())


def test_no_more_is_read_of_an_object_than_was_asked_for(s3, change):
    folder = Folder(s3.root)
    folder.write_whole("a", b"0123456789")
    whole = bytes(64 << 20)

    def all_of_it(request, response):
        return with_body(response, whole) if request.kind == "range" else response

    change(all_of_it)
    tracemalloc.start()
    with pytest.raises(UnreachableError, match="the last one: more than 1 bytes with a Content-R"):
        stat(folder.url_of("a"))
    with pytest.raises(UnreachableError, match="more than 3 bytes with a Content-Range of 'bytes"):
        read_range(folder.url_of("a"), 2, 3)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "status"), [("range", 403), ("put", 403), ("list", 200), ("list", 403)]
)
def test_no_more_is_read_of_an_answer_than_one_can_have(s3, change, kind, status, monkeypatch):
    """Of a store that says much in an error or a listing."""
    folder = Folder(s3.root)
    folder.write_whole("a", b"0123456789")
    much = Response(status, {"Content-Type": "application/xml"}, b" " * (48 << 20))
    monkeypatch.setattr(s3_session, "MAX_BODY", 1 << 20)
    change(instead=lambda request: much if request.kind == kind else None)
    calls = {
        "range": lambda: stat(folder.url_of("a")),
        "put": lambda: folder.write_whole("b", b"x"),
        "list": lambda: folder.list(""),
    }
    tracemalloc.start()
    with pytest.raises((SourceError, StorageError), match=f"{status} with more than 1 MiB of text"):
        calls[kind]()
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("answer", [Response(416, {}, b""), Response(200, {}, b"")])
def test_an_object_is_empty_only_if_its_length_says_so(s3, change, answer):
    folder = Folder(s3.root)
    for name, data in {"a": b"0123456789", "empty": b""}.items():
        folder.write_whole(name, data)
    change(instead=lambda request: answer if request.kind == "range" else None)
    for use in (stat, open_stream, lambda url: read_range(url, 0, 5)):
        with pytest.raises(UnreachableError, match="one: no bytes of an object of 10; check the n"):
            use(folder.url_of("a"))
    with pytest.raises(StorageError, match="no bytes of an object of 10"):
        folder.read_bytes("a")
    assert stat(folder.url_of("empty")).size == 0 and folder.read_bytes("empty") == b""


@pytest.mark.parametrize("total", ["*", "x", None])
def test_a_range_whose_total_is_not_told_is_asked_for_again(s3, change, total):
    folder, first = Folder(s3.root), threading.Event()
    folder.write_whole("a", b"0123456789")

    def star(request, response):
        if request.kind != "range" or first.is_set():
            return response
        first.set()
        where = None if total is None else f"bytes 0-0/{total}"
        return with_headers(response, Content_Range=where)

    change(star)
    assert stat(folder.url_of("a")).size == 10 and first.is_set()
    first.clear()
    change(lambda request, response: with_headers(response, Content_Range=f"bytes 0-0/{total}"))
    with pytest.raises(UnreachableError, match="attempts failed, the last one: a Content-Range of"):
        stat(folder.url_of("a"))


def test_keys_that_are_no_names_in_a_folder_are_passed_over(s3):
    prefix, folder = s3.root.removeprefix("s3://bucket/"), Folder(s3.root)
    for key in ("a", "/a", "//a", ".", "..", "./a", "../a", "b/", "c/a", "d//a", "", " ", "e."):
        s3.direct.put_object(Bucket="bucket", Key=f"{prefix}/l/{key}", Body=b"x")
    assert folder.list("l") == ["l/ ", "l/a", "l/e."]
    assert folder.folders("l") == ["l/b", "l/c", "l/d"]
    folder.remove_folder("l", lambda base: True)
    assert set(s3.keys()) == {
        f"l/{key}" for key in ("/a", "//a", ".", "..", "./a", "../a", "b/", "c/a", "d//a", "")
    }


def test_shards_under_odd_keys_are_each_that_object(s3):
    prefix = s3.root.removeprefix("s3://bucket/")
    odd = ["x//a.tar", "x/./a.tar", "x/../a.tar", "x/a.tar", "x/%2e%2e/a.tar", "x/é b.tar"]
    for number, key in enumerate(odd):
        s3.direct.put_object(Bucket="bucket", Key=f"{prefix}/{key}", Body=b"%d" % number)
    s3.direct.put_object(Bucket="bucket", Key=f"{prefix}/x/y.tar/", Body=b"")
    assert glob(f"{s3.root}/x/**") == sorted(f"{s3.root}/{key}" for key in odd)
    for number, key in enumerate(odd):
        [shard] = list_shards([f"{s3.root}/{key}"])
        assert read_range(shard.url, 0, 1) == b"%d" % number, key


def test_a_listing_that_heeds_neither_prefix_nor_delimiter_is_sorted_out_here(s3, change):
    prefix, folder = s3.root.removeprefix("s3://bucket/"), Folder(s3.root)
    for name in ("l/a", "l/c/d", "m"):
        folder.write_whole(name, b"")

    def careless(request, response):
        if request.kind != "list":
            return response
        keys = [f"{prefix}/{name}" for name in ("l/a", "l/c/d", "m", "lower")] + ["other/l/x"]
        entries = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in keys)
        entries += "<CommonPrefixes><Prefix>other/</Prefix></CommonPrefixes>"
        entries += f"<CommonPrefixes><Prefix>{prefix}/l/c/</Prefix></CommonPrefixes>"
        body = f"<ListBucketResult>{entries}<IsTruncated>false</IsTruncated></ListBucketResult>"
        return Response(200, {"Content-Type": "application/xml"}, body.encode())

    change(careless)
    assert folder.list("l") == ["l/a"] and folder.folders("l") == ["l/c"]
    assert folder.list() == ["lower", "m"]
    assert set(glob(f"{s3.root}/l/**")) == {f"{s3.root}/l/a", f"{s3.root}/l/c/d"}
    assert is_folder(f"{s3.root}/l") and not is_folder(f"{s3.root}/a.tar")


@pytest.mark.parametrize("kind", ["list", "uploads"])
@pytest.mark.parametrize("mark", [True, False])
def test_a_listing_that_never_goes_on_ends(s3, change, kind, mark):
    folder, pages = Folder(s3.root), []

    def truncated(request, response):
        if request.kind != kind:
            return response
        pages.append(request.path)
        marks = "<NextContinuationToken>1</NextContinuationToken>" * mark
        marks += "<NextKeyMarker>1</NextKeyMarker>" * mark
        root = "ListBucketResult" if kind == "list" else "ListMultipartUploadsResult"
        body = f"<{root}><IsTruncated>true</IsTruncated>{marks}</{root}>"
        return Response(200, {"Content-Type": "application/xml"}, body.encode())

    change(truncated)
    with pytest.raises(StorageError, match="found a listing that does not say how it goes on"):
        folder.list() if kind == "list" else folder.abort_uploads(lambda url: True)
    assert len(pages) == 1 + mark


def test_a_store_without_etags_is_read_and_written(s3, change, in_parts, monkeypatch):
    """What is left is the time of the last change, or nothing."""
    monkeypatch.setattr(schemes.S3_STORE, "_stores", {})
    folder, data = Folder(s3.root), noise(PARTS + 9)
    etags: dict[str, str] = {}

    def without(request, response):
        if request.kind == "part":
            number = re.search(r"partNumber=(\d+)", request.path)
            etags[number[1] if number else ""] = response.headers.get("ETag", "")
        return with_headers(response, ETag=None)

    change(without)
    folder.write_whole("a", b"0123456789")
    assert stat(folder.url_of("a")).version not in ("", None)
    with open_stream(folder.url_of("a")) as stream:
        assert stream.read() == b"0123456789"
    change(lambda q, response: with_headers(response, ETag=None, Last_Modified=None))
    assert stat(folder.url_of("a")) == stat(folder.url_of("a")) and folder.exists("a")
    assert stat(folder.url_of("a")).version == ""
    assert folder.read_bytes("a") == b"0123456789"
    assert folder.write_new("b", b"1", "r") and not folder.write_new("b", b"2", "r")
    change(without)
    with pytest.raises(StorageError):
        folder.write_whole("big", data)  # this store wants the ETags that it does not tell
    assert len(etags) == 2 and s3.uploads() == []


@pytest.mark.parametrize(
    ("kind", "code"),
    [("put", "ConditionalRequestConflict"), ("put", ""), ("complete", "OperationAborted")],
)
def test_a_conflict_over_a_new_name_is_asked_again(s3, change, in_parts, kind, code):
    """409: somebody else writes the name at the same moment, and may yet fail."""
    folder, size = Folder(s3.root), 9 if kind == "put" else PARTS + 9
    left = 2

    def conflict(request):
        nonlocal left
        if request.kind != kind or not left:
            return None
        left -= 1
        return error(409, code)

    change(instead=conflict)
    assert folder.write_new("a", bytes(size), "r1") and left == 0
    assert not folder.write_new("a", b"1" * size, "r2")
    assert folder.read_bytes("a") == bytes(size) and s3.uploads() == []


@pytest.mark.parametrize("status", [409, 412])
@pytest.mark.parametrize("kind", ["put", "complete"])
def test_a_new_name_that_is_taken_is_taken_whatever_the_store_says(
    s3, change, in_parts, kind, status
):
    """Some stores answer 409 in place of 412, also to the writer whose answer was lost."""
    folder, size = Folder(s3.root), 9 if kind == "put" else PARTS + 9

    def taken(request, response):
        if response.status == 412 and status == 409:
            return error(409, "FileAlreadyExists")
        return response

    change(taken)
    s3.server.faults = Faults(once=[(kind, "lost")])
    assert folder.write_new("a", bytes(size), "r1") and s3.server.faults.once == []
    assert not folder.write_new("a", b"1" * size, "r2")
    assert folder.read_bytes("a") == bytes(size) and s3.uploads() == []


def test_a_name_that_was_taken_and_is_free_again_is_put(s3, change):
    folder, left = Folder(s3.root), [True]

    def gone(request, response):
        if request.kind == "put" and left:
            left.clear()
            s3.direct.delete_object(Bucket="bucket", Key=f"{s3.root[12:]}/a")
            return error(412, "PreconditionFailed")
        return response

    change(gone)
    assert folder.write_new("a", b"mine", "r1") and folder.read_bytes("a") == b"mine"


@pytest.mark.parametrize("kind", ["part", "complete"])
def test_an_upload_that_another_program_aborts_is_told(s3, change, in_parts, kind):
    folder, data = Folder(s3.root), noise(PARTS + 9)

    change(instead=lambda q: error(404, "NoSuchUpload") if q.kind == kind else None)
    with pytest.raises(StorageError) as caught:
        folder.write_whole("a", data)
    assert s3.uploads() == [] and s3.keys() == {}
    assert "found the upload gone before its end; another program aborted it" in str(caught.value)


def test_an_upload_without_an_id_is_told(s3, change, in_parts):
    body = b"<InitiateMultipartUploadResult><Bucket>bucket</Bucket></InitiateMultipartUploadResult>"
    change(lambda q, r: with_body(r, body) if q.kind == "begin" else r)
    with pytest.raises(StorageError, match="found a multipart upload without an id; check the end"):
        Folder(s3.root).write_whole("a", noise(PARTS + 9))


def test_a_store_is_asked_for_the_files_of_a_folder_alone():
    """Of stores that list otherwise than S3: names that would lead out of the folder."""

    class Store:
        def list(self, folder: str, *, deep: bool = False) -> Listing:
            return Listing(["b/l/a", "b/l/..", "b/l/."], ["b/l/c", "b/l/..", "b/l"[:1] + "/l/"])

    files = ObjectFiles("gs", Store)  # pyrefly: ignore
    assert files.list("gs://b/l") == ["a"] and files.folders("gs://b/l") == ["c"]


def test_damage_in_an_error_is_told_in_one_line(s3, change):
    text = "no\x85\x9b31m way " + "!" * 300
    change(lambda q, r: error(400, text) if q.kind == "range" else r)
    with pytest.raises(SourceError) as caught:
        stat(f"{s3.root}/a")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


class Answers:
    """A store whose every request ends in `error`, or in an object of these bytes."""

    def __init__(self, error: Exception | None = None, data: bytes = b"") -> None:
        self.error, self.data, self.requests = error, data, 0

    def head(self, path: str) -> Stat:
        return Stat(self.get(path, 0, 1).total, "v")

    def get(self, path: str, start: int, size: int) -> ByteRange:
        self.requests += 1
        if self.error is not None:
            raise self.error
        if start >= len(self.data):
            raise RangeNotSatisfiable
        return ByteRange(start, self.data[start : start + size], len(self.data), "v")

    def put(self, path: str, data: bytes, *, create_token: str = "") -> None:
        self.get(path, 0, 1)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (TransientError("503"), "1 attempts failed, the last one: 503; check the network"),
        (VersionChanged("v"), "another: it changed while it was read; run the same command"),
        (NotFound("a"), "nothing there; check the name"),
        (Refused("403", "log in"), "403; log in"),
        (AlreadyExists("taken"), "taken"),
    ],
)
def test_each_end_of_a_request_is_one_line_of_its_own(monkeypatch, error, found):
    monkeypatch.setattr(retry, "RETRIES", RetrySettings(attempts=1))
    files = ObjectFiles("gs", lambda: Answers(error))  # pyrefly: ignore
    with pytest.raises(SourceError) as caught:
        files.stat("gs://b/a")
    assert f" found {found}" in str(caught.value) and str(caught.value).startswith("gs://b/a: exp")
    assert isinstance(caught.value, UnreachableError) == isinstance(error, TransientError)
    with pytest.raises(StorageError) as put, files.create("gs://b/a", "r1") as file:
        file.write(b"1")
        file.commit()
    assert f" found {found}" in str(put.value)


def test_a_range_is_whole_or_told_and_a_size_is_compared_before_much_is_read(monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 4)
    store = Answers(data=b"0123456789")
    files = ObjectFiles("gs", lambda: store)  # pyrefly: ignore
    for offset, size, requests in ((0, 0, 0), (2, 4, 1), (9, 1, 1), (0, 10, 2), (5, 5, 2)):
        store.requests = 0
        assert files.read_range("gs://b/a", offset, size) == store.data[offset : offset + size]
        assert store.requests == requests
    for offset, size, found, requests in ((8, 4, 2, 1), (12, 2, 0, 1), (2, 9, 8, 1), (20, 9, 0, 1)):
        store.requests = 0
        with pytest.raises(
            SourceError, match=f"{size} bytes from byte {offset} on, found {found};"
        ):
            files.read_range("gs://b/a", offset, size)
        assert store.requests == requests


def test_a_name_without_a_wildcard_is_itself_and_asks_for_nothing():
    store = Answers(NotFound("a"))
    files = ObjectFiles("gs", lambda: store)  # pyrefly: ignore
    assert files.glob("GS://b/a b") == ["gs://b/a b"] and not store.requests


def test_what_cannot_be_kept_until_its_upload_is_told(monkeypatch):
    class Full(io.BytesIO):
        def write(self, data) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(uploads.tempfile, "SpooledTemporaryFile", lambda size: Full())
    files = ObjectFiles("gs", Answers)  # pyrefly: ignore
    message = "room for 0 bytes, found No space left on device; free some, or set TMPDIR"
    with pytest.raises(StorageError, match=message), files.create("gs://b/a", "r1") as file:
        file.write(b"1")


def test_an_object_being_written_is_a_writable_file_that_counts_its_bytes():
    put: list[tuple[str, bytes, bool]] = []

    class Store:
        def put(self, path: str, data: bytes, *, create_token: str = "") -> None:
            put.append((path, data, bool(create_token)))

    files = ObjectFiles("gs", Store)  # pyrefly: ignore
    with files.create("gs://b/a", "r1") as file:
        assert file.writable() and file.write(b"12") == 2 and file.tell() == 2
        assert file.write(memoryview(b"abcdefgh").cast("I")) == 8 and file.tell() == 10
        file.commit()
    with files.create("gs://b/n", "r1") as file:
        assert file.commit_new() is True and file.closed
    with files.create("gs://b/never", "r1") as file:
        file.write(b"1")
    assert put == [("b/a", b"12abcdefgh", False), ("b/n", b"", True)]


def test_filesystems_of_other_stores_are_made_without_caches(monkeypatch):
    options = {"use_listings_cache": False, "skip_instance_cache": True}
    gcsfs = types.SimpleNamespace(GCSFileSystem=dict)
    monkeypatch.setitem(sys.modules, "gcsfs", gcsfs)
    monkeypatch.setattr("huggingface_hub.HfFileSystem", dict)
    for make in (schemes._gs, schemes._hf):
        assert make().fs == options  # pyrefly: ignore
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=r"package gcsfs: .* pip install 'chiasm\[gcs\]'"):
        schemes._gs()


@pytest.mark.parametrize("size", [1, 9, 10, 11, 39, 40, 41, 200])
def test_parts_are_of_the_sizes_that_s3_takes_and_hold_every_byte(monkeypatch, size):
    assert 5 << 20 <= s3_store.PART <= 5 << 30 and s3_store.MAX_PARTS == 10_000  # S3's own limits
    assert uploads.MEMORY_BYTES < uploads.SINGLE_PUT_BYTES <= 5 << 30
    monkeypatch.setattr(s3_store, "PART", 10)
    monkeypatch.setattr(s3_store, "MAX_PARTS", 4)
    sent: dict[int, bytes] = {}

    def request(method: str, path: str, **params) -> dict[str, str]:
        assert (method, path, params["UploadId"]) == ("upload_part", "b/a", "u")
        sent[params["PartNumber"]] = params["Body"]
        return {"ETag": "e"} if params["PartNumber"] % 2 else {}

    store = s3_store.S3Store(RetrySettings(attempts=1))
    monkeypatch.setattr(store, "_object_request", request)
    data = noise(size)
    parts = store._upload_parts("b/a", "u", io.BytesIO(data), size, threading.Event())
    length = max(10, -(-size // 4))
    assert sent == {n + 1: data[n * length :][:length] for n in range(-(-size // length))}
    assert parts == [{"PartNumber": n} | ({"ETag": "e"} if n % 2 else {}) for n in sorted(sent)]
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Cancelled):
        store._upload_parts("b/a", "u", io.BytesIO(data), size, stopped)


class Untrusted(OSError):
    verify_message = "self-signed certificate"


def client_error(status: int, code: str = "") -> ClientError:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "GetObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (client_error(409), Conflict),
        (client_error(500), TransientError),
        (client_error(501), Unsupported),
        (client_error(502), TransientError),
        (client_error(408), TransientError),
        (client_error(429), TransientError),
        (client_error(400, "SlowDown"), TransientError),
        (client_error(403, "RequestTimeTooSkewed"), TransientError),
        (client_error(404, "NoSuchBucket"), Refused),
        (client_error(404, "NoSuchKey"), NotFound),
        (client_error(416), RangeNotSatisfiable),
        (client_error(412), AlreadyExists),
        (client_error(403, "AccessDenied"), Refused),
        (ClientError({}, "GetObject"), Refused),
        (OSError("reset"), TransientError),
        (Untrusted("certificate"), Refused),
        (ResponseParserError("no xml"), TransientError),
        (NoCredentialsError(), Refused),
        (ProfileNotFound(profile="p"), Refused),
        (ValueError("bucket"), Refused),
    ],
)
def test_what_boto_raises_is_an_error_of_a_store(raised, expected):
    with pytest.raises(StoreError) as caught, translating_errors():
        raise raised
    assert type(caught.value) is expected


@pytest.mark.parametrize("stops", [False, True])
def test_attempts_are_so_many_and_wait_in_between(monkeypatch, stops):
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return False

    def fail() -> None:
        attempts.append(1)
        raise TransientError("503")

    monkeypatch.setattr(retry.time, "sleep", waits.append)
    stop, attempts = Stop() if stops else None, []
    settings = RetrySettings(4, first_wait=1.0, longest_wait=3.0)
    with pytest.raises(RetriesExhausted, match="4 attempts failed, the last one: 503"):
        retry.retry(fail, settings, stop)
    assert len(attempts) == 4 and len(waits) == 3
    for wait, longest in zip(waits, (1.0, 2.0, 3.0), strict=True):
        assert longest / 2 <= wait <= longest
    if stop is not None:
        stop.set()
        with pytest.raises(Cancelled):
            retry.retry(fail, settings, stop)
        assert len(attempts) == 4
