"""A real S3 (moto's server, as a program of its own) and servers that fail on request.

`FaultyServer` stands in front of an S3, or serves files itself, and does to answers what networks
do: statuses, resets before, after and in the middle, bodies cut, slow, or called longer or shorter
than they are. The tests and benchmarks/object_store.py share it.

    python -m tests.support.faulty_server URL SHARE SEED FAULT...

stands before the server at URL as a program: prints its own URL, and when its stdin ends how many
requests it met and how many it failed, as JSON.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

FAULTS = (
    "500",
    "503",
    "reset",  # before the request is heard
    "lost",  # after it was done: only the answer is missing
    "cut",  # a reset in the middle of the body
    "truncated",  # a closed connection there
    "slow",
    "long",  # Content-Length says more than comes
    "short",  # Content-Length says less than comes
)
# Met only where a test asks for them: "403"; "501", by conditional requests alone; and "stall",
# half an answer and then silence, until the client hangs up.

CODES = {"403": "AccessDenied", "500": "InternalError", "501": "NotImplemented", "503": "SlowDown"}

# A put on condition is one step in S3. moto looks whether the name is there and puts later, in one
# thread for each request, so that two writers of a new name could both have won.
_MOTO = """
import sys
import threading
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
answer, one_at_a_time = S3Response.key_response, threading.Lock()
def on_condition(self, request, *arguments):
    if "If-None-Match" not in request.headers and "If-Match" not in request.headers:
        return answer(self, request, *arguments)
    with one_at_a_time:
        return answer(self, request, *arguments)
S3Response.key_response = on_condition
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def running_moto() -> Iterator[str]:
    """The URL of an S3 that ends with the block, and with this process."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": "100"},  # ten times as many pages
    )
    with process:
        assert process.stdout is not None and process.stdin is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.stdin.close()
        process.kill()


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        """get, range, head, list, put, part, begin, complete, abort, delete or uploads."""
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if self.method == "GET" and "uploads" in query:
            return "uploads"
        if self.method == "GET" and "list-type" in query:
            return "list"
        if self.method == "GET":
            return "range" if "range" in self.headers else "get"
        if self.method == "PUT":
            return "part" if "partNumber" in query else "put"
        if self.method == "POST":
            return "begin" if "uploads" in query else "complete"
        if self.method == "DELETE":
            return "abort" if "uploadId" in query else "delete"
        return self.method.lower()


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Faults:
    """Which requests fail, and how.

    once: (kind of request, fault) pairs, each met by the next such request. share: of all requests,
    drawn with `seed`. always: a fault that every request of a kind meets.
    """

    once: list[tuple[str, str]] = field(default_factory=list)
    always: dict[str, str] = field(default_factory=dict)
    share: float = 0.0
    seed: int = 0
    kinds: tuple[str, ...] = FAULTS

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._lock = threading.Lock()

    def next(self, kind: str) -> str | None:
        with self._lock:
            for pair in self.once:
                if pair[0] == kind:
                    self.once.remove(pair)
                    return pair[1]
            if kind in self.always:
                return self.always[kind]
            return self._rng.choice(self.kinds) if self._rng.random() < self.share else None


class FaultyServer:
    """Answers requests by `answer`, spoiled by `faults`; counts them by kind in `seen`, faults in
    `failed`, and keeps what ranges were asked for, in their order."""

    def __init__(self, answer: Callable[[Request], Response], host: str = "127.0.0.1") -> None:
        self.answer = answer
        self.faults = Faults()
        self.seen: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.reason: str | None = None  # in place of the status's own
        self._server = _Server((host, 0), _handler(self))
        self.url = f"http://{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up when they have heard enough: nothing to print."""


def _handler(owner: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            request = Request(self.command, self.path, headers, body)
            fault = owner.faults.next(request.kind)
            if fault == "501" and "if-none-match" not in headers:
                fault = None
            owner.seen[request.kind] += 1
            if "range" in headers:
                owner.ranges.append(headers["range"])
            if fault is not None:
                owner.failed[fault] += 1
            if fault == "reset":
                self.reset()
                return
            if fault in CODES:
                self.send(_failure(fault), None)
                return
            response = owner.answer(request)
            if fault == "lost":
                self.reset()
            else:
                self.send(response, fault)

        def send(self, response: Response, fault: str | None) -> None:
            body = b"" if self.command == "HEAD" else response.body
            length = response.headers.get("Content-Length", str(len(body)))
            if fault == "long":
                length = str(int(length) + 1000)
            elif fault == "short":
                length = str(int(length) // 2)
            self.send_response(response.status, owner.reason)
            for name, value in response.headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            if "Transfer-Encoding" in response.headers:
                self.send_header("Transfer-Encoding", "chunked")
                body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
                body += b"0\r\n\r\n"
            else:
                self.send_header("Content-Length", length)
            self.end_headers()
            if fault in ("cut", "truncated", "stall"):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                if fault == "stall":
                    self.connection.settimeout(60)
                    with suppress(OSError):
                        self.connection.recv(1)
                if fault == "cut":
                    time.sleep(0.02)  # or the reset overtakes what was sent
                    self.reset()
            elif fault == "slow":
                for start in range(0, len(body), 1 + len(body) // 8):
                    self.wfile.write(body[start : start + 1 + len(body) // 8])
                    self.wfile.flush()
                    time.sleep(0.01)
            else:
                self.wfile.write(body)
            if fault in ("truncated", "stall", "long", "short"):
                self.close_connection = True

        def reset(self) -> None:
            """Close so that the other side sees a reset, not an end."""
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    return Handler


def _failure(status: str) -> Response:
    code = CODES[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
    return Response(int(status), {"Content-Type": "application/xml"}, body.encode())


def forwarding_to(url: str) -> Callable[[Request], Response]:
    """Answers what the server at `url` answers."""
    host = urlsplit(url).netloc

    def answer(request: Request) -> Response:
        connection = http.client.HTTPConnection(host, timeout=60)
        try:
            connection.request(request.method, request.path, request.body, request.headers)
            heard = connection.getresponse()
            return Response(heard.status, dict(heard.getheaders()), heard.read())
        finally:
            connection.close()

    return answer


@dataclass
class Files:
    """Files by path. ranges: whether ranges are answered. length: whether whole answers tell it.
    etags: path -> ETag, where a file has one."""

    files: dict[str, bytes]
    ranges: bool = True
    length: bool = True
    etags: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def __call__(self, request: Request) -> Response:
        self.requests.append(request)
        path = unquote(urlsplit(request.path).path)
        if path in self.redirects:
            return Response(302, {"Location": self.redirects[path]}, b"")
        if path not in self.files:
            return Response(404, {}, b"no such file")
        data = self.files[path]
        headers = {"ETag": self.etags[path]} if path in self.etags else {}
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if found is None or not self.ranges:
            if not self.length:
                headers["Transfer-Encoding"] = "chunked"
            return Response(200, headers, data)
        first = int(found[1]) if found[1] else max(0, len(data) - int(found[2]))
        last = min(int(found[2]), len(data) - 1) if found[1] and found[2] else len(data) - 1
        if first >= len(data):
            return Response(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return Response(206, headers, data[first : last + 1])


def main(url: str, share: str, seed: str, *kinds: str) -> None:
    server = FaultyServer(forwarding_to(url))
    server.faults = Faults(share=float(share), seed=int(seed), kinds=kinds)
    print(server.url, flush=True)
    sys.stdin.read()
    print(json.dumps({"requests": server.seen.total(), "faults": dict(server.failed)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
