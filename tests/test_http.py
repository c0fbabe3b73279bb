"""Shards on web servers: with ranges, without, and with what networks do to them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import itertools
import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import noise
from faulty_server import FAULTS, Faults, FaultyServer, Files, Response
from test_tars import PLAIN, tar_of

from chiasm.pipeline.errors import ChiasmError, SourceError, UnreachableError, UsageError
from chiasm.pipeline.records import Dropped, Place, Sample
from chiasm.pipeline.shards import ReadSettings, list_shards, read_member, read_samples, shard_id
from chiasm.pipeline.storage import (
    Folder,
    Stat,
    canonical_url,
    display_name,
    glob,
    open_stream,
    range_requests,
    read_range,
    remote,
    retry,
    schemes,
    stat,
    streams,
    web_requests,
)
from chiasm.pipeline.storage.http import WebStore
from chiasm.pipeline.storage.object_store import ByteRange
from chiasm.pipeline.storage.range_requests import (
    ContentRange,
    Pace,
    checked_range,
    parse_content_range,
    read_at_most,
)
from chiasm.pipeline.storage.retry import RetrySettings
from chiasm.pipeline.storage.store_errors import RangeNotSatisfiable, TransientError

TAR = tar_of(*PLAIN)
LONG = noise(50_000)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Short waits, small blocks, a store of this test alone."""
    monkeypatch.setattr(retry, "RETRIES", RetrySettings(4, first_wait=0.005, longest_wait=0.05))
    monkeypatch.setattr(schemes.WEB_STORE, "_stores", {})
    monkeypatch.setattr(streams, "FIRST_BLOCK", 1000)
    monkeypatch.setattr(streams, "BLOCK", 4000)
    monkeypatch.setattr(streams, "BUFFER", 3000)


@pytest.fixture(params=["ranges", "no ranges", "no length"])
def server(request):
    """A web server with some files, in three kinds."""
    files = Files(
        {"/a.tar": TAR, "/long": LONG, "/empty": b"", "/0.tar": TAR, "/1.tar": TAR},
        ranges=request.param == "ranges",
        length=request.param != "no length",
        etags={"/long": '"one"'},
    )
    running = FaultyServer(files)
    yield running
    running.close()


@pytest.fixture
def with_ranges():
    running = FaultyServer(Files({"/a.tar": TAR, "/long": LONG}))
    yield running
    running.close()


@pytest.fixture
def serve():
    """Starts servers that end with the test."""
    running = []

    def start(answer):
        running.append(FaultyServer(answer))
        return running[-1]

    yield start
    for each in running:
        each.close()


def read(url):
    with open_stream(url) as stream:
        return stream.read()


def test_a_shard_is_read_like_a_local_one(server, tmp_path):
    (tmp_path / "a.tar").write_bytes(TAR)
    [here], [there] = list_shards([str(tmp_path / "a.tar")]), list_shards([f"{server.url}/a.tar"])
    items = list(read_samples(there, ReadSettings()))
    assert items == list(read_samples(here, ReadSettings()))
    assert [item.picture for item in items] == [b"A", b"BB"]
    for item in items:
        assert read_member(there.url, item.sources["image"].place) == item.picture
    known = server.answer.length or server.answer.ranges
    assert there.size == (len(TAR) if known else -1)


def test_long_and_empty_files_come_whole(server):
    assert read(f"{server.url}/long") == LONG
    assert read(f"{server.url}/empty") == b""
    assert read_range(f"{server.url}/long", 20_001, 999) == LONG[20_001:21_000]
    for offset in (49_999, 60_000):
        with pytest.raises(SourceError, match=rf"expected 9 bytes from byte {offset} on, found "):
            read_range(f"{server.url}/long", offset, 9)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_overcome(server, fault):
    for once in ([("range", fault)], [("get", fault)], [("range", fault)] * 2):
        server.faults = Faults(once=once)
        assert read(f"{server.url}/long") == LONG
    server.faults = Faults(once=[("range", fault)])
    assert read_range(f"{server.url}/long", 5, 4000) == LONG[5:4005]


def test_a_length_that_is_a_lie_each_time_is_never_taken_for_the_whole_shard():
    tar = tar_of(*((f"{number}.jpg", bytes(3000)) for number in range(9)))
    running = FaultyServer(Files({"/a.tar": tar}, ranges=False))
    running.faults = Faults(always={"range": "short", "get": "short"})
    # What comes behind the length is seen on the connection, if it comes soon enough.
    with contextlib.suppress(UnreachableError):
        [shard] = list_shards([f"{running.url}/a.tar"])
        items = list(read_samples(shard, ReadSettings()))
        assert [item.reason for item in items if isinstance(item, Dropped)] == ["truncated"]
    running.faults = Faults(always={"range": "long", "get": "long"})
    [shard] = list_shards([f"{running.url}/a.tar"])
    with pytest.raises(UnreachableError, match="4 attempts failed"):
        list(read_samples(shard, ReadSettings()))
    running.close()


def test_a_server_that_falls_silent_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(retry, "RETRIES", RetrySettings(4, first_wait=0.005, timeout=1))
    server.faults = Faults(once=[("range", "stall"), ("get", "stall")])
    assert read(f"{server.url}/long") == LONG
    assert server.failed["stall"] > 0


def test_a_broken_connection_goes_on_where_it_broke(with_ranges):
    with open_stream(f"{with_ranges.url}/long") as stream:
        start = stream.read(10)
        with_ranges.faults = Faults(once=[("range", "cut"), ("range", "truncated")])
        assert start + stream.read() == LONG
    requested = Counter(with_ranges.ranges)
    assert sorted(requested.values()) == [1] * 12 + [2] * 2
    assert requested["bytes=0-999"] == 1, "what was read before is not asked for again"


def test_faults_at_random_change_no_byte(with_ranges):
    for seed in range(5):
        with_ranges.faults = Faults(share=0.1, seed=seed)
        assert read(f"{with_ranges.url}/long") == LONG


def test_an_answer_that_breaks_is_begun_again_and_passed_over():
    running = FaultyServer(Files({"/long": LONG}, ranges=False))
    running.faults = Faults(once=[("get", "cut"), ("get", "truncated"), ("get", "500")])
    assert read(f"{running.url}/long") == LONG
    assert running.seen["get"] == 4
    running.faults = Faults(always={"get": "cut"})
    with pytest.raises(UnreachableError, match="4 attempts failed"):
        read(f"{running.url}/long")
    running.close()


def test_a_network_that_fails_is_never_told_as_damage():
    pairs = (((f"{n}.jpg", noise(9000, n)), (f"{n}.txt", b"text")) for n in range(20))
    members = [member for pair in pairs for member in pair]
    for ranges, kind in ((True, "range"), (False, "get")):
        running = FaultyServer(Files({"/a.tar": tar_of(*members)}, ranges=ranges))
        [shard] = list_shards([f"{running.url}/a.tar"])
        if not ranges:
            running.faults = Faults(always={"get": "cut"})
        found = []
        with pytest.raises(UnreachableError):
            for item in read_samples(shard, ReadSettings()):
                running.faults = Faults(always={kind: "cut"})
                found.append(item)
        assert found and not any(isinstance(item, Dropped) for item in found)
        running.close()


def test_a_file_that_changes_while_it_is_read_is_told(server):
    files = server.answer
    assert stat(f"{server.url}/long").version == "one"
    with open_stream(f"{server.url}/long") as stream:
        stream.read(10)
        files.files["/long"], files.etags["/long"] = LONG[::-1], 'W/"two"'
        server.faults = Faults(once=[("get", "cut")])
        if files.ranges:
            with pytest.raises(SourceError, match=r"version one\), found another: it changed"):
                stream.read()
        else:
            assert stream.read() == LONG[10:], "one answer is one file"


def test_nobody_on_the_way_unpacks_a_file(with_ranges):
    packed = gzip.compress(TAR)
    with_ranges.answer.files["/a.tar.gz"] = packed
    [shard] = list_shards([f"{with_ranges.url}/a.tar.gz"])
    assert [item.key for item in read_samples(shard, ReadSettings())] == ["a", "b"]
    encodings = {request.headers["accept-encoding"] for request in with_ranges.answer.requests}
    assert encodings == {"identity"}


def odd(serve, change):
    """A server with ranges, whose n-th answer (from 1 on) `change` may replace."""
    files, count = Files({"/long": LONG}, etags={"/long": '"one"'}), itertools.count(1)
    return serve(lambda request: change(next(count), request, files(request)))


def with_total(response, total):
    where = response.headers.get("Content-Range", "").partition("/")[0]
    return replace(response, headers=response.headers | {"Content-Range": f"{where}/{total}"})


@pytest.mark.parametrize("turn", range(1, 5))
def test_a_whole_file_among_ranges_is_asked_for_again(serve, turn):
    """As a mirror or a proxy sends it that ignores `Range` once."""

    def change(number, request, response):
        return Response(200, {"ETag": '"one"'}, LONG) if number == turn else response

    assert read(f"{odd(serve, change).url}/long") == LONG
    running = odd(serve, change)
    assert read_range(f"{running.url}/long", 20_001, 999) == LONG[20_001:21_000]
    assert running.seen["range"] == (1 if turn > 1 else 2)


@pytest.mark.parametrize("size", ["told", "untold"])
def test_ranges_of_an_untold_total_are_read(serve, size):
    """`Content-Range: bytes 0-9/*`; the size is that of a whole response, whose body is left, and
    where that does not tell it either, the file is read as one."""

    def change(number, request, response):
        if response.status == 206:
            return with_total(response, "*")
        extra = {} if size == "told" else {"Transfer-Encoding": "chunked"}
        return replace(response, headers=response.headers | extra)

    running = odd(serve, change)
    url = f"{running.url}/long"
    assert stat(url).size == (50_000 if size == "told" else -1)
    assert stat(url).version == "one"
    assert read(url) == LONG
    assert read_range(url, 49_000, 1000) == LONG[49_000:]
    with pytest.raises(SourceError, match="expected 9 bytes from byte 49999 on, found 1"):
        read_range(url, 49_999, 9)


def test_an_untold_total_of_another_version_is_asked_for_again(serve):
    def change(number, request, response):
        if response.status == 200 and number == 2:
            return replace(response, headers=response.headers | {"ETag": '"two"'})
        return with_total(response, "*") if response.status == 206 else response

    running = odd(serve, change)
    assert stat(f"{running.url}/long").size == 50_000
    assert running.seen == {"range": 2, "get": 2}


@pytest.mark.parametrize(
    "total", ["*", "-5", "-1", "0", "x", "²", "9" * 30, "9" * 5000, "50000/50000", ""]
)
def test_a_total_that_is_none_is_told_in_one_line(serve, total):
    def change(number, request, response):
        if response.status == 200:
            return Response(206, {}, LONG)  # all of it, called a part
        return with_total(response, total)

    url = f"{odd(serve, change).url}/long"
    for use in (stat, open_stream, lambda url: read_range(url, 7, 3)):
        cause = "a part of the file in place of all" if total == "*" else ".*a Content-Range of '"
        message = f"4 attempts failed, the last one: {cause}"
        with pytest.raises(UnreachableError, match=message) as caught:
            use(url)
        assert len(str(caught.value)) < 500


def test_a_size_fits_into_64_bits():
    largest = (1 << 63) - 1
    assert parse_content_range(f"bytes 0-0/{largest}").total == largest
    assert parse_content_range("bytes 3-9/*") == ContentRange("bytes 3-9/*", 3, 9, -1)
    for text in (f"bytes 0-0/{largest + 1}", "bytes 0-0/-1", "bytes 0/5", "0-0", None):
        with pytest.raises(TransientError, match="a Content-Range of '"):
            parse_content_range(text)


def test_a_whole_file_is_read_from_its_end(with_ranges, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 1000)
    for name, data in with_ranges.answer.files.items():
        assert Folder(with_ranges.url).read_bytes(name[1:]) == data
    assert with_ranges.ranges[0] == "bytes=-1000"


def test_another_range_than_was_asked_for_is_told_with_its_size():
    found = parse_content_range("bytes 3-5/10")
    assert checked_range(b"abc", found, 3, 3, "v") == ByteRange(3, b"abc", 10, "v")
    assert checked_range(b"abc", parse_content_range("bytes 7-9/10"), -3, 3, "v").start == 7
    assert checked_range(b"abc", parse_content_range("bytes 0-2/3"), -9, 9, "v").start == 0
    for data, start, what in ((b"abc", 4, "3"), (b"abcd", 3, "more than 3"), (b"ab", 3, "2")):
        with pytest.raises(
            TransientError, match=rf"^{what} bytes .* 3 bytes from byte {start} on$"
        ):
            checked_range(data, found, start, 3, "v")


def test_a_body_is_read_to_a_limit_however_it_arrives():
    async def read_from(body: io.BytesIO, chunk: int, limit: int) -> bytes:
        async def read(size: int) -> bytes:
            return body.read(min(size, chunk))

        return await read_at_most(read, limit)

    for chunk in (1, 3, 100):
        for limit, expected in ((0, b""), (1, b"a"), (4, b"abcd"), (9, b"abcde")):
            assert asyncio.run(read_from(io.BytesIO(b"abcde"), chunk, limit)) == expected


class Dripping:
    """A body and the clock that its reader sees: each read takes `seconds` and brings `size`."""

    def __init__(self, seconds: float, size: int, count: int = 200) -> None:
        self.seconds, self.size, self.count, self.now = seconds, size, count, 0.0

    async def read(self, most: int) -> bytes:
        self.now += self.seconds
        self.count -= 1
        return b"x" * min(most, self.size) if self.count >= 0 else b""


@pytest.mark.parametrize(
    ("seconds", "size", "found"),
    [
        (1, 1, "60 bytes in 60 s"),
        (29, 15_000, "45000 bytes in 87 s"),
        (1, 1 << 10, None),
        (0.1, 200, None),  # slow, and at its end within the minute
    ],
)
def test_a_body_that_drips_is_given_up(seconds, size, found):
    body = Dripping(seconds, size)
    reading = read_at_most(body.read, 1 << 20, Pace(lambda: body.now))
    if found is None:
        assert len(asyncio.run(reading)) == 200 * size
    else:
        with pytest.raises(TransientError, match=f"^{found}$"):
            asyncio.run(reading)


def test_a_reader_may_be_slow_itself():
    body = Dripping(1, 1, count=90)
    pace = Pace(lambda: body.now)

    async def read() -> None:
        for number in range(59):
            assert await pace.read(body.read, 9) == b"x"
            body.now += 3600 * number

    asyncio.run(read())


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_drips_is_no_shard_that_is_cut(ranges, serve, monkeypatch):
    """A response that is read as a whole is held to the same pace, and begun again."""
    monkeypatch.setattr(range_requests, "PACE_SECONDS", 0.0)
    server = serve(Files({"/a": bytes(1000)}, ranges=ranges))
    with pytest.raises(UnreachableError, match="attempts failed, the last one: 1000 bytes in 0 s"):
        read(f"{server.url}/a")


def test_headers_that_drip_are_given_up(serve, monkeypatch):
    monkeypatch.setattr(web_requests, "HEADERS_SECONDS", 0.02)
    answering = threading.Event()
    server = serve(lambda request: answering.wait(30) and None)
    with pytest.raises(UnreachableError, match=r"the last one: no whole answer in 0\.02 s"):
        stat(f"{server.url}/a")
    answering.set()


def test_the_end_of_a_file_takes_one_request(serve):
    running = serve(Files({"/a": b"1", "/empty": b""}))
    for use in (
        lambda: read_range(f"{running.url}/a", 1, 1),
        lambda: read_range(f"{running.url}/empty", 0, 1),
    ):
        running.seen.clear()
        with pytest.raises(SourceError, match=r"expected 1 bytes from byte . on, found 0"):
            use()
        assert running.seen == {"range": 1}
    assert read_range(f"{running.url}/none", 0, 0) == b"" and running.seen == {"range": 1}


@pytest.mark.parametrize(
    ("status", "attempts", "found"),
    [
        *((status, 1, "found nothing there; check the name") for status in (404, 410)),
        *((status, 4, f"found 4 attempts failed, the last one: {status}") for status in (408, 425)),
        *((status, 4, f"found 4 attempts failed, the last one: {status}") for status in (429, 500)),
        *((status, 1, rf"found {status} .*; check ~/\.netrc") for status in (204, 400, 401, 501)),
    ],
)
def test_a_status_is_told_or_asked_again(serve, status, attempts, found):
    running = serve(lambda request: Response(status, {}, b""))
    for use in (stat, open_stream):
        running.seen.clear()
        with pytest.raises(SourceError, match=found):
            use(f"{running.url}/a")
        assert running.seen == {"range": attempts}


@pytest.mark.parametrize("header", [{}, {"Content-Range": "bytes */*"}])
def test_a_server_that_satisfies_no_range_is_read_whole(serve, header):
    """Only `bytes */0` says that a file is empty."""

    def change(number, request, response):
        return response if response.status == 200 else Response(416, header, b"")

    url = f"{odd(serve, change).url}/long"
    assert stat(url) == Stat(50_000, "one") and read(url) == LONG
    empty = serve(lambda r: Response(416 if "range" in r.headers else 200, header, b""))
    assert stat(f"{empty.url}/a").size == 0 and read(f"{empty.url}/a") == b""


def test_a_member_as_large_as_a_catalog_says_is_never_made_room_for(server):
    for size in (60_000, 10**15):
        found = r"found 49990"
        with pytest.raises(SourceError, match=rf"expected {size} bytes from byte 10 on, {found}"):
            read_range(f"{server.url}/long", 10, size)
    for offset, size in ((-5, 5), (5, -5)):
        with pytest.raises(SourceError, match=f"a range of bytes, found {size} from byte {offset}"):
            read_range(f"{server.url}/long", offset, size)


def test_what_a_server_says_is_printable(serve):
    running = serve(lambda request: Response(403, {}, b""))
    running.reason = "No\x1b[31m\x9bway" + 300 * "!"
    with pytest.raises(SourceError, match=r"found 403 No\?\[31m.*!; check ~/\.netrc") as caught:
        stat(f"{running.url}/a")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 350


def test_redirects_are_followed(with_ranges):
    with_ranges.answer.redirects["/old.tar"] = f"{with_ranges.url}/a.tar"
    assert read(f"{with_ranges.url}/old.tar") == TAR
    with_ranges.answer.redirects["/round"] = f"{with_ranges.url}/round"
    with pytest.raises(SourceError, match="found more than ten redirects"):
        stat(f"{with_ranges.url}/round")


def test_ranges_of_names_are_expanded_and_what_needs_a_listing_is_refused(server):
    shards = list_shards([f"{server.url}/{{0..1}}.tar"])
    assert [shard.url for shard in shards] == [f"{server.url}/0.tar", f"{server.url}/1.tar"]
    for spec in ("/*.tar", "/data/", "/[01].tar"):
        with pytest.raises(UsageError) as caught:
            list_shards([server.url + spec])
        assert str(caught.value) == (
            f"{server.url}{spec}: expected the URL of a file, or a range such as {{00000..00012}},"
            " found a folder or a pattern, and http:// has no listing"
        )
    with pytest.raises(SourceError, match=r"x\.tar\?rev=1: expected a file to read, found nothing"):
        list_shards([f"{server.url}/x.tar?rev=1"])
    with pytest.raises(UsageError, match="expected a URL that can be written to, found http://"):
        Folder(server.url).write_whole("a", b"")


def test_a_web_server_is_listed_and_changed_by_nobody():
    folder = Folder("https://host/c")
    listings = (
        lambda: folder.list("l"),
        lambda: folder.list_stats("l"),
        lambda: folder.folders("l"),
    )
    for act in listings:
        with pytest.raises(UsageError, match=r"c/l: .* found a folder or a pattern, and https:"):
            act()
    changed = (
        lambda: folder.remove("a"),
        lambda: folder.remove_folder("a", bool),
        lambda: folder.create("a", "r1"),
    )
    for act in changed:
        with pytest.raises(
            UsageError, match=r"c/a: expected a URL that can be written to, found ht"
        ):
            act()
    with pytest.raises(UsageError, match="host/c: expected a URL that can be written to"):
        folder.abort_uploads(bool)


def test_the_query_belongs_to_the_url_and_not_to_the_name(with_ranges):
    [one], [two] = (list_shards([f"{with_ranges.url}/a.tar?version={v}"]) for v in (1, 2))
    assert one.id.startswith("a-") and two.id.startswith("a-") and one.id != two.id
    assert [item.key for item in read_samples(two, ReadSettings())] == ["a", "b"]
    assert with_ranges.answer.requests[-1].path == "/a.tar?version=2"


def test_one_place_has_one_url():
    url = canonical_url("HTTPS://Data.Example/x y/%20é.tar?version=a%2Fb&ref=[1]#part")
    assert url == "https://data.example/x%20y/%20%C3%A9.tar?version=a%2Fb&ref=[1]"
    assert canonical_url(url) == display_name(url) == url
    assert shard_id(url).startswith("__-")
    with pytest.raises(UsageError, match="expected http://host/path, found no host"):
        canonical_url("http:///a.tar")


def test_a_byte_that_is_no_utf8_is_escaped_as_it_is():
    url = canonical_url("http://host/\udcff.tar")
    assert url == canonical_url(url) == "http://host/%FF.tar"
    url = canonical_url("http://\N{LATIN SMALL LETTER E WITH ACUTE}/%FF.tar")
    assert url == canonical_url(url) == "http://%c3%a9/%FF.tar"


def test_a_glob_of_what_is_no_url_is_told_in_one_line():
    with pytest.raises(UsageError, match="expected http://host/path, found no URL"):
        glob("http://[x")
    for port in ("99999", "-1", "secret/x@host"):
        with pytest.raises(UsageError, match=r"its port is no number from 0 to 65535") as raised:
            glob(f"http://host:{port}/a.tar")
        assert "secret" not in str(raised.value)
    assert glob("http://host/\udcff.tar") == ["http://host/%FF.tar"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://ann:hush@host/a.tar", "http://host/a.tar: {}credentials in it; put them into"),
        ("http://hush@host/a.tar?b=c", "http://host/a.tar: {}credentials in it; put them into"),
        *(
            (
                f"https://host/{{1..2}}.tar?{query}",
                "https://host/{{1..2}}.tar: {}a query that may hold credentials"
                f" ({names}); name the object by s3:// or gs://; or, if this is no secret, give"
                " --allow-query (list_shards: allow_query=True)",
            )
            for query, names in {
                "X-Amz-Date=1&X-Amz-Signature=hush": "X-Amz-Date, X-Amz-Signature",
                "sv=1&sig=hush": "sv, sig",
                "x-oss-credential=1&x-oss-signature=hush": "x-oss-credential, x-oss-signature",
                "security-token=hush": "security-token",
                "q-ak=1&q-signature=hush": "q-ak, q-signature",
                "X-Tos-Signature=hush": "X-Tos-Signature",
                "Authorization=hush": "Authorization",
                "hdnts=exp=1~acl=/*~hmac=hush": "hdnts",
                "alt=media&key=hush": "key",
                "alt=hush": "alt",
                "private_token=hush": "private_token",
                "rlkey=hush&dl=1": "rlkey",
                "version=1;token=hush": "token",
                "%74oken=hush": "token",
                "hush": "***",
                "hush%20hush=1&code=hush": "***, code",
                f"{'hush' * 11}=1": "***",
            }.items()
        ),
    ],
)
def test_a_url_with_credentials_is_refused_before_it_is_written_anywhere(url, message):
    expected = message.format("expected a URL that may be written into ledgers, found ")
    with pytest.raises(UsageError) as refused:
        list_shards([url])
    assert str(refused.value).startswith(expected) and "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "query",
    [
        *("download", "download=true", "raw=1", "ref=main", "rev=a&revision=b", "format=tar"),
        *("version=2", "versionId=3%2F", "dl=1", "alt=media&generation=17", "", "&"),
    ],
)
def test_a_query_that_is_known_to_be_harmless_is_taken(query):
    url = f"https://host/a.tar?{query}"
    assert canonical_url(url).rstrip("?") == url.rstrip("?")


def test_any_query_is_taken_where_a_person_allows_it_and_its_values_are_never_told(with_ranges):
    url = f"{with_ranges.url}/a.tar?version=2&token=hush;sig=%20hush&hush#hush"
    [shard] = list_shards([url], allow_query=True)
    assert shard.url == url.removesuffix("#hush")
    displayed = f"{with_ranges.url}/a.tar?version=2&token=***&sig=***&***"
    assert display_name(shard.url) == displayed
    assert [item.key for item in read_samples(shard, ReadSettings())] == ["a", "b"]
    with_ranges.faults = Faults(always={"range": "403"})
    for fail in (
        lambda: stat(shard.url),
        lambda: read_range(shard.url, 1 << 40, 1),
        lambda: read_range(shard.url, -1, 1),
        lambda: list_shards([shard.url.replace("a.tar", "*.tar")], allow_query=True),
        lambda: list_shards([shard.url.replace("a.tar", "{1..2.tar")], allow_query=True),
        lambda: list_shards([shard.url.replace("/a.tar", "/")], allow_query=True),
        lambda: Folder(shard.url).write_whole("a", b""),
        lambda: canonical_url(f"http:///a.tar{url.partition('.tar')[2]}", allow_query=True),
    ):
        with pytest.raises(ChiasmError) as caught:
            fail()
        assert "hush" not in str(caught.value)
    with pytest.raises(UsageError, match="a query that may hold credentials"):
        glob(url)


@pytest.mark.parametrize("url", ["http://[x/a.tar", "http://ann:hush@[x/a.tar?token=hush"])
def test_what_is_no_url_is_told_in_one_line(url):
    with pytest.raises(UsageError) as caught:
        list_shards([url])
    assert str(caught.value) == (
        "http://[x/a.tar: expected http://host/path, found no URL (Invalid IPv6 URL)"
    )


def test_what_netrc_holds_is_sent_and_never_told(with_ranges, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ann password hush\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert read(f"{with_ranges.url}/long") == LONG
    assert with_ranges.answer.requests[0].headers["authorization"].startswith("Basic ")
    with_ranges.faults = Faults(always={"range": "403"})
    with pytest.raises(SourceError) as caught:
        list_shards([f"{with_ranges.url}/a.tar"])
    assert str(caught.value) == (
        f"{with_ranges.url}/a.tar: expected a file to read, found 403 Forbidden;"
        " check ~/.netrc and the URL (docs/operations.md)"
    )


def test_a_redirect_to_a_signed_url_does_not_tell_its_signature(with_ranges, monkeypatch):
    monkeypatch.setattr(retry, "RETRIES", RetrySettings(1))
    with_ranges.answer.redirects["/a"] = "http://ann:hush@127.0.0.1:1/a?X-Amz-Signature=hush"
    with_ranges.answer.redirects["/b"] = "ftp://ann:hush@127.0.0.1/a?X-Amz-Signature=hush"
    for path in "ab":
        with pytest.raises(SourceError) as caught:
            stat(f"{with_ranges.url}/{path}")
        assert "hush" not in str(caught.value)


def test_what_would_be_met_again_is_not_tried_again(with_ranges):
    with pytest.raises(SourceError, match="found nothing there"):
        stat(f"{with_ranges.url}/none.tar")
    assert with_ranges.seen.total() == 1


def test_a_picture_is_one_range_read(with_ranges):
    [shard] = list_shards([f"{with_ranges.url}/a.tar"])
    whole = list(read_samples(shard, ReadSettings()))  # to its end: nothing is read ahead any more
    place: Place = next(item.sources["image"].place for item in whole if isinstance(item, Sample))
    with_ranges.seen.clear()
    assert read_member(shard.url, place) == b"A"
    assert with_ranges.seen == {"range": 1}


@pytest.mark.parametrize("size", [9, 0, -1])
def test_a_response_that_only_tells_a_size_is_closed(monkeypatch, size):
    closed: list[bool] = []
    store = WebStore(retry.RETRIES)
    response = SimpleNamespace(size=size, version="v", close=lambda: closed.append(True))
    monkeypatch.setattr(store, "_open", lambda path: response)
    if size:
        whole = store._whole_only("http://host/a")
        assert (whole.size, whole.version) == (size, "v") and whole.request() is response
    else:
        with pytest.raises(RangeNotSatisfiable):
            store._whole_only("http://host/a")
    assert closed == [True]
