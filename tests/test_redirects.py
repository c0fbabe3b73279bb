"""Where a web server may send its readers, and how much of its answers they read."""

from __future__ import annotations

import gzip
import socket
import tracemalloc

import pytest
from conftest import noise
from faulty_server import Faults, FaultyServer, Files, Request, Response
from test_tars import PLAIN, tar_of
from yarl import URL

from chiasm.pipeline.errors import SourceError, UnreachableError
from chiasm.pipeline.storage import (
    addresses,
    open_stream,
    read_range,
    retry,
    schemes,
    stat,
    streams,
    web_requests,
)
from chiasm.pipeline.storage.addresses import address_of, is_public, may_lead_to
from chiasm.pipeline.storage.retry import RetrySettings
from chiasm.pipeline.storage.store_errors import Refused
from chiasm.pipeline.storage.web_requests import redirected

TAR = tar_of(*PLAIN)
LONG = noise(50_000)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Short waits, small blocks, a store of this test alone."""
    monkeypatch.setattr(retry, "RETRIES", RetrySettings(3, first_wait=0.005, longest_wait=0.05))
    monkeypatch.setattr(schemes.WEB_STORE, "_stores", {})
    monkeypatch.setattr(streams, "FIRST_BLOCK", 1000)
    monkeypatch.setattr(streams, "BLOCK", 4000)


@pytest.fixture
def serve():
    """Starts servers that end with the test."""
    running: list[FaultyServer] = []

    def start(answer, host: str = "127.0.0.1") -> FaultyServer:
        running.append(FaultyServer(answer, host))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture
def names(monkeypatch):
    """Name -> addresses, in place of DNS; counts what was resolved in `names[""]`."""
    known: dict[str, list[str]] = {"": []}
    resolve = socket.getaddrinfo

    def answer(host, port, *args, **kwargs):
        known[""].append(host)
        if host not in known:
            return resolve(host, port, *args, **kwargs)
        if not known[host]:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return known


@pytest.fixture
def outside(monkeypatch):
    """127.0.0.1 counts as a public address in this test."""

    def public(address: addresses.Address) -> bool:
        return str(address) == "127.0.0.1" or is_public(address)

    monkeypatch.setattr(addresses, "is_public", public)
    monkeypatch.setattr(web_requests, "is_public", public)


def inner(serve, host: str = "127.0.0.2") -> FaultyServer:
    return serve(Files({"/a.tar": b"inner secret", "/": b"inner secret"}), host)


def port_of(server: FaultyServer) -> str:
    return server.url.rpartition(":")[2]


def read(url):
    with open_stream(url) as stream:
        return stream.read()


PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
NETWORK = ["10.1.2.3", "172.16.0.1", "172.31.9.9", "192.168.1.1", "100.64.0.1", "fd12::1"]
NETWORK += ["::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "fc00::1"]
MACHINE = ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "::1", "::", "::ffff:127.0.0.1"]
MACHINE += ["::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "169.254.169.254", "fe80::1"]
MACHINE += ["fe80::1%eth0", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fec0::1", "ff02::1"]
MACHINE += ["224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "2001:db8::1", "2001::1"]
MACHINE += ["64:ff9b:1::7f00:1", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"]
MACHINE += ["fd20:ce::254", "::ffff:100.100.100.200"]


def addresses_of(*texts: str) -> set[addresses.Address]:
    found = {address_of(text) for text in texts}
    assert None not in found
    return {address for address in found if address is not None}


@pytest.mark.parametrize("origin", [["93.184.216.34"], ["10.0.0.1", "8.8.8.8"], []])
def test_a_public_server_redirects_to_public_addresses_alone(origin):
    allowed = [
        text
        for text in PUBLIC + NETWORK + MACHINE
        for address in addresses_of(text)
        if may_lead_to(address, addresses_of(*origin))
    ]
    assert allowed == PUBLIC


def test_a_server_inside_a_network_redirects_within_networks_and_to_itself():
    for text in PUBLIC + NETWORK + MACHINE:
        (address,) = addresses_of(text)
        expected = text in PUBLIC + NETWORK
        assert may_lead_to(address, addresses_of("10.0.0.5")) == expected, text
        assert may_lead_to(address, addresses_of("192.168.7.7", text)) == (
            text in PUBLIC + NETWORK or not is_public(address)
        )
    assert address_of("host") is None and address_of("2130706433") is None


def test_a_redirect_leads_to_no_inner_server(serve, names):
    secret = inner(serve)
    names["inner.test"] = ["127.0.0.2"]
    names["both.test"] = ["127.0.0.1", "127.0.0.2"]
    targets = [
        secret.url,
        f"http://inner.test:{port_of(secret)}",
        f"http://both.test:{port_of(secret)}",
        f"http://[::ffff:127.0.0.2]:{port_of(secret)}",
        f"//127.0.0.2:{port_of(secret)}",
        f"http://2130706434:{port_of(secret)}",
        f"http://0x7f000002:{port_of(secret)}",
        f"http://0177.0.0.2:{port_of(secret)}",
        f"http://127.2:{port_of(secret)}",
    ]
    outer = serve(Files({}, redirects={f"/{n}": to for n, to in enumerate(targets)}))
    for number, target in enumerate(targets):
        for use in (stat, open_stream, lambda url: read_range(url, 0, 5)):
            with pytest.raises(SourceError) as caught:
                use(f"{outer.url}/{number}")
            assert "secret" not in str(caught.value) and "\n" not in str(caught.value), target
    assert not secret.seen
    with pytest.raises(SourceError) as caught:
        stat(f"{outer.url}/1")
    assert str(caught.value) == (
        f"{outer.url}/1: expected a file to read, found a redirect to inner.test, which is inside a"
        " network or this machine; name the URL that it leads to, if that is what you want"
    )
    assert stat(f"http://inner.test:{port_of(secret)}/").size == 12, "a person may name it"


def test_what_is_checked_is_the_address_that_is_connected_to(serve, names, outside):
    """A name that is public at a look and private at the next is looked up once."""
    secret = inner(serve)
    files = Files({"/a.tar": TAR})
    outer = serve(files)
    names["moves.test"] = ["127.0.0.1"]
    files.redirects["/go"] = f"http://moves.test:{port_of(outer)}/a.tar"
    assert read(f"{outer.url}/go") == TAR
    names["moves.test"] = ["127.0.0.2"]
    files.redirects["/go"] = f"http://moves.test:{port_of(secret)}/a.tar"
    names[""].clear()
    with pytest.raises(SourceError, match=r"a redirect to moves\.test, which is inside"):
        stat(f"{outer.url}/go")
    assert names[""] == ["moves.test"] and not secret.seen


def test_a_connection_to_a_server_that_a_person_named_is_none_for_a_redirect(serve, outside):
    secret = inner(serve)
    outer = serve(Files({}, redirects={"/go": f"{secret.url}/a.tar"}))
    assert stat(f"{secret.url}/a.tar").size == 12
    with pytest.raises(SourceError, match=r"a redirect to 127\.0\.0\.2, which is inside"):
        stat(f"{outer.url}/go")
    assert secret.seen["range"] == 1


def test_a_chain_of_redirects_is_checked_at_each_step(serve, names, outside):
    secret = inner(serve)
    files = Files({"/a.tar": TAR, "/x/y/b.tar": TAR})
    outer = serve(files)
    names["one.test"] = names["two.test"] = ["127.0.0.1"]
    files.redirects |= {
        "/1": f"http://one.test:{port_of(outer)}/2",
        "/2": f"http://two.test:{port_of(outer)}/3",
        "/3": f"{secret.url}/a.tar",
        "/4": f"http://two.test:{port_of(outer)}/5",
        "/5": "x/y/b.tar",
    }
    with pytest.raises(SourceError, match=r"a redirect to 127\.0\.0\.2"):
        stat(f"{outer.url}/1")
    assert not secret.seen
    assert read(f"{outer.url}/4") == TAR


def test_a_server_of_this_machine_that_is_called_by_a_name_redirects_to_itself(serve, names):
    files = Files({"/b.tar": TAR})
    server = serve(files)
    names["home.test"] = ["127.0.0.1"]
    files.redirects["/a.tar"] = f"http://127.0.0.1:{port_of(server)}/b.tar"
    assert read(f"http://home.test:{port_of(server)}/a.tar") == TAR
    files.redirects["/a.tar"] = f"{inner(serve).url}/a.tar"
    with pytest.raises(SourceError, match=r"a redirect to 127\.0\.0\.2"):
        stat(f"http://home.test:{port_of(server)}/a.tar")


def test_every_kind_of_redirect_is_followed_ten_times_at_most(serve):
    def answer(request: Request) -> Response:
        left = int(request.path.rpartition("/")[2])
        if not left:
            return Files({"/0": TAR})(request)
        status = (301, 302, 303, 307, 308)[left % 5]
        return Response(status, {"Location": f"/{left - 1}"}, b"")

    server = serve(answer)
    assert read(f"{server.url}/10") == TAR
    with pytest.raises(SourceError, match="found more than ten redirects; name the URL of the"):
        stat(f"{server.url}/11")


@pytest.mark.parametrize("status", [300, 302, 304, 305])
def test_what_is_no_redirect_is_told(serve, status):
    location = {"Location": "/a.tar"} if status != 302 else {}
    server = serve(lambda r: Response(status, location, b"") if r.path == "/x" else None)
    with pytest.raises(SourceError, match=f"found {status} "):
        stat(f"{server.url}/x")


def test_escapes_of_a_url_are_sent_as_they_are(serve):
    files = Files({"/a/b~c+d.tar": TAR})
    path = "/a%2Fb%7Ec%2Bd.tar?version=%7E+%2B"
    assert read(f"{serve(files).url}{path}") == TAR
    assert {request.path for request in files.requests} == {path}


def test_a_file_comes_in_the_encoding_in_which_it_is_kept(serve):
    packed = gzip.compress(TAR)

    def answer(request: Request) -> Response:
        response = Files({"/a": packed})(request)
        return Response(
            response.status, response.headers | {"Content-Encoding": "gzip"}, response.body
        )

    assert read(f"{serve(answer).url}/a") == packed


def test_a_redirect_leads_to_web_servers_and_keeps_encryption():
    start = URL("https://host/a/b.tar")
    assert str(redirected(start, "../c.tar?x=1")) == "https://host/c.tar?x=1"
    assert str(redirected(start, "//other/c")) == "https://other/c"
    assert str(redirected(URL("http://host/a"), "https://host/b")) == "https://host/b"
    for location, found in {
        "http://host/a.tar": "from https to http",
        "file:///etc/passwd": "to file://",
        "ftp://host/a": "to ftp://",
        "s3://bucket/a": "to s3://",
        "data:text/plain,hush": "to data://",
        "gopher://127.0.0.1:25/hush": "to gopher://",
        "http://[x/hush": "to what is no URL",
        "http://host:99999999/hush": "to what is no URL",
    }.items():
        with pytest.raises(Refused) as caught:
            redirected(start, location)
        assert str(caught.value) == f"a redirect {found}"


def test_a_proxy_is_not_sent_to_inner_servers(serve, names, monkeypatch):
    """Names that only the proxy knows are its own matter."""
    secret = inner(serve)
    files = Files({"/a.tar": TAR})
    proxy = serve(files)
    monkeypatch.setenv("http_proxy", proxy.url)
    names["data.test"] = names["cdn.test"] = []
    names["inner.test"] = ["127.0.0.2"]
    files.redirects |= {
        "/1": "http://cdn.test/a.tar",
        "/2": f"{secret.url}/a.tar",
        "/3": "http://inner.test/a.tar",
        "/4": "http://169.254.169.254/latest",
    }
    assert read("http://data.test/1") == TAR
    for number in (2, 3, 4):
        with pytest.raises(SourceError, match="found a redirect to"):
            stat(f"http://data.test/{number}")
    assert {request.path for request in files.requests} == {
        *("http://data.test/1", "http://cdn.test/a.tar"),
        *(f"http://data.test/{number}" for number in (2, 3, 4)),
    }
    monkeypatch.setenv("no_proxy", "127.0.0.2")
    with pytest.raises(SourceError, match="found a redirect to"):
        stat("http://data.test/2")
    assert not secret.seen


def test_cookies_of_a_server_follow_its_redirects(serve, names):
    names["shop.test"] = ["127.0.0.1"]

    def answer(request: Request) -> Response:
        if request.headers.get("cookie") == "seen=1":
            return Files({"/a.tar": TAR})(request)
        return Response(302, {"Location": request.path, "Set-Cookie": "seen=1"}, b"")

    assert read(f"http://shop.test:{port_of(serve(answer))}/a.tar") == TAR


def test_no_more_is_read_than_was_asked_for(serve):
    body = bytes(64 << 20)

    def answer(request: Request) -> Response:
        if "range" not in request.headers:
            return Response(500, {}, body)
        first = request.headers["range"].removeprefix("bytes=").split("-")
        where = f"bytes {first[0]}-{first[1]}/{len(body)}"
        return Response(206, {"Content-Range": where}, body)

    server = serve(answer)
    message = r"3 attempts failed, the last one: more than 1 bytes with a Content-Range of 'bytes 0"
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(UnreachableError, match=message):
        stat(f"{server.url}/a")
    with pytest.raises(UnreachableError, match="more than 7 bytes"):
        read_range(f"{server.url}/a", 9, 7)
    server.faults = Faults(always={"range": "500"})
    with pytest.raises(UnreachableError, match="500 Internal Server Error"):
        stat(f"{server.url}/a")
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 16 << 20, "the server's own, in this process"
