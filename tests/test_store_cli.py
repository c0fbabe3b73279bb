"""The commands, with shards and collection on an object store; and what they say when it fails."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import environment, make_shard
from faulty_server import Faults
from test_remote_collection import put_shards
from undisturbed import embed

from chiasm.index import open_collection
from chiasm.index.build import build_index
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder, retry, schemes
from chiasm.pipeline.storage.retry import RetrySettings

SECRET = "hush-hush-hush"


def test_embed_index_search_status_and_check_on_a_store(s3, chiasm, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    shards, there = put_shards(s3, tmp_path), f"{s3.root}/there"
    outputs = []

    def run(*arguments):
        ran = chiasm(*arguments)
        assert ran.returncode == 0, ran.stderr
        outputs.append(ran.stdout + ran.stderr)
        return ran.stdout

    options = ("--encoder", "fake", "--set", "batch.size=8", "--json")
    done = json.loads(run("embed", f"{s3.root}/shards/*.tar", "--to", there, *options))
    assert (done["rows"], done["shards"]["done"]) == (60, 3)
    run("index", "build", there)

    here = embed(shards, str(tmp_path / "here"))
    build_index(here.url)
    assert s3.keys("there/embeddings/") == {
        f"there/{name}": here.read_bytes(name) for name in here.list("embeddings")
    }
    with ThreadPoolExecutor(3) as asking:
        found, status, check = asking.map(
            lambda arguments: json.loads(run(*arguments, "--json")),
            [
                ("search", there, "picture 3", "-k", "4"),
                ("status", there),
                ("check", there, "--reencode", "5"),
            ],
        )
    assert (
        found["results"] == open_collection(here.url).search("picture 3", k=4).as_json()["results"]
    )
    assert status["rows"] == 60 and check["findings"] == []
    assert not any(SECRET in one for one in outputs)
    assert not any(SECRET.encode() in data for data in s3.keys().values())


def loaded(*arguments: str) -> set[str]:
    """Which heavy packages a command has loaded when it ends well."""
    code = (
        "import sys; from chiasm.jobs.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*({'torch', 'ray', 'fsspec', 's3fs', 'aiohttp'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment(), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("command", ["status", "check"])
def test_looking_at_a_collection_loads_what_its_place_needs(s3, command, tmp_path):
    shards = put_shards(s3, tmp_path, 1)
    there, here = f"{s3.root}/there", str(tmp_path / "here")
    embed(shards, there)
    embed(shards, here)
    libraries = {"fsspec", "s3fs", "aiohttp"}
    assert loaded(command, there) == libraries
    assert loaded(command, here) == libraries  # whether the shards are there
    own = list_shards([str(make_shard(tmp_path / "own" / "a.tar", 3))])
    local = embed(own, str(tmp_path / "local"))
    assert loaded(command, str(tmp_path / "local")) == set(), local


@pytest.fixture
def untrusted(tmp_path):
    """A server whose certificate nobody has signed but itself: its URL, and the certificate."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"https://127.0.0.1:{server.server_address[1]}", certificate
    server.shutdown()
    server.server_close()


class Silent(SimpleHTTPRequestHandler):
    """Finds nothing and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_error(404)


@pytest.fixture
def anew(s3, monkeypatch):
    """Stores that read the environment of this test; two attempts."""
    monkeypatch.setattr(schemes.S3_STORE, "_stores", {})
    monkeypatch.setattr(retry, "RETRIES", RetrySettings(2, first_wait=0.01))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return s3


def error_of(call) -> str:
    with pytest.raises(ChiasmError) as caught:
        call()
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)
    return str(caught.value)


def test_a_bucket_that_is_not_there(anew):
    message = "{}: expected {}, found no such bucket; make it, or check its name"
    folder = Folder("s3://nowhere/c")
    assert error_of(lambda: list_shards(["s3://nowhere/a.tar"])) == message.format(
        "s3://nowhere/a.tar", "a file to read"
    )
    for use in (folder.list, lambda: folder.exists("a"), lambda: folder.stat("a")):
        assert "found no such bucket" in error_of(use)
    assert error_of(lambda: folder.write_whole("a", b"")) == message.format(
        "s3://nowhere/c/a", "a usable file"
    )


def test_a_command_that_meets_a_bucket_that_is_not_there_says_one_line(s3, chiasm):
    ran = chiasm("status", "s3://nowhere/c")
    assert ran.returncode == 1 and ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert "s3://nowhere/c" in line and "found no such bucket" in line


def test_no_credentials(anew, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert error_of(lambda: list_shards(["s3://bucket/a.tar"])) == (
        "s3://bucket/a.tar: expected a file to read, found no credentials; set AWS_PROFILE or"
        " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (docs/operations.md)"
    )


def test_credentials_in_a_url(anew):
    for url in (
        f"s3://key:{SECRET}@bucket/a",
        "s3://key@bucket/a",
        f"s3://key:a/{SECRET}@b/c",
        f"hf://me:{SECRET}@datasets/a",
    ):
        scheme = url.partition("://")[0]
        assert error_of(lambda url=url: Folder(url)) == (
            f"{scheme}://***: expected a URL that may be written into ledgers, found credentials in"
            " it; docs/operations.md says where they go"
        )


def test_a_bucket_that_is_forbidden(anew):
    anew.server.faults = Faults(always={"range": "403", "put": "403", "list": "403"})
    do = "; check the credentials and the endpoint (docs/operations.md)"
    message = error_of(lambda: list_shards([f"{anew.root}/a.tar"]))
    assert message.startswith(f"{anew.root}/a.tar: expected a file to read, found 403 ")
    assert "AccessDenied" in message and message.endswith(do)
    assert "AccessDenied" in error_of(lambda: Folder(anew.root).write_whole("a", b""))
    assert "AccessDenied" in error_of(lambda: Folder(anew.root).list())
    assert anew.server.seen == {"range": 1, "put": 1, "list": 1}, "and not asked again"


def test_a_host_out_of_reach(anew, monkeypatch):
    message = "expected an answer, found 2 attempts failed, the last one: "
    for endpoint in ("http://127.0.0.1:1", "http://no-such-host.invalid"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setattr(schemes.S3_STORE, "_stores", {})
        for url, words in ((endpoint, "Cannot connect"), ("s3://b", "Could not connect")):
            line = error_of(lambda url=url: list_shards([f"{url}/a.tar"]))
            assert line.startswith(f"{url}/a.tar: {message}{words}")
            assert line.endswith(
                "; check the network and the endpoint, then run the same command again"
            )


def test_an_endpoint_and_a_bucket_that_cannot_be(anew, monkeypatch):
    assert 'Invalid bucket name "B_!"' in error_of(lambda: Folder("s3://B_!/c").list())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    monkeypatch.setattr(schemes.S3_STORE, "_stores", {})
    assert "found Invalid endpoint: nonsense" in error_of(lambda: Folder(anew.root).list())


def test_a_certificate_that_is_not_trusted(anew, untrusted, monkeypatch):
    endpoint, certificate = untrusted
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for url, variable in ((endpoint, "SSL_CERT_FILE"), ("s3://bucket", "AWS_CA_BUNDLE")):
        assert error_of(lambda url=url: list_shards([f"{url}/a.tar"])) == (
            f"{url}/a.tar: expected a file to read, found a certificate that is not trusted"
            f" (self-signed certificate); name the file of its authority in {variable}"
        )
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    monkeypatch.setattr(schemes.S3_STORE, "_stores", {})
    assert "found nothing there" in error_of(lambda: list_shards(["s3://bucket/a.tar"]))
    code = (
        "from chiasm.pipeline.shards.listing import list_shards; "
        "list_shards([__import__('sys').argv[1]])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, f"{endpoint}/a.tar"],
        env={**environment(), "SSL_CERT_FILE": str(certificate)},
        capture_output=True,
        text=True,
    )
    assert "found nothing there" in ran.stderr
