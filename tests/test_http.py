"""Shards on web servers: with ranges, without, and with what networks do to them."""

from __future__ import annotations

import contextlib
import gzip
from collections import Counter

import pytest
from conftest import noise
from faulty_server import FAULTS, Faults, FaultyServer, Files
from test_tars import PLAIN, tar_of

from chiasm.pipeline.errors import SourceError, UnreachableError, UsageError
from chiasm.pipeline.records import Dropped, Place, Sample
from chiasm.pipeline.shards import ReadSettings, list_shards, read_member, read_samples, shard_id
from chiasm.pipeline.storage import (
    Folder,
    canonical_url,
    display_name,
    open_stream,
    read_range,
    retry,
    schemes,
    stat,
    streams,
)
from chiasm.pipeline.storage.retry import RetrySettings

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
    with pytest.raises(SourceError, match=r"x\.tar\?key=1: expected a file to read, found nothing"):
        list_shards([f"{server.url}/x.tar?key=1"])
    with pytest.raises(UsageError, match="expected a URL that can be written to, found http://"):
        Folder(server.url).write_whole("a", b"")


def test_the_query_belongs_to_the_url_and_not_to_the_name(with_ranges):
    [one], [two] = (list_shards([f"{with_ranges.url}/a.tar?version={v}"]) for v in (1, 2))
    assert one.id.startswith("a-") and two.id.startswith("a-") and one.id != two.id
    assert [item.key for item in read_samples(two, ReadSettings())] == ["a", "b"]
    assert with_ranges.answer.requests[-1].path == "/a.tar?version=2"


def test_one_place_has_one_url():
    url = canonical_url("HTTPS://Data.Example/x y/%20é.tar?size=a%2Fb&c=[1]#part")
    assert url == "https://data.example/x%20y/%20%C3%A9.tar?size=a%2Fb&c=[1]"
    assert canonical_url(url) == display_name(url) == url
    assert shard_id(url).startswith("__-")
    with pytest.raises(UsageError, match="expected http://host/path, found no host"):
        canonical_url("http:///a.tar")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://ann:hush@host/a.tar", "http://host/a.tar: {}put them into ~/.netrc"),
        ("http://hush@host/a.tar?b=c", "http://host/a.tar: {}put them into ~/.netrc"),
        ("https://host/a.tar?X-Amz-Signature=hush", "https://host/a.tar: {}name the object by"),
        ("https://host/a.tar?sv=1&sig=hush", "https://host/a.tar: {}name the object by"),
        ("https://host/{1..2}.tar?token=hush", "https://host/{{1..2}}.tar: {}name the object by"),
        *(
            (f"https://host/a.tar?{name}=hush", "https://host/a.tar: {}name the object by")
            for name in ("auth", "secret", "client_secret", "JWT", "pwd", "passwd", "password")
        ),
    ],
)
def test_a_url_with_credentials_is_refused_before_it_is_written_anywhere(url, message):
    expected = message.format(
        "expected a URL that may be written into ledgers, found credentials in it; "
    )
    with pytest.raises(UsageError) as refused:
        list_shards([url])
    assert str(refused.value).startswith(expected) and "hush" not in str(refused.value)


def test_a_query_that_says_no_password_is_taken():
    url = "https://host/a.tar?code=1&author=2&secretary=3&v=jwt"
    assert canonical_url(url) == url


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
