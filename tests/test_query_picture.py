"""Pictures of queries given by URL: read within limits, or refused in one line."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import make_shard
from fake_encoder import FakeEncoder

from chiasm.index import build_index, open_collection
from chiasm.index.query import query_picture
from chiasm.pipeline.collection import Identity, create_or_check
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.errors import SourceError, UsageError
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder, retry, schemes
from chiasm.pipeline.storage.retry import RetrySettings


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A shard of 20 embedded and indexed."""
    root = tmp_path_factory.mktemp("query_picture")
    encoder, folder = FakeEncoder(), Folder(str(root / "c"))
    create_or_check(folder, Identity.of(encoder), "test")
    for shard in list_shards([str(make_shard(root / "s-0.tar", 20))]):
        embed_shard(shard, encoder, folder, EmbedSettings(), run_id="test")
    build_index(root / "c")
    return root / "c"


class Pictures(BaseHTTPRequestHandler):
    """Serves `pictures`, by path, and holds back /slow until `release` is set."""

    pictures: ClassVar[dict[str, bytes]] = {}
    release: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.release.wait(60)
        data = self.pictures.get(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""


@pytest.fixture
def web(monkeypatch):
    """The address of a web server that serves what a test puts into `Pictures.pictures`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    monkeypatch.setattr(Pictures, "pictures", {})
    monkeypatch.setattr(Pictures, "release", threading.Event())
    monkeypatch.setattr(retry, "RETRIES", RetrySettings(2, first_wait=0.005, longest_wait=0.01))
    monkeypatch.setattr(schemes.WEB_STORE, "_stores", {})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Pictures.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_picture_is_fetched_from_the_web(made, web):
    collection = open_collection(made)
    data = collection.search("anything", k=1)[0].picture()
    Pictures.pictures["/query.jpg"] = data
    answer = collection.search(image=f"{web}/query.jpg", k=5)
    assert answer.results == collection.search(image=data, k=5).results
    assert answer.as_json()["query"]["image"] == f"{web}/query.jpg"


def test_the_command_line_takes_a_url_as_image(made, web, chiasm):
    data = open_collection(made).search("anything", k=1)[0].picture()
    Pictures.pictures["/query.jpg"] = data
    done = chiasm("search", made, "--image", f"{web}/query.jpg", "--json", "-k", 1)
    assert json.loads(done.stdout)["results"][0]["score"] == pytest.approx(1, abs=1e-3)


def test_urls_that_cannot_be_a_picture_are_refused_in_one_line(made, web, monkeypatch):
    collection = open_collection(made)
    Pictures.pictures["/page.html"] = b"<html>no picture</html>"
    messages = {
        f"{web}/none.jpg": f"{web}/none.jpg: expected a file to read, found nothing there",
        f"{web}/page.html": f"{web}/page.html: expected a picture, found not_a_picture",
        "ftp://user:secret@host/a.jpg": "ftp://***: expected a picture's path, or its URL with one",
        "http://user:secret@host/a.jpg": "found credentials in it",
        "": "'': expected a picture's path or URL, found an empty one",
        " ": "' ': expected a picture's path or URL, found an empty one",
    }
    for url, message in messages.items():
        with pytest.raises((UsageError, SourceError)) as error:
            collection.search(image=url)
        assert message in str(error.value) and "secret" not in str(error.value)


def test_a_picture_larger_than_the_limit_is_not_read_to_its_end(made, web, monkeypatch):
    monkeypatch.setattr(query_picture, "MAX_BYTES", 1000)
    Pictures.pictures["/large.jpg"] = bytes(1001)
    with pytest.raises(UsageError, match=r"large\.jpg: expected at most 1 KB, found more"):
        open_collection(made).search(image=f"{web}/large.jpg")


def test_a_slow_server_is_given_up_after_the_time_limit(made, web, monkeypatch):
    monkeypatch.setattr(query_picture, "URL_SECONDS", 0.2)
    with pytest.raises(SourceError, match=r"expected a picture within 0\.2 s, found a slower"):
        open_collection(made).search(image=f"{web}/slow")


def test_a_picture_is_read_from_an_object_store(made, s3):
    collection = open_collection(made)
    data = collection.search("anything", k=1)[0].picture()
    Folder(s3.root).write_whole("query.jpg", data)
    answer = collection.search(image=f"{s3.root}/query.jpg", k=5)
    assert answer.results == collection.search(image=data, k=5).results
